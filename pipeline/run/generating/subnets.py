"""From limits to a network: proposed, predicted, scored, measured.

Nothing is searched and nothing is trained. A network that turns out too slow on the board makes
room for one from a smaller window.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from latency_tables.arch import Arch
from latency_tables.errors import BudgetMissedError, DeviceError, LimitError
from latency_tables.estimate import Estimate
from latency_tables.predictor.features import LATENCY_COLUMN
from latency_tables.records import Measurement
from pipeline.export.manifest import AccuracyEntry
from pipeline.generator.repair import Repaired
from pipeline.run.generating.latency import DeviceLatency
from pipeline.run.generating.limits import Ask
from pipeline.run.generating.proposals import Proposals, Proposed
from pipeline.search.limits import Limit
from pipeline.supernet.scoring import evaluate, materialise, recalibrate
from pipeline.training.precision import Precision

if TYPE_CHECKING:
    from pipeline.generator.file import LoadedGenerator
    from pipeline.run.context import RunContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """One network that was measured, or would have been."""

    arch: Arch
    predicted: Estimate | None
    measured: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subnet:
    """A network for a limit, ready to be exported.

    ``tries`` holds every network that was considered on the way, this one last. ``record`` is the
    measurement behind ``measured``. Times are in seconds.
    """

    ask: Ask
    proposed: Proposed
    chosen: Repaired
    network: nn.Module
    accuracy: AccuracyEntry
    predicted: Estimate | None
    measured: Estimate | None
    record: Measurement | None
    tries: tuple[Try, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)


class Subnets:
    """Makes networks for limits.

    Args:
        context: of a trained run.
        generator: trained in it.
        latency: of the device that is asked for; None where none is.
        tolerance: width of a window, as a share of its upper end.
        candidates: of the most probable networks so many are scored, and the best one is taken.
        tries: networks that are measured for one limit, at most.
        check: measure on the device: always (True), where it can be reached (None), or never.
    """

    def __init__(
        self,
        context: RunContext,
        generator: LoadedGenerator,
        latency: DeviceLatency | None,
        *,
        tolerance: float,
        candidates: int = 1,
        tries: int = 3,
        check: bool | None = None,
    ) -> None:
        self.context, self.loaded, self.latency = context, generator, latency
        self.tolerance, self.tries, self.check = tolerance, tries, check
        self.proposals = Proposals(
            context, generator, latency, tolerance=tolerance, candidates=candidates
        )
        self.table = self.proposals.table
        self._measured: dict[Arch, tuple[Estimate, Measurement]] = {}

    def make(self, limits: Sequence[Limit]) -> Subnet:
        """A network that keeps every limit.

        Raises:
            LimitError: no network does, or none is predicted to; names the ranges.
            BudgetMissedError: none of those that were measured does.
            DeviceError: the device failed, and measuring was asked for.
        """
        seconds = dict.fromkeys(("proposal", "repair", "scoring", "measuring"), 0.0)
        ask = self.proposals.ask(limits)
        bound, aimed, tries = ask.latency_bound, ask, list[Try]()
        while True:
            proposed = self.proposals.propose(aimed)
            seconds["proposal"] += proposed.proposal_s
            seconds["repair"] += proposed.repair_s
            began = time.perf_counter()
            chosen, network, accuracy = self._scored(proposed.found)
            seconds["scoring"] += time.perf_counter() - began
            predicted = None if self.latency is None else self.latency.predict([chosen.arch])[0]
            began = time.perf_counter()
            measured, record = self._measure(chosen.arch)
            seconds["measuring"] += time.perf_counter() - began
            tries.append(Try(arch=chosen.arch, predicted=predicted, measured=measured))
            if measured is None or bound is None or measured.keeps(bound):
                return Subnet(
                    ask=ask, proposed=proposed, chosen=chosen, network=network, accuracy=accuracy,
                    predicted=predicted, measured=measured, record=record, tries=tuple(tries),
                    seconds=seconds,
                )  # fmt: skip
            aimed = self._smaller(ask, aimed, measured, tries)

    def _smaller(self, ask: Ask, aimed: Ask, measured: Estimate, tries: list[Try]) -> Ask:
        """What to aim at after a network broke the limit on the board, by how much it did."""
        bound, now = ask.latency_bound, aimed.latency_bound
        if bound is None or now is None:
            return aimed
        where = self.latency.name if self.latency else ""
        said = f"{measured.latency_ms:.4g} ms measured on {where}, the limit is {bound:.4g} ms"
        lower = min(now * bound / measured.latency_ms, now * (1 - self.tolerance / 2))
        lowest = self.table.minimum(LATENCY_COLUMN)[0]
        if len(tries) >= self.tries or lower < lowest:
            best = min(t.measured.latency_ms for t in tries if t.measured is not None)
            raise BudgetMissedError(
                f"none of {len(tries)} networks keeps {bound:.4g} ms on {where}: the fastest took "
                f"{best:.4g} ms, although they were predicted to be faster",
                hint=f"a higher limit, more --tries, or hilnas tables build "
                f"{self.context.folder.path} --more 20",
            )
        self.context.reporter.say(f"  {said}; next: a network of {lower:.4g} ms at most")
        return aimed.tightened(lower)

    def _scored(self, found: tuple[Repaired, ...]) -> tuple[Repaired, nn.Module, AccuracyEntry]:
        """The most accurate of the candidates with inherited weights, cut out and calibrated."""
        best: tuple[Repaired, nn.Module, AccuracyEntry] | None = None
        for one in found:
            dataset = self.context.dataset_of(one.arch)
            network = materialise(self.context.space, one.arch, self.context.supernet)
            recalibrate(network, self.context.eval_batches("calibration", dataset))
            batches = self.context.eval_batches("search-validation", dataset)
            accuracy, _, n_images = evaluate(network, batches, Precision())
            if best is None or accuracy > best[2].value:
                best = one, network, AccuracyEntry(value=accuracy, n_images=n_images)
        if best is None:
            raise LimitError("no network was found")
        return best

    def _measure(self, arch: Arch) -> tuple[Estimate | None, Measurement | None]:
        """What the device says; nothing where it is not to be asked, or does not answer."""
        if self.latency is None or self.check is False:
            return None, None
        if arch not in self._measured:
            try:
                self._measured[arch] = self.latency.measure(arch)
            except DeviceError as error:
                if self.check or error.blames != "board":
                    raise
                self.check = False  # the next network of a sweep would wait for it again
                self.context.reporter.warn(
                    f"{error.message}: latencies are predicted, not measured"
                )
                return None, None
        return self._measured[arch]
