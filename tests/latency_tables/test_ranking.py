"""Agreement of two orders against closed forms, brute force over all pairs, and scipy."""

import time

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from latency_tables.errors import UsageError
from latency_tables.ranking import (
    bootstrap,
    high_group_tau,
    in_top,
    kendall_tau,
    pearson,
    spearman,
    strict_tau,
    tau_b_of_rows,
    top_k_overlap,
)

ALL_CELLS = 15_625

few_values = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=40
)  # so few that ties of all kinds are common


def brute_pairs(a, b):
    """Concordant, discordant, tied in a only, tied in b only; one pair after the other."""
    concordant = discordant = tied_a = tied_b = 0
    for i in range(len(a)):
        for j in range(i):
            left, right = a[i] - a[j], b[i] - b[j]
            concordant += left * right > 0
            discordant += left * right < 0
            tied_a += left == 0 and right != 0
            tied_b += right == 0 and left != 0
    return concordant, discordant, tied_a, tied_b


def test_tau_is_that_of_kendall_with_ties():
    # 10 pairs: 7 agree, 1 disagrees, 1 tied in each: (7 - 1) / sqrt(9 * 9)
    assert kendall_tau([1, 2, 2, 4, 5], [3, 1, 4, 4, 5]) == pytest.approx(2 / 3)
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == -1.0


@pytest.mark.parametrize(
    ("first", "second", "strict", "tau_b"),
    [
        ([1, 2, 3, 4], [1, 3, 2, 4], 2 / 3, 2 / 3),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.6, 0.6),
        ([1, 2, 3, 4], [1, 1, 2, 3], 2 / 3, 5 / np.sqrt(30)),  # 5 concordant, 1 tied
    ],
)
def test_a_tie_is_discordant_for_the_strict_tau_and_left_out_by_tau_b(first, second, strict, tau_b):
    assert strict_tau(first, second) == pytest.approx(strict)
    assert kendall_tau(first, second) == pytest.approx(tau_b)


@given(few_values)
@settings(deadline=None)
def test_both_taus_are_those_of_counting_every_pair(pairs):
    a, b = zip(*pairs, strict=True)
    concordant, discordant, tied_a, tied_b = brute_pairs(a, b)
    n_pairs = len(a) * (len(a) - 1) // 2
    decided = concordant + discordant
    scale = np.sqrt((decided + tied_a) * (decided + tied_b))
    assert strict_tau(a, b) == pytest.approx(2 * concordant / n_pairs - 1)
    assert kendall_tau(a, b) == pytest.approx((concordant - discordant) / scale if scale else 0)


@given(few_values)
@settings(deadline=None)
def test_the_order_in_which_networks_are_listed_changes_nothing(pairs):
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    turned = np.random.default_rng(len(a)).permutation(len(a))
    k = max(1, len(a) // 3)
    for measure in (kendall_tau, strict_tau, spearman, pearson):
        assert measure(a, b) == pytest.approx(measure(a[turned], b[turned]))
    for grouped in (top_k_overlap, high_group_tau):
        assert grouped(a, b, k) == pytest.approx(grouped(a[turned], b[turned], k))


@given(few_values)
@settings(deadline=None)
def test_spearman_ranks_ties_by_their_mean_as_scipy_does(pairs):
    a, b = zip(*pairs, strict=True)
    ranks = [scipy.stats.rankdata(side) for side in (a, b)]
    wanted = 0.0 if min(map(np.ptp, ranks)) == 0 else np.corrcoef(*ranks)[0, 1]
    assert spearman(a, b) == pytest.approx(wanted, abs=1e-12)


def test_spearman_of_untied_ranks_is_the_closed_form():
    # d = 1 four times: 1 - 6 * 4 / (5 * 24)
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)


def test_pearson_is_of_values_and_not_of_ranks():
    a, b = [0.0, 1.0, 10.0], [1.0, 0.0, 2.0]
    assert pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert pearson(a, b) != pytest.approx(spearman(a, b))


def test_all_measures_of_a_whole_nas_bench_201_are_right_and_take_a_fraction_of_a_second():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=ALL_CELLS).round(3)
    scores = truth + rng.normal(size=ALL_CELLS).round(1)
    began = time.process_time()
    found = kendall_tau(scores, truth), spearman(scores, truth)
    strict, high = strict_tau(scores, truth), high_group_tau(scores, truth, 100)
    seconds = time.process_time() - began
    assert found[0] == pytest.approx(scipy.stats.kendalltau(scores, truth).statistic)
    assert found[1] == pytest.approx(scipy.stats.spearmanr(scores, truth).statistic)
    assert strict < found[0] < high
    assert seconds < 0.5  # 20 ms where nothing else runs; pair by pair it would be many seconds


