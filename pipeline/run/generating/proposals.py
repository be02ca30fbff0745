"""What the generator proposes for a limit, and what repair makes of it. No device is asked.

The generator is asked for the middle of a window just below the limit; repair finds its most
probable architecture in there that keeps everything else. Where there is none, the next window lies
below.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from latency_tables.arch import Arch
from latency_tables.cost_table import Genes
from latency_tables.errors import LimitError
from latency_tables.predictor.features import LATENCY_COLUMN
from pipeline.generator.repair import Accept, Repaired, Repairer, Window
from pipeline.run.generating.latency import DeviceLatency, additive_table
from pipeline.run.generating.limits import (
    Ask,
    amount,
    knows,
    levels_range,
    make_ask,
    ranges,
    require_possible,
    require_some_dearer,
)
from pipeline.search.limits import Limit

if TYPE_CHECKING:
    from pipeline.generator.file import LoadedGenerator
    from pipeline.run.context import RunContext

MAX_WINDOWS = 8
"""Windows below the limit that are looked at, one below the other, before everything is."""
N_TRANSLATED = 128
"""Architectures of a window whose median says what it means in another cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposed:
    """What the generator says for one window, and what repair made of it.

    ``target`` is in the unit of the generator's levels; ``found`` comes the most probable first.
    """

    ask: Ask
    target: float
    proposal: Arch
    window: Window
    found: tuple[Repaired, ...]
    proposal_s: float
    repair_s: float


class Proposals:
    """Asks the generator, and repairs.

    Args:
        context: of a trained run.
        generator: trained in it.
        latency: of the device that is asked for; None where none is.
        tolerance: width of a window, as a share of its upper end.
        candidates: how many networks each time, at most.
    """

    def __init__(
        self,
        context: RunContext,
        generator: LoadedGenerator,
        latency: DeviceLatency | None,
        *,
        tolerance: float,
        candidates: int = 1,
    ) -> None:
        self.context, self.loaded, self.latency = context, generator, latency
        self.tolerance, self.candidates = tolerance, candidates
        self.table = context.cost_table if latency is None else latency.table
        self.repairer = Repairer(context.space, generator.generator, self.table)

    def ask(self, limits: Sequence[Limit]) -> Ask:
        """What these limits ask for. Raises LimitError where no network keeps one of them."""
        for limit in limits:
            require_possible(limit, self.table, self.loaded, self.context.space.name)
        ask = make_ask(limits, self.loaded, self._share)
        require_some_dearer(ask.leading, self.table, self.loaded, self.context.space.name)
        return ask

    def _share(self, limit: Limit) -> float:
        return self.repairer.sampler(limit.metric).probability(high=limit.bound)

    def propose(self, ask: Ask) -> Proposed:
        """The most probable networks as near below the leading limit as there are any.

        Raises:
            LimitError: there are none.
        """
        column, bound = ask.leading.metric, ask.latency_bound
        at_most: dict[str, float] = {limit.metric: limit.bound for limit in ask.further}
        proposal_s, began = 0.0, time.perf_counter()
        accept: Accept | None = None
        if self.latency is not None and bound is not None:
            accept = partial(self.latency.keeps, bound)
        for window in self._windows(column, self._aim(ask)):
            try:
                target = self._target(ask, window)
                asked = time.perf_counter()
                level = self.loaded.level(target, clamp=True)
                proposal = self.loaded.generator.argmax(level)
                proposal_s += time.perf_counter() - asked
                found = self.repairer.repair(
                    level, window, proposal=proposal, at_most=at_most, accept=accept,
                    n=self.candidates, seed=self.context.config.seed,
                )  # fmt: skip
            except LimitError:
                continue
            spent = time.perf_counter() - began
            return Proposed(
                ask=ask, target=target, proposal=proposal, window=window, found=tuple(found),
                proposal_s=proposal_s, repair_s=spent - proposal_s,
            )  # fmt: skip
        limits = " and ".join(str(limit) for limit in ask.limits)
        reach = ranges(ask.leading, self.table, self.loaded, self.context.space.name)
        raise LimitError(
            f"no network was found that keeps {limits}: {reach}",
            hint="higher limits, or see 'hilnas space profile'",
        )

    def _windows(self, column: str, high: float) -> Iterator[Window]:
        """One below the other from ``high`` downwards, at last all that is below it."""
        lowest = self.table.minimum(column)[0]
        top = high
        for _ in range(MAX_WINDOWS):
            low = top * (1 - self.tolerance)
            if top < lowest:
                break
            yield Window(column=column, low=low, high=top)
            top = low
        if high >= lowest:
            yield Window(column=column, low=lowest, high=high)

    def _aim(self, ask: Ask) -> float:
        """Upper end of the first window: the limit, less what the additive table misses there.

        Where the model says more than the sum over blocks, most of the window would fall out.
        """
        bound = ask.leading.bound
        if ask.leading.metric != LATENCY_COLUMN or self.latency is None:
            return bound
        if self.latency.model.hyper.additive:
            return bound
        genes = self._drawn(
            Window(column=LATENCY_COLUMN, low=bound * (1 - self.tolerance), high=bound)
        )
        if genes is None:
            return bound
        summed = self.table.column(LATENCY_COLUMN, genes)
        return min(bound, bound / float(np.median(self.latency.model.predict_ms(genes) / summed)))

    def _target(self, ask: Ask, window: Window) -> float:
        """What to ask the generator for: the middle of the window, in the cost that it knows.

        For another cost it is the median over architectures of the window.
        """
        if knows(self.loaded, ask.leading):
            return (window.low + window.high) / 2
        genes = self._drawn(window)
        if genes is None:
            raise LimitError("the window is empty")
        table = self.table
        if self.loaded.device is not None:
            table = additive_table(self.context, self.loaded.device)
        return float(np.median(table.column(self.loaded.column, genes)))

    def _drawn(self, window: Window) -> Genes | None:
        """Architectures of a window, each equally likely; None where it is empty."""
        rng = np.random.default_rng(self.context.config.seed)
        try:
            return self.repairer.sampler(window.column).sample(
                rng, window.low, window.high, N_TRANSLATED
            )
        except LimitError:
            return None

    def describe(self, proposed: Proposed) -> str:
        """What the generator was asked for, in words."""
        low, high = self.loaded.targets[0], self.loaded.targets[-1]
        asked = amount(self.loaded, proposed.target)
        if not low <= proposed.target <= high:
            end = amount(self.loaded, low if proposed.target < low else high)
            return f"asked for {end}, the end of its levels ({levels_range(self.loaded)})"
        return f"asked for {asked}"
