"""Which networks to draw where random ones hardly ever keep the limits.

A network that keeps K limits b_k on costs c_k that add up also keeps

    load = Σ_k c_k / b_k ≤ K

so drawing uniformly under a bound on one of the costs, or on the load, and rejecting what breaks
a limit gives uniform draws of what keeps them all. The set with the fewest networks wastes the
fewest draws. Where limits pull in opposite directions (few MACs, few parameters) that is the
load's: either limit alone is kept by networks that break the other one by far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latency_tables.cost_table import PEAK_MEMORY, PEAK_PARTS, Column, CostTable, Factor
from pipeline.search.limits import Limit
from pipeline.search.sources import ExactProposer, exact_proposer

RARE = 0.02
"""Share of random networks that keep all limits, below which the smallest set is looked for."""

LOAD = "load"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounded:
    """A limit and a table that has its metric as a column, exact or an additive prediction."""

    limit: Limit
    table: CostTable

    def kept_by(self, genes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of N genomes (N, n_decisions) keep the limit: (N,)."""
        kept: NDArray[np.bool_] = self.table.column(self.limit.metric, genes) <= self.limit.bound
        return kept

    def proposer(self) -> ExactProposer:
        """Draws what keeps this limit."""
        return exact_proposer(self.table, self.limit.metric, self.limit.bound)


def make_proposer(bounded: Sequence[Bounded], genes: NDArray[np.int64]) -> ExactProposer | None:
    """What draws from the smallest set that holds everything within all limits.

    Where more than ``RARE`` of the random ``genes`` (N, n_decisions) keep them all, any set will
    do: then that of the limit that the fewest keep. None where nothing is limited.
    """
    if not bounded:
        return None
    kept = np.stack([b.kept_by(genes) for b in bounded])  # (n_limits, N)
    if len(bounded) == 1 or kept.all(axis=0).mean() > RARE:
        return bounded[int(kept.mean(axis=1).argmin())].proposer()
    proposers = [b.proposer() for b in bounded]
    adding = [b for b in bounded if _scoped(b) is not None]
    if len(adding) > 1:
        proposers.append(exact_proposer(load_table(adding), LOAD, float(len(adding))))
    return min(proposers, key=lambda p: p.share)


def load_table(bounded: Sequence[Bounded]) -> CostTable:
    """A table with the one column ``load``: each cost as a share of its limit, summed.

    >>> from latency_tables.arch import Decision
    >>> kernel = Decision(label="kernel", choices=(3, 5))
    >>> costs = np.array([[9.0, 90.0], [25.0, 50.0]])
    >>> table = CostTable(
    ...     [kernel],
    ...     [Column(name="macs", unit="MAC"), Column(name="params", unit="1")],
    ...     [Factor(name="block", labels=("kernel",), values=costs)],
    ... )
    >>> bounds = [("macs", 10.0), ("params", 100.0)]
    >>> limits = [Bounded(limit=Limit(metric=m, bound=b), table=table) for m, b in bounds]
    >>> load_table(limits).column(LOAD, [[0], [1]]).round(2).tolist()
    [1.8, 3.0]
    """
    values: dict[tuple[str, ...], NDArray[np.float64]] = {}
    for b in bounded:
        for labels, costs in _scoped(b) or ():
            share = costs / b.limit.bound
            values[labels] = values[labels] + share if labels in values else share
    factors = [
        Factor(name=" ".join(labels) or "fixed", labels=labels, values=v[..., None])
        for labels, v in values.items()
    ]
    return CostTable(bounded[0].table.decisions, [Column(name=LOAD, unit="1")], factors)


def _scoped(bounded: Bounded) -> list[tuple[tuple[str, ...], NDArray[np.float64]]] | None:
    """(labels, values) of the factors of a cost that adds up; of memory, the weights' part, which
    is a lower bound. None for other costs."""
    table = bounded.table
    name: str = bounded.limit.metric
    known = {c.name: c for c in table.columns}
    if name == PEAK_MEMORY and name not in known:
        name = PEAK_PARTS[0]
    if name not in known or known[name].reduce != "sum":
        return None
    return [(tuple(labels), values) for labels, values in table.scoped(name)]