def test_a_constant_sequence_has_no_order():
    for measure in (kendall_tau, spearman, pearson):
        assert measure([1, 1, 1], [1, 2, 3]) == 0.0
        assert measure([0.1] * 7, range(7)) == 0.0  # their mean is not 0.1
        assert measure([], []) == 0.0
    assert strict_tau([1, 1, 1], [1, 2, 3]) == -1.0
    assert strict_tau([], []) == strict_tau([1], [1]) == 0.0


def test_the_high_group_is_compared_with_the_rest_only():
    truth = [5, 4, 3, 2, 1]
    within_wrong = [4, 5, 1, 2, 3]  # both groups upside down, but all of one above the other
    assert high_group_tau(within_wrong, truth, 2) == 1.0
    assert high_group_tau([5, 2, 2, 1, 0], truth, 2) == pytest.approx(2 * 5 / 6 - 1)  # a tie
    assert high_group_tau([1, 2, 3, 4, 5], truth, 2) == -1.0


@given(few_values, st.integers(1, 10))
@settings(deadline=None)
def test_the_high_group_tau_is_that_of_counting_its_pairs(pairs, n_high):
    scores, truth = zip(*pairs, strict=True)
    n_high = min(n_high, len(truth))
    border = sorted(truth)[-n_high]
    crossing = [
        high > low
        for high, t_high in zip(scores, truth, strict=True)
        for low, t_low in zip(scores, truth, strict=True)
        if t_high >= border > t_low
    ]
    wanted = 2 * np.mean(crossing) - 1 if crossing else 0.0
    assert high_group_tau(scores, truth, n_high) == pytest.approx(wanted)


def test_networks_tied_with_the_last_of_the_high_group_belong_to_it():
    assert high_group_tau([3, 2, 1, 0], [2, 1, 1, 0], 2) == high_group_tau(
        [3, 1, 2, 0], [2, 1, 1, 0], 2
    )
    assert high_group_tau([1, 2, 3], [1, 1, 1], 1) == 0.0


def test_top_k_overlap_counts_those_in_both_tops():
    truth = [9, 8, 7, 6, 5, 4]
    assert top_k_overlap([9, 8, 7, 0, 0, 0], truth, 3) == 1.0
    assert top_k_overlap([9, 0, 0, 8, 7, 1], truth, 3) == pytest.approx(1 / 3)
    assert top_k_overlap([0, 1, 2, 3, 4, 5], truth, 3) == 0.0


def test_scores_that_say_nothing_overlap_like_a_random_draw():
    assert top_k_overlap([1] * 20, range(20), 5) == pytest.approx(5 / 20)


def test_the_good_ones_among_the_best_scored_are_counted():
    good = [True] * 10 + [False] * 20
    assert in_top(range(30, 0, -1), good, 10) == 10
    assert in_top(range(30), good, 10) == 0
    scores = [30, 29, 28, 0, 0, 0, 0, 0, 0, 0] + [20] * 7 + [1] * 13
    assert in_top(scores, good, 10) == 3


def test_the_interval_is_seeded_and_holds_the_value():
    rng = np.random.default_rng(3)
    a = rng.normal(size=60)
    b = a + rng.normal(size=60)
    first, again = (
        bootstrap(tau_b_of_rows, a, b, rng=np.random.default_rng(7), n_resamples=500)
        for _ in range(2)
    )
    assert first == again
    assert first.low < first.value < first.high
    assert first.value == kendall_tau(a, b)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Normal pairs: tau = 2/pi asin(rho). 200 samples of 80 pairs at the 90 % level."""
    rng = np.random.default_rng(0)
    rho, covered = 0.6, 0
    for _ in range(200):
        a = rng.normal(size=80)
        b = rho * a + np.sqrt(1 - rho**2) * rng.normal(size=80)
        found = bootstrap(tau_b_of_rows, a, b, rng=rng, n_resamples=200, level=0.9)
        covered += found.low <= 2 / np.pi * np.arcsin(rho) <= found.high
    assert 0.82 <= covered / 200 <= 0.96


def test_ten_networks_leave_an_interval_as_wide_as_the_papers_differences():
    rng = np.random.default_rng(1)
    a = rng.normal(size=10)
    found = bootstrap(tau_b_of_rows, a, a + rng.normal(size=10), rng=rng)
    assert found.high - found.low > 0.3


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(UsageError, match=r"\(3,\) and \(2,\)"):
        kendall_tau([1, 2, 3], [1, 2])
    with pytest.raises(UsageError, match="4 best of 3 networks"):
        top_k_overlap([1, 2, 3], [1, 2, 3], 4)
    with pytest.raises(UsageError, match="0 best of 3 networks"):
        high_group_tau([1, 2, 3], [1, 2, 3], 0)
    with pytest.raises(UsageError, match=r"level 95"):
        bootstrap(tau_b_of_rows, [1, 2], [1, 2], rng=np.random.default_rng(0), level=95)
