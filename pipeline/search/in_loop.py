"""Search in the loop: every candidate is measured on the boards while the host scores it.

A generation's candidates go to the boards in the background; the host scores their accuracy
meanwhile; at the end of the generation measured latencies take the place of the predicted ones,
and the searcher is told of those. Answers are journalled in the order asked, so a resumed search
tells the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from latency_tables.arch import Arch
from latency_tables.errors import DeviceError
from latency_tables.estimate import Estimate
from pipeline.search.evaluation import Candidate
from pipeline.search.evaluator import Evaluator, Latencies, is_answer
from pipeline.search.journal import Journal


class BackgroundSource(Protocol):
    """Measures on one device while the caller goes on."""

    def submit(self, archs: Sequence[Arch], *, campaign: str) -> object:
        """Hand in architectures; the same ones in the same campaign are measured once."""
        ...

    def collect(self, ticket: object) -> Latencies:
        """Wait for answers, in the order asked. Raises DeviceError where the device is gone."""
        ...


@dataclass(slots=True, kw_only=True)
class InLoop:
    """Measures the candidates of each generation; ``evaluator`` learns what was measured."""

    sources: Mapping[str, BackgroundSource]
    evaluator: Evaluator
    journal: Journal
    _asked: dict[str, tuple[list[Arch], object]] = field(default_factory=dict)

    def begin(self, generation: int, candidates: Sequence[Candidate]) -> None:
        """Send those candidates that the journal holds no answer about."""
        feasible = dict.fromkeys(c.arch for c in candidates if c.feasible)
        for device, source in self.sources.items():
            archs = [arch for arch in feasible if not self.journal.measured("search", device, arch)]
            ticket = source.submit(archs, campaign=f"generation {generation}") if archs else None
            self._asked[device] = archs, ticket

    def finish(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Wait for the boards and hold what they measured against the limits.

        A candidate that a board failed to measure through its own fault keeps its prediction.

        Raises:
            DeviceError: a board is gone; the same search goes on with what was measured.
        """
        for device, (archs, ticket) in self._asked.items():
            if archs:
                answers = self.sources[device].collect(ticket)
                for arch, answer in zip(archs, answers, strict=True):
                    self.journal.measurement("search", device, arch, answer)
        self._asked.clear()
        self.journal.sync()
        measured = [self.evaluator.rejudge(c, self._answers(c)) for c in candidates]
        self.evaluator.adopt(measured)
        return measured

    def _answers(self, candidate: Candidate) -> dict[str, Estimate | DeviceError]:
        """The last word of each device about a candidate, where it is about the candidate."""
        found = {}
        for device in self.sources:
            said = self.journal.measured("search", device, candidate.arch)
            if said and is_answer(said[-1]):
                found[device] = said[-1]
        return found
