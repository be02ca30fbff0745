"""Every few generations the best of the front so far are measured live, again if need be.

A search that goes on for hours ought not to trust latencies of its beginning: the front is what its
next parents and its winner come from. What devices say takes the place of what was known, their
models learn from it, and the archive is judged anew (:mod:`pipeline.search.learning`).

The choice is journalled before anything is measured, the answers before anybody hears of them; a
replayed generation hears the answers that were given after it and no later ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from latency_tables.arch import Arch
from pipeline.search.evaluation import Evaluation
from pipeline.search.journal import Journal
from pipeline.search.learning import BackgroundSource, Learning, receive, send

N_BEST = 10
"""Points of the front that are measured, the most accurate ones."""


@dataclass(slots=True, kw_only=True)
class Remeasurer:
    """Measures the front after every ``every`` generations.

    Args:
        sources: measure on each device; all of them work at the same time.
        learning: of the search.
        journal: of the search.
        every: number of generations between two times.
        front: the front of an archive, the best first.
    """

    sources: Mapping[str, BackgroundSource]
    learning: Learning
    journal: Journal
    every: int
    front: Callable[[Sequence[Evaluation]], Sequence[Evaluation]]
    _n_heard: Counter[tuple[str, Arch]] = field(default_factory=Counter)

    def refine(self, generation: int, archive: Sequence[Evaluation]) -> list[Evaluation]:
        """Measure the front where it is time to; the archive as it is judged then.

        A network that a board could not measure keeps what was known of it.

        Raises:
            DeviceError: a board is gone; the same search goes on with what was measured.
        """
        if (generation + 1) % self.every:
            return list(archive)
        archs = self.journal.remeasurement(generation)
        if archs is None:
            archs = list(dict.fromkeys(e.arch for e in self.front(archive)))[:N_BEST]
            self.journal.remeasuring(generation, archs)
        if not archs:
            return list(archive)
        missing = {d: [a for a in archs if not self._answered(d, a)] for d in self.sources}
        sent = send(self.sources, missing, campaign=f"front after generation {generation}")
        receive(self.sources, sent, self.journal, "again")
        for device in self.sources:
            for arch in archs:
                said = self.journal.measured("again", device, arch)
                self.learning.hear(device, arch, said[self._n_heard[device, arch]])
                self._n_heard[device, arch] += 1
        return self.learning.judge_anew(self.sources, archive)

    def _answered(self, device: str, arch: Arch) -> bool:
        """Whether the journal holds an answer that was not heard yet: then it belongs here."""
        return len(self.journal.measured("again", device, arch)) > self._n_heard[device, arch]
