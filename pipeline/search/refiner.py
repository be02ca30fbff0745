"""Active refinement: after a generation, measure where that decides most, and learn from it.

The chosen candidates are measured on the devices, the latency model of each device is fitted anew
with what was measured so far, and the whole archive is judged again: by the measured latency where
there is one, by the new model elsewhere. So candidates may turn out to keep or to break a limit
after they were told, and the next generation has other parents.

Everything follows from the archive and the journal: the choice is journalled before anything is
measured, the answers before anybody hears of them, and a replayed generation sees only what was
measured up to it. A resumed search therefore learns the same at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from latency_tables.arch import Arch
from latency_tables.estimate import Estimate
from pipeline.search.evaluation import Evaluation
from pipeline.search.evaluator import LatencySource
from pipeline.search.journal import Journal
from pipeline.search.learning import BackgroundSource, Learning, receive, send
from pipeline.search.refinement import worth_measuring

SHARE = 8
"""A generation may spend this part of what is left of the budget, rounded up: the first ones teach
most about the device, but winners are born in the last ones, however many there are."""


@dataclass(slots=True, kw_only=True)
class Refiner:
    """Spends a budget of measurements during a search.

    Args:
        sources: measure on each device; all of them work at the same time.
        learning: of the search.
        journal: of the search.
        budget: networks that may be measured on each device, failed ones included.
    """

    sources: Mapping[str, BackgroundSource]
    learning: Learning
    journal: Journal
    budget: int

    def refine(self, generation: int, archive: Sequence[Evaluation]) -> list[Evaluation]:
        """Measure, learn, and give the archive as it is judged now; the same one where nothing is.

        Raises:
            DeviceError: a board is gone; the same search goes on with what was measured.
        """
        before = self._asked(generation)
        wanted = self.journal.refinement(generation)
        if wanted is None:
            left = {device: self.budget - len(before[device]) for device in self.sources}
            if not any(n > 0 for n in left.values()):
                return list(archive)
            wanted = self._choose(archive, before, left)
            self.journal.refining(generation, wanted)
        if not any(wanted.values()):
            return list(archive)
        missing = {
            device: [a for a in asked if not self.journal.measured("search", device, a)]
            for device, asked in wanted.items()
        }
        sent = send(self.sources, missing, campaign=f"refinement {generation}")
        receive(self.sources, sent, self.journal, "search")
        for device, asked in wanted.items():
            for arch in asked:
                said = self.journal.measured("search", device, arch)
                self.learning.hear(device, arch, said[-1])
        return self.learning.judge_anew([d for d in wanted if wanted[d]], archive)

    def _choose(
        self,
        archive: Sequence[Evaluation],
        before: Mapping[str, Sequence[Arch]],
        left: Mapping[str, int],
    ) -> dict[str, dict[Arch, Estimate]]:
        limits = self.learning.evaluator.limits
        return {
            device: {
                wanted.arch: wanted.predicted
                for wanted in worth_measuring(
                    archive,
                    limits,
                    device,
                    n=-(-left[device] // SHARE),
                    exclude=before[device],
                )
            }
            for device in self.sources
        }

    def _asked(self, generation: int) -> dict[str, list[Arch]]:
        """By device, what refinements before that of ``generation`` asked for, in order."""
        return {
            device: [
                arch
                for g, wanted in sorted(self.journal.refinements.items())
                if g < generation
                for arch in wanted.get(device, {})
            ]
            for device in self.sources
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Refined:
    """How a device's predictions did on the networks that were measured during the search.

    ``table_mape`` is the mean absolute relative error of the model fitted on the table alone,
    ``mape`` that of the prediction each network had when it was chosen. Neither model had seen the
    networks that it is held against. They were chosen for being hard to call, so both errors are
    those of a selection. ``n_failed`` networks gave no latency.
    """

    n: int
    n_failed: int
    table_mape: float | None
    mape: float | None

    def __str__(self) -> str:
        failed = f", {self.n_failed} gave no latency" if self.n_failed else ""
        if self.table_mape is None or self.mape is None:
            return f"no network was measured during the search{failed}"
        return (
            f"{self.n} networks measured during the search{failed}; predictions of them were off "
            f"by {self.mape:.1%} on average, without what was learnt on the way by "
            f"{self.table_mape:.1%}"
        )


def refined(journal: Journal, device: str, table: LatencySource) -> Refined:
    """What refinements of a journal say about a device; ``table`` predicts by its table alone."""
    pairs: dict[Arch, tuple[Estimate, Estimate]] = {}
    n_asked = 0
    for _, wanted in sorted(journal.refinements.items()):
        for arch, predicted in wanted.get(device, {}).items():
            n_asked += 1
            said = journal.measured("search", device, arch)
            if said and isinstance(said[-1], Estimate):
                pairs[arch] = predicted, said[-1]
    first = [e for e in table(list(pairs)) if isinstance(e, Estimate)] if pairs else []
    return Refined(
        n=len(pairs),
        n_failed=n_asked - len(pairs),
        table_mape=_mape(first, [m for _, m in pairs.values()]),
        mape=_mape([p for p, _ in pairs.values()], [m for _, m in pairs.values()]),
    )


def _mape(predicted: Sequence[Estimate], measured: Sequence[Estimate]) -> float | None:
    if not measured or len(predicted) != len(measured):
        return None
    errors = [
        abs(p.latency_ms / m.latency_ms - 1.0) for p, m in zip(predicted, measured, strict=True)
    ]
    return sum(errors) / len(errors)
