"""Cost tables that the tests of the generator share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from latency_tables.arch import Decision
from latency_tables.cost_table import Column, CostTable, Factor
from latency_tables.predictor import LatencyModel
from latency_tables.sampler import make_sampler
from pipeline.search.operators import random_genes, sizes_of
from pipeline.spaces import load_space
from pipeline.spaces.base import Space


def blocks(costs: Sequence[Sequence[float]]) -> CostTable:
    """Decision i has one choice for each of ``costs[i]``; costs add up, in the column macs."""
    decisions = [
        Decision(label=f"block{i}", choices=tuple(range(len(c)))) for i, c in enumerate(costs)
    ]
    factors = [
        Factor(name=d.label, labels=(d.label,), values=np.array(c)[:, None])
        for d, c in zip(decisions, costs, strict=True)
    ]
    return CostTable(decisions, [Column(name="macs", unit="MAC")], factors)


@cache
def space_of(name: str, preset: str, px: int) -> Space:
    return load_space(name, preset=preset, input_shape=(3, px, px), n_classes=10)


def with_latency(table: CostTable, seed: int = 0) -> CostTable:
    """The table with the additive latency of a model fitted on 60 made-up measurements: every
    factor has its own time per MAC, and there are 2 % of noise."""
    rng = np.random.default_rng(seed)
    genes = random_genes(rng, sizes_of(table.decisions), 60)
    macs = table.factor_values(genes)[:, :, [c.name for c in table.columns].index("macs")]
    time_ms = 1.0 + 10.0 * macs @ rng.uniform(0.5, 2.0, len(table.factors)) / macs.sum(1).mean()
    latency = time_ms * rng.normal(1.0, 0.02, len(genes))
    archs = [table.arch(g) for g in genes]
    return LatencyModel.fit(table, archs, latency, forms=("table",)).with_latency_column(table)


def even_targets(table: CostTable, column: str, n: int = 8) -> list[float]:
    """Costs in the middle of n equal ranges between the 1 % and the 99 % quantile."""
    low, high = make_sampler(table, column).quantiles([0.01, 0.99]).tolist()
    width = (high - low) / n
    return [low + (i + 0.5) * width for i in range(n)]
