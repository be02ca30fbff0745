"""Sampling by cost, one decision taken first: the answers are those of enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency_tables.cost_table import CostTable
from latency_tables.errors import InvalidArchError, LimitError, SpaceError, TableTooWideError
from latency_tables.sampler import ConditionedSampler, EliminationSampler, make_sampler
from latency_tables.sampler_conditioned import most_coupled
from tests.latency_tables.test_sampler import brute_force, chain, table_of, vit_like


@settings(max_examples=25, deadline=None)
@given(ends=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_counts_are_those_of_enumeration(ends: tuple[float, float]) -> None:
    table = vit_like(integer=True)
    sampler = ConditionedSampler(table, "cost")
    _, costs = brute_force(table)
    # ends of a range count as met up to the last digits, so none is within these of a cost
    low, high = np.quantile(costs, sorted(ends)).round(6)
    assert sampler.counts_are_exact
    assert sampler.count(low, high) == ((costs >= low) & (costs <= high)).sum()
    assert sampler.count() == len(costs)


def test_draws_are_uniform_over_everything_in_the_range() -> None:
    table = vit_like(integer=False)
    genes, costs = brute_force(table)
    low, high = np.quantile(costs, [0.3, 0.6])
    inside = {tuple(g) for g in genes[(costs >= low) & (costs <= high)].tolist()}
    drawn = ConditionedSampler(table, "cost").sample(np.random.default_rng(0), low, high, 40_000)
    found, times = np.unique(drawn, axis=0, return_counts=True)
    assert {tuple(g) for g in found.tolist()} == inside
    expected = 40_000 / len(inside)
    chi2 = ((times - expected) ** 2 / expected).sum()
    assert chi2 < len(inside) + 5 * np.sqrt(2 * len(inside))


def test_draws_do_not_come_in_blocks_of_one_choice() -> None:
    table = vit_like(integer=True)
    drawn = ConditionedSampler(table, "cost").sample(np.random.default_rng(1), 0, 1e9, 300)
    assert len(set(drawn[:30, 0].tolist())) == 3


def test_quantiles_are_those_of_enumeration() -> None:
    table = vit_like(integer=True)
    _, costs = brute_force(table)
    levels = [0.0, 0.1, 0.5, 0.9, 1.0]
    found = ConditionedSampler(table, "cost").quantiles(levels)
    np.testing.assert_allclose(found, np.quantile(costs, levels, method="inverted_cdf"))


def test_an_empty_range_is_refused_with_the_range_of_the_space() -> None:
    with pytest.raises(LimitError, match="the space reaches from"):
        ConditionedSampler(vit_like(True), "cost").sample(np.random.default_rng(0), 1e6, 2e6, 1)


def test_the_decision_that_most_factors_look_at_is_taken_first() -> None:
    assert most_coupled(vit_like(True)) == "embed"
    assert most_coupled(chain(3, 2)) == "b0"


def wide(n_global: int) -> CostTable:
    """Stages coupled with their neighbours and with one global decision: too wide for one table."""
    rng = np.random.default_rng(2)
    sizes = {"size": n_global, **{f"s{i}": 24 for i in range(5)}}
    factors = {("size", f"s{i}", f"s{i + 1}"): rng.random((n_global, 24, 24)) for i in range(4)}
    return table_of(sizes, factors)


def test_spaces_that_are_too_wide_for_one_table_are_divided() -> None:
    table = wide(4)
    with pytest.raises(TableTooWideError):
        EliminationSampler(table, "cost")
    sampler = make_sampler(table, "cost")
    assert isinstance(sampler, ConditionedSampler)
    assert sampler.exact
    low, high = sampler.quantiles([0.01, 0.02])
    archs = sampler.sample(np.random.default_rng(0), low, high, 200)
    costs = table.column("cost", archs)
    assert ((costs >= low) & (costs <= high)).all()
    uniform = np.random.default_rng(1).integers(0, [4, *[24] * 5], size=(200_000, 6))
    share = np.mean((c := table.column("cost", uniform)) <= high) - np.mean(c < low)
    assert sampler.probability(low, high) == pytest.approx(share, abs=1.5e-3)


def test_what_is_too_wide_even_so_is_refused() -> None:
    rng, labels = np.random.default_rng(0), "abcd"
    pairs = itertools.pairwise(labels)
    table = table_of(dict.fromkeys(labels, 200), {pair: rng.random((200, 200)) for pair in pairs})
    with pytest.raises(TableTooWideError):
        make_sampler(table, "cost")


def test_a_table_of_one_choice_costs_what_the_whole_table_says() -> None:
    table = vit_like(integer=True)
    part = table.given("embed", 2)
    genes, costs = brute_force(part)
    whole = genes.copy()
    whole[:, 0] = 2
    np.testing.assert_array_equal(costs, table.column("cost", whole))
    assert part.n_archs * 3 == table.n_archs
    with pytest.raises(SpaceError, match="no decision is called 'width'"):
        table.given("width", 1)
    with pytest.raises(InvalidArchError):
        table.given("embed", 9)
