"""Architectures at a latency: the sampler on the latency column of a fitted model."""

from __future__ import annotations

import numpy as np
import pytest

from latency_tables.cost_table import CostTable
from latency_tables.levels import cost_levels
from latency_tables.predictor.features import LATENCY_COLUMN
from latency_tables.predictor.model import LatencyModel
from latency_tables.sampler import ConditionedSampler, EliminationSampler
from tests.latency_tables.test_sampler import brute_force, vit_like

KINDS = [EliminationSampler, ConditionedSampler]


@pytest.fixture(scope="module")
def table() -> CostTable:
    """Couplings of four decisions, and latencies that 60 noisy measurements teach."""
    costs = vit_like(False)
    genes, cost = brute_force(costs)
    rng = np.random.default_rng(5)
    chosen = rng.permutation(len(genes))[:60]
    noisy = (2.0 + 0.05 * cost[chosen] + 0.3 * genes[chosen, 2]) * rng.normal(1, 0.02, 60)
    model = LatencyModel.fit(costs, [costs.arch(g) for g in genes[chosen]], noisy)
    return model.with_latency_column(costs)


def latencies(table: CostTable) -> tuple[np.ndarray, np.ndarray]:
    genes, _ = brute_force(table)
    return genes, table.column(LATENCY_COLUMN, genes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_at_once", [1, 4_000])
def test_draws_of_a_range_in_ms_are_uniform(kind, n_at_once: int, table: CostTable) -> None:
    genes, ms = latencies(table)
    low, high = np.quantile(ms, [0.4, 0.6])
    allowed = {tuple(g): i for i, g in enumerate(genes[(ms >= low) & (ms <= high)].tolist())}
    sampler, rng = kind(table, LATENCY_COLUMN), np.random.default_rng(0)
    drawn = np.concatenate([sampler.sample(rng, low, high, n_at_once)
                            for _ in range(4_000 // n_at_once)])  # fmt: skip
    counts = np.bincount([allowed[tuple(g)] for g in drawn.tolist()], minlength=len(allowed))
    expected, freedom = len(drawn) / len(allowed), len(allowed) - 1
    assert abs(((counts - expected) ** 2 / expected).sum() - freedom) < 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("kind", KINDS)
def test_the_share_under_a_limit_in_ms_is_that_of_enumeration(kind, table: CostTable) -> None:
    _, ms = latencies(table)
    sampler = kind(table, LATENCY_COLUMN)
    for limit in np.quantile(ms, [0.05, 0.3, 0.9]):
        # costs have many digits here, so that each counts at its bin's cost
        assert sampler.probability(high=limit) == pytest.approx((ms <= limit).mean(), abs=0.01)
    assert sampler.probability(high=ms.max() + 1) == 1.0


def test_levels_of_latency_cover_the_space_between_the_tails(table: CostTable) -> None:
    levels = cost_levels(EliminationSampler(table, LATENCY_COLUMN), 4)
    assert 0.95 < sum(level.probability for level in levels) <= 1.0
