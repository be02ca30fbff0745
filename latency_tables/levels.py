"""Levels of a cost: equal steps between the tails of a space, for drawing evenly over costs.

Uniform genomes crowd around the middle of the costs and hardly ever reach the ends. Who wants all
sizes served draws a level first, each equally often or by its own weights, then an architecture of
that level from a conditional sampler.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from latency_tables.errors import SpaceError
from latency_tables.sampler_base import CostSampler

TAIL = 0.01
"""Share of the networks left out at either end: their costs lie far apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Costs in [low, high], both inclusive, and the share of all genomes that have one."""

    low: float
    high: float
    probability: float


def split_range(low: float, high: float, n: int) -> list[tuple[float, float]]:
    """``n`` ranges of equal width, [low, high) in all, as inclusive ends that do not overlap.

    >>> split_range(0.0, 2.0, 2)
    [(0.0, 0.9999999999999999), (1.0, 1.9999999999999998)]

    Raises:
        SpaceError: the range is empty, or n is not positive.
    """
    if not (low < high and n >= 1):
        raise SpaceError(
            f"{n} levels from {low:g} to {high:g}: at least 1, and the lower end first"
        )
    edges = np.linspace(low, high, n + 1).tolist()
    return [(a, math.nextafter(b, a)) for a, b in itertools.pairwise(edges)]


def cost_levels(sampler: CostSampler, n: int, *, tail: float = TAIL) -> list[Level]:
    """``n`` levels of equal width between the ``tail`` and the 1 - ``tail`` quantile of a cost.

    The probabilities are exact where ``sampler.counts_are_exact``. A level may be empty where
    costs have gaps: its probability is 0.

    Raises:
        SpaceError: all networks between the tails cost the same, or n is not positive.

    >>> from latency_tables.arch import Decision
    >>> from latency_tables.cost_table import Column, CostTable, Factor
    >>> from latency_tables.sampler import make_sampler
    >>> table = CostTable(
    ...     [Decision(label="a", choices=(0, 1, 2)), Decision(label="b", choices=(0, 1, 2))],
    ...     [Column(name="macs", unit="MAC")],
    ...     [Factor(name=x, labels=(x,), values=np.arange(3.0)[:, None]) for x in "ab"],
    ... )
    >>> found = cost_levels(make_sampler(table, "macs"), 2)
    >>> [(round(level.low), round(level.high), round(9 * level.probability)) for level in found]
    [(0, 2, 3), (2, 4, 6)]
    """
    first, last = sampler.quantiles([tail, 1 - tail]).tolist()
    ranges = split_range(first, last, n)
    ranges[-1] = (ranges[-1][0], last)  # the quantile itself is a cost that exists
    return [
        Level(low=low, high=high, probability=sampler.probability(low, high))
        for low, high in ranges
    ]
