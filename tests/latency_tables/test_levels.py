"""Levels of a cost: equal steps between the tails, with the shares that enumeration gives."""

from __future__ import annotations

import doctest
import itertools
from pathlib import Path

import numpy as np
import pytest

from latency_tables.errors import SpaceError
from latency_tables.levels import cost_levels, split_range
from latency_tables.sampler import EliminationSampler, EnumerationSampler
from tests.latency_tables.test_sampler import brute_force, chain, table_of, vit_like


@pytest.mark.parametrize("kind", [EnumerationSampler, EliminationSampler])
def test_levels_have_equal_steps_between_the_tails_and_exact_shares(kind) -> None:
    table = vit_like(True)
    _, costs = brute_force(table)
    levels = cost_levels(kind(table, "cost"), 5)
    first, last = np.quantile(costs, [0.01, 0.99], method="inverted_cdf")
    assert (levels[0].low, levels[-1].high) == (first, last)
    np.testing.assert_allclose([v.high - v.low for v in levels], (last - first) / 5)
    for level in levels:
        inside = ((costs >= level.low) & (costs <= level.high)).mean()
        assert level.probability == pytest.approx(inside, abs=1e-12)


def test_no_cost_is_in_two_levels_and_none_between_them() -> None:
    levels = cost_levels(EnumerationSampler(vit_like(True), "cost"), 7)
    for before, after in itertools.pairwise(levels):
        assert before.high < after.low
        assert np.nextafter(before.high, np.inf) == after.low


def test_a_level_in_a_gap_is_empty_and_says_so() -> None:
    table = table_of({"a": 2, "b": 2}, {("a",): np.array([0.0, 9.0]), ("b",): np.array([0.0, 1.0])})
    assert [v.probability for v in cost_levels(EliminationSampler(table, "cost"), 3)] == [
        0.5,
        0,
        0.5,
    ]


def test_levels_of_one_cost_or_none_at_all_are_refused() -> None:
    flat = table_of({"a": 2}, {("a",): np.array([1.0, 1.0])})
    with pytest.raises(SpaceError, match="the lower end first"):
        cost_levels(EnumerationSampler(flat, "cost"), 3)
    with pytest.raises(SpaceError, match="at least 1"):
        split_range(0, 1, 0)
    assert len(cost_levels(EliminationSampler(chain(9, 3), "cost"), 1)) == 1


def test_the_example_of_the_guide_runs() -> None:
    guide = Path(__file__).parents[2] / "docs" / "graph.md"
    result = doctest.testfile(str(guide), module_relative=False)
    assert (result.attempted, result.failed) == (15, 0)
