"""Search in the loop: every candidate is measured on the boards while the host scores it.

A generation's candidates go to the boards in the background; the host scores their accuracy
meanwhile; at the end of the generation measured latencies take the place of the predicted ones,
and the searcher is told of those. Answers are journalled in the order asked, so a resumed search
tells the same.

With a budget, each device measures so many networks and no more: those that come first in the order
asked. After every generation its latency model learns from what was measured, and answers for all
that was not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from latency_tables.arch import Arch
from pipeline.search.evaluation import Candidate, Evaluation
from pipeline.search.evaluator import Evaluator
from pipeline.search.journal import Journal
from pipeline.search.learning import BackgroundSource, Errand, Learning, receive, send

__all__ = ["BackgroundSource", "InLoop"]


@dataclass(slots=True, kw_only=True)
class InLoop:
    """Measures the candidates of each generation; ``evaluator`` learns what was measured.

    Args:
        sources: measure on each device; all of them work at the same time.
        evaluator: screened the candidates.
        journal: of the search.
        learning: of the search; by default one whose models learn nothing.
        budget: networks that may be measured on each device, failed ones included; None: all.
    """

    sources: Mapping[str, BackgroundSource]
    evaluator: Evaluator
    journal: Journal
    learning: Learning | None = None
    budget: int | None = None
    _paid: dict[str, dict[Arch, None]] = field(default_factory=dict)
    _asked: dict[str, list[Arch]] = field(default_factory=dict)
    _sent: list[Errand] = field(default_factory=list)
    _learnt: list[str] = field(default_factory=list)

    def begin(self, generation: int, candidates: Sequence[Candidate]) -> None:
        """Send what the budget allows and the journal holds no answer about."""
        feasible = dict.fromkeys(c.arch for c in candidates if c.feasible)
        self._asked = {device: self._pay(device, feasible) for device in self.sources}
        missing = {
            device: [arch for arch in paid if not self.journal.measured("search", device, arch)]
            for device, paid in self._asked.items()
        }
        self._sent = send(self.sources, missing, campaign=f"generation {generation}")

    def finish(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Wait for the boards and hold what they measured against the limits.

        A candidate that a board failed to measure through its own fault keeps its prediction.

        Raises:
            DeviceError: a board is gone; the same search goes on with what was measured.
        """
        learning = self._learning()
        receive(self.sources, self._sent, self.journal, "search")
        for device, paid in self._asked.items():
            for arch in paid:
                learning.hear(device, arch, self.journal.measured("search", device, arch)[-1])
        self._learnt = [device for device, paid in self._asked.items() if paid]
        self._asked, self._sent = {}, []
        measured = [self.evaluator.rejudge(c, learning.answers(c.arch)) for c in candidates]
        self.evaluator.adopt(measured)
        return measured

    def refine(self, generation: int, archive: Sequence[Evaluation]) -> list[Evaluation]:
        """Where a budget makes models answer for some candidates: what they have learnt."""
        if self.budget is None or not self._learnt:
            return list(archive)
        return self._learning().judge_anew(self._learnt, archive)

    def _pay(self, device: str, archs: Iterable[Arch]) -> list[Arch]:
        """Those of ``archs`` that the device is to measure, and was never asked about before."""
        paid = self._paid.setdefault(device, {})
        new = [arch for arch in archs if arch not in paid]
        if self.budget is not None:
            new = new[: self.budget - len(paid)]
        paid.update(dict.fromkeys(new))
        return new

    def _learning(self) -> Learning:
        if self.learning is None:
            self.learning = Learning(refit={}, evaluator=self.evaluator)
        return self.learning
