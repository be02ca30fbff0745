"""The levels of cost that a strategy draws from, as its options name them."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from latency_tables.cost_table import CostTable
from latency_tables.errors import SpaceError, UsageError
from latency_tables.levels import cost_levels
from latency_tables.predictor.features import LATENCY_COLUMN
from latency_tables.sampler import make_sampler
from latency_tables.sampler_base import CostSampler
from pipeline.spaces.base import Space
from pipeline.strategies import latency_device

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostLevels:
    """K ranges of one cost, [low, high] each, and the cost in the middle of each.

    ``cost`` is what the options call it, ``column`` where ``table`` has it.
    """

    cost: str
    column: str
    unit: str
    table: CostTable
    sampler: CostSampler
    ranges: tuple[tuple[float, float], ...]
    targets: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.ranges)


def levels_of(
    space: Space,
    cost: str,
    *,
    n_levels: int = 8,
    targets: Sequence[float] | None = None,
    width: float | None = None,
    latency: CostTable | None = None,
) -> CostLevels:
    """Levels of equal width between the 1 % and the 99 % quantile, or around given targets.

    Of the former, those that hold no network are left out, and said, unless they are most of them.

    Args:
        cost: a column of the space's cost table, or ``latency:DEVICE``.
        n_levels: K, where no targets are given.
        targets: middle of each level, rising.
        width: of a level around its target; the least distance of two targets where not given.
        latency: the cost table with the device's latencies.

    Raises:
        UsageError: there is no such cost, no network near a target, or none in most of the levels;
            names what there is.

    >>> from pipeline.spaces import load_space
    >>> space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    >>> levels = levels_of(space, "macs", n_levels=4)
    >>> len(levels), levels.unit
    (4, 'MAC')
    """
    table, column = _table_of(space, cost, latency)
    sampler = make_sampler(table, column, approximate=True)
    if targets is None:
        try:
            found = cost_levels(sampler, n_levels)
        except SpaceError as error:
            raise UsageError(f"train.options.cost = {cost!r} has no levels: {error}") from error
        held = [level for level in found if level.probability > 0]
        if len(found) / 2 <= len(held) < len(found):  # costs of a small space have gaps
            logger.warning(
                "%d of %d levels of %s hold no network and are left out",
                len(found) - len(held), len(found), cost,
            )  # fmt: skip
            found = held
        ranges = [(level.low, level.high) for level in found]
        middles = [(low + high) / 2 for low, high in ranges]
    else:
        ranges, middles = _around(targets, width), [float(target) for target in targets]
    for low, high in ranges:
        if not sampler.count(low, high):
            raise UsageError(
                f"no network of this space has {cost} between {low:g} and {high:g}; its networks "
                f"have {table.minimum(column)[0]:g} to {table.maximum(column)[0]:g}",
                hint="fewer train.options.levels, or other train.options.targets",
            )
    unit = next((c.unit for c in table.columns if c.name == column), "")
    return CostLevels(
        cost=cost,
        column=column,
        unit=unit,
        table=table,
        sampler=sampler,
        ranges=tuple(ranges),
        targets=tuple(middles),
    )


def _table_of(space: Space, cost: str, latency: CostTable | None) -> tuple[CostTable, str]:
    device = latency_device({"cost": cost})
    if device is not None:
        if latency is None:
            raise UsageError(
                f"train.options.cost = {cost!r} needs the latency table of that device, which only "
                "a run has",
                hint="hilnas run FILE",
            )
        return latency, LATENCY_COLUMN
    table = space.cost_table()
    if cost not in table.column_names():
        raise UsageError(
            f"train.options.cost = {cost!r}: the costs of this space are "
            f"{', '.join(table.column_names())}, and latency:DEVICE of a device of the run"
        )
    return table, cost


def _around(targets: Sequence[float], width: float | None) -> list[tuple[float, float]]:
    """Ranges around the targets. Raises UsageError unless these rise and a width is known."""
    gaps = [b - a for a, b in itertools.pairwise(targets)]
    if any(gap <= 0 for gap in gaps):
        raise UsageError(f"train.options.targets = {list(targets)} must rise from one to the next")
    if width is None and not gaps:
        raise UsageError(
            "a single target says nothing about the width of its level",
            hint="train.options.width, or more train.options.targets",
        )
    half = (min(gaps) if width is None else width) / 2
    return [(t - half, math.nextafter(t + half, -math.inf)) for t in targets]
