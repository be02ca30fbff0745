"""Synthetic latencies whose truth is known, and networks to fit and to ask about."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latency_tables.cost_table import Column, CostTable, Factor
from latency_tables.predictor import LatencyModel
from latency_tables.predictor.features import Features
from latency_tables.predictor.problem import Problem, Training

Array = NDArray[np.float64]
Genes = NDArray[np.int64]


def draw(table: CostTable, n: int, seed: int = 0) -> Genes:
    """Genes (N, n_decisions) without repetition where the space allows it."""
    rng = np.random.default_rng(seed)
    sizes = [len(d.choices) for d in table.decisions]
    return np.unique(rng.integers(0, sizes, (2 * n, len(sizes))), axis=0)[rng.permutation(n)]


def additive(table: CostTable, genes: Genes, seed: int = 1) -> Array:
    """Costs plus an effect of each choice that costs do not explain: additive, in ms."""
    rng = np.random.default_rng(seed)
    effects = rng.normal(0, 0.15, (len(table.decisions), 3))
    own = effects[np.arange(genes.shape[1]), genes].sum(axis=1)
    return 4.0 + table.batch(genes)[:, :3] @ [0.2, 0.1, 0.3] + own


def interacting(genes: Genes) -> Array:
    """Pairs of neighbours whose choices multiply: no sum over decisions, in ms."""
    return 2.0 + 0.25 * (genes[:, ::2] * genes[:, 1::2]).sum(axis=1) + 0.05 * genes.sum(axis=1)


def noisy(latency: Array, noise: float, seed: int = 2) -> Array:
    """Latencies with relative noise."""
    return latency * np.exp(np.random.default_rng(seed).normal(0, noise, len(latency)))


def fit(table: CostTable, genes: Genes, latency: Any, **options: Any) -> LatencyModel:
    return LatencyModel.fit(table, [table.arch(g) for g in genes], latency, **options)


def problem(table: CostTable, genes: Genes, latency: Array, **features: Any) -> Problem:
    """A problem of networks that are left out one at a time."""
    training = Training(genes=genes, latency_ms=latency, groups=np.arange(len(genes)))
    return Problem(features=Features(table, **features), training=training)


def mape(predicted: Array, latency: Array) -> float:
    return float(np.abs(predicted / latency - 1).mean())


def one_column(table: CostTable, values: Array, name: str = "latency_ms") -> CostTable:
    """A cost table of one column with a value per decision and choice (n_decisions, n_choices)."""
    factors = [
        Factor(name=d.label, labels=(d.label,), values=own[:, None])
        for d, own in zip(table.decisions, values, strict=True)
    ]
    return CostTable(table.decisions, [Column(name=name, unit="ms")], factors)


def with_live(table: CostTable, *, told: bool = True) -> CostTable:
    """The table with a factor per pair of neighbours: choice 0 of the first kills the second.

    Its column ``live_macs`` (``hidden`` where not ``told``: a maximum, which is no feature) counts
    the MACs of a block with choice c as 1 + c² where it lives.
    """
    column = "live_macs" if told else "hidden"
    columns = [*table.columns, Column(name=column, unit="MAC", reduce="sum" if told else "max")]
    factors = [
        Factor(name=f.name, labels=f.labels, values=np.append(f.values, 0 * f.values[..., :1], -1))
        for f in table.factors
    ]
    for first, second in zip(table.decisions[::2], table.decisions[1::2], strict=True):
        one, two = np.meshgrid(np.arange(3), np.arange(3), indexing="ij")
        values = np.zeros((3, 3, len(columns)))
        values[..., -1] = np.where(one == 0, 0, 1 + one**2 + 1 + two**2)
        pair = (first.label, second.label)
        factors.append(Factor(name="+".join(pair), labels=pair, values=values))
    return CostTable(table.decisions, columns, factors)
