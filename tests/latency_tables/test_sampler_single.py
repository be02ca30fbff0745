"""Drawing one architecture at a time: as uniform, as exact, on plain numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency_tables.cost_table import CostTable
from latency_tables.errors import LimitError
from latency_tables.sampler import ConditionedSampler, CostSampler, EliminationSampler
from latency_tables.sampler_single import SingleCost
from tests.latency_tables.test_sampler import brute_force, chain, table_of, vit_like


def pairs_of_many() -> CostTable:
    """Couplings with so many options that the walk takes its array path."""
    rng = np.random.default_rng(4)
    sizes = {"a": 5, "b": 6, "c": 5, "d": 2}
    scopes = [("a", "b"), ("b", "c"), ("c", "d")]
    return table_of(sizes, {s: rng.random([sizes[v] for v in s]) for s in scopes})


def one_by_one(sampler: CostSampler, low: float, high: float, n: int) -> np.ndarray:
    rng = np.random.default_rng(11)
    return np.concatenate([sampler.sample(rng, low, high, 1) for _ in range(n)])


@pytest.mark.parametrize("table", [chain(5, 4), vit_like(True), vit_like(False), pairs_of_many()])
@pytest.mark.parametrize("kind", [EliminationSampler, ConditionedSampler])
def test_single_draws_are_uniform_over_the_range(kind, table: CostTable) -> None:
    genes, costs = brute_force(table)
    low, high = np.quantile(costs, [0.3, 0.5])
    allowed = genes[(costs >= low) & (costs <= high)]
    index = {tuple(row): i for i, row in enumerate(allowed.tolist())}
    drawn = one_by_one(kind(table, "cost"), low, high, 6_000)
    counts = np.bincount([index[tuple(g)] for g in drawn.tolist()], minlength=len(allowed))
    expected, freedom = 6_000 / len(allowed), len(allowed) - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


def test_single_draws_do_not_fall_back_on_the_array_way(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = EliminationSampler(chain(20, 4), "cost")
    monkeypatch.setattr(sampler, "_proposals", None)
    low, high = sampler.quantiles([0.1, 0.11])
    assert len(one_by_one(sampler, low, high, 50)) == 50


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 3**6 - 1))
def test_a_range_of_one_cost_gives_that_cost_to_the_last_bit(seed: int, which: int) -> None:
    table = chain(6, 3, seed)
    _, costs = brute_force(table)
    drawn = EliminationSampler(table, "cost").sample(
        np.random.default_rng(seed), costs[which], costs[which], 1
    )
    assert table.column("cost", drawn)[0] == costs[which]


def test_an_empty_range_is_refused_for_one_draw_as_well() -> None:
    with pytest.raises(LimitError, match="the space reaches from"):
        EliminationSampler(chain(12, 4), "cost").sample(np.random.default_rng(0), 1e9, 2e9, 1)


@pytest.mark.parametrize("table", [chain(7, 3), vit_like(False), pairs_of_many()])
def test_the_cost_on_plain_numbers_is_that_of_the_table(table: CostTable) -> None:
    genes, costs = brute_force(table)
    cost = SingleCost(table, "cost")
    np.testing.assert_allclose([cost(g) for g in genes.tolist()], costs, rtol=1e-12)


def test_equal_generators_draw_equal_single_architectures() -> None:
    sampler = EliminationSampler(chain(20, 4), "cost")
    low, high = sampler.quantiles([0.4, 0.41])
    assert np.array_equal(*(one_by_one(sampler, low, high, 9) for _ in range(2)))
