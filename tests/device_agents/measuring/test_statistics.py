"""Numbers from synthetic series whose truth is known."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agents.measuring.replies import NetRound, ReferenceVisit
from device_agents.measuring.statistics import (
    PERCENTILE_FLOORS,
    bootstrap_interval,
    compare,
    effective_samples,
    percentile,
    reference_around,
    summarise,
    theil_sen,
)
from latency_tables.errors import UsageError
from tests.device_agents.rounds import make_round


def test_the_headline_is_the_median_over_rounds_of_the_median_of_block_medians() -> None:
    rounds = [
        make_round([[100, 100], [110, 110], [500, 500]]),  # 110
        make_round([[120, 120], [130, 130], [140, 140]]),  # 130
        make_round([[900, 900], [900, 900], [900, 900]]),  # 900
    ]
    found = summarise(rounds, [None] * 3, target_half_width=0.05)
    assert found.median_ns == 130
    assert found.round_medians_ns == (110, 130, 900)
    assert not found.converged


def test_one_disturbed_block_moves_the_mean_and_not_the_headline() -> None:
    rounds = [make_round([*[[1000] * 10] * 9, [9000] * 10]) for _ in range(3)]
    found = summarise(rounds, [None] * 3, target_half_width=0.05)
    assert (found.median_ns, found.converged) == (1000, True)
    assert found.mean_ns == 1800


def test_the_ratio_to_the_reference_removes_a_drift_of_the_board() -> None:
    speeds = [1.0, 1.1, 1.3]  # the board slows down from round to round
    rounds = [make_round([[int(1000 * s)] * 4] * 5) for s in speeds]
    found = summarise(rounds, [500 * s for s in speeds], target_half_width=0.05)
    assert found.ratio_to_reference == pytest.approx(2.0)
    assert found.median_ns == 1100  # the headline itself is never corrected


@pytest.mark.parametrize("p", [90, 95, 99])
def test_the_percentile_floor_is_the_smallest_n_of_the_binomial_rule(p: int) -> None:
    def at_most_one_above(n: int) -> float:
        q = 1 - p / 100
        return sum(comb(n, k) * q**k * (1 - q) ** (n - k) for k in (0, 1))

    floor = PERCENTILE_FLOORS[p]
    assert at_most_one_above(floor) <= 0.01 < at_most_one_above(floor - 1)
    samples = np.arange(1.0, 2000.0)
    assert percentile(samples, p, floor - 1) is None
    assert percentile(samples, p, floor) is not None


def test_percentiles_are_null_for_a_strongly_correlated_series_of_enough_runs() -> None:
    slow = np.repeat(np.array([1000, 2000]), 500)  # a thousand runs, in truth two states
    independent = np.random.default_rng(0).integers(1000, 2000, 1000)
    assert summarise([make_round([slow])], [None], target_half_width=1).p90_ns is None
    assert summarise([make_round([independent])], [None], target_half_width=1).p99_ns is not None


def test_means_of_several_calls_have_no_percentiles() -> None:
    values = np.random.default_rng(0).integers(1000, 2000, 1000)
    batched = make_round([values], calls_per_sample=4)
    assert summarise([batched], [None], target_half_width=1).p90_ns is None


def test_effective_samples_of_a_first_order_process_follow_its_correlation() -> None:
    rng = np.random.default_rng(1)
    series = np.zeros(20_000)
    for i in range(1, len(series)):
        series[i] = 0.8 * series[i - 1] + rng.standard_normal()
    assert effective_samples(series) == pytest.approx(20_000 * 0.2 / 1.8, rel=0.1)


def test_the_bootstrap_is_deterministic_and_covers_the_truth() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(60):
        rounds = [
            rng.normal(1000 + shift, 5, 10) for shift in rng.normal(0, 20, 9)
        ]  # between-round scatter dominates
        low, high = bootstrap_interval(rounds)
        assert (low, high) == bootstrap_interval(rounds)
        covered += low <= 1000 <= high
    assert covered >= 51  # 95 % asked, few rounds and the median's discreteness allowed for


def test_the_bootstrap_sees_scatter_between_rounds_that_blocks_do_not_show() -> None:
    steady_rounds = [np.full(10, value) for value in (1000.0, 1100.0, 1200.0)]
    low, high = bootstrap_interval(steady_rounds)
    assert (low, high) == (1000.0, 1200.0)


@given(st.lists(st.lists(st.integers(1, 10**9), min_size=1, max_size=6), min_size=1, max_size=6))
def test_the_interval_holds_the_headline_and_stays_inside_the_data(blocks: list[list[int]]) -> None:
    rounds = [make_round([[value] for value in block]) for block in blocks]
    found = summarise(rounds, [None] * len(rounds), target_half_width=0.05)
    assert found.ci_low_ns <= found.median_ns <= found.ci_high_ns
    everything = [value for block in blocks for value in block]
    assert min(everything) <= found.ci_low_ns
    assert found.ci_high_ns <= max(everything)


def test_widening_adds_its_share_of_the_median_on_both_sides() -> None:
    rounds = [make_round([[1000, 1000]] * 3)] * 3
    found = summarise(rounds, [None] * 3, target_half_width=0.05, widening=0.02)
    assert (found.ci_low_ns, found.ci_high_ns) == (980, 1020)
    assert found.converged  # convergence is about the data, not about the allowance


def test_the_reference_around_a_network_is_that_before_and_that_after_it() -> None:
    visits = [
        ReferenceVisit(position=0, block_medians_ns=(100,)),
        ReferenceVisit(position=2, block_medians_ns=(120,)),
        ReferenceVisit(position=4, block_medians_ns=(200,)),
    ]
    assert reference_around(visits, 1) == 110
    assert reference_around(visits, 2) == 160
    assert reference_around(visits[:1], 3) == 100
    assert reference_around([], 0) is None


def test_the_slope_ignores_one_outlier() -> None:
    assert theil_sen([0.0, 1.0, 2.0, 300.0, 4.0, 5.0]) == pytest.approx(1.0)


def scattered(rng: np.random.Generator, median: float, board: np.ndarray) -> list[NetRound]:
    """Rounds of a network on a board whose speed in each round is ``board``."""
    return [make_round(rng.normal(median * s, median * 0.004, (10, 20)).round()) for s in board]


def test_a_comparison_cancels_what_both_networks_suffered_in_a_round() -> None:
    rng = np.random.default_rng(4)
    board = rng.normal(1, 0.1, 9)  # rounds differ by ten per cent, the networks by two
    slow, fast = scattered(rng, 102_000, board), scattered(rng, 100_000, board)
    found = compare(slow, fast)
    assert found.ratio == pytest.approx(1.02, abs=0.003)
    assert found.high - found.low < 0.01
    assert not found.equal
    assert compare(slow, fast) == found  # the same data give the same interval


def test_equal_networks_are_called_equal_and_surely_so_when_the_interval_is_narrow() -> None:
    rng = np.random.default_rng(5)
    board = rng.normal(1, 0.1, 9)
    close = compare(scattered(rng, 100_400, board), scattered(rng, 100_000, board))
    assert close.equal
    assert close.surely_equal
    unpaired = compare(
        scattered(rng, 100_000, rng.normal(1, 0.1, 9)), scattered(rng, 100_000, board)
    )
    assert unpaired.equal
    assert not unpaired.surely_equal


def test_the_interval_of_a_comparison_covers_the_true_ratio() -> None:
    rng = np.random.default_rng(6)
    covered = 0
    for _ in range(40):
        board = rng.normal(1, 0.05, 9)
        own_a, own_b = rng.normal(1, 0.01, (2, 9))
        found = compare(
            scattered(rng, 110_000, board * own_a), scattered(rng, 100_000, board * own_b)
        )
        covered += found.low <= 1.1 <= found.high
    assert covered >= 34


def test_rounds_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(UsageError, match="2 rounds cannot be paired with 1"):
        compare([make_round([[1]])] * 2, [make_round([[1]])])
