"""All measures of one comparison, and what each way of choosing is worth."""

import json
from itertools import combinations

import numpy as np
import pytest

from latency_tables.errors import DataError
from latency_tables.ranking import kendall_tau, spearman
from pipeline.ranking.picks import chance_of_best, compare_picks
from pipeline.ranking.report import rank_report

FEW = {"n_resamples": 50}


@pytest.fixture
def noisy():
    """120 networks whose scores follow the truth with noise."""
    rng = np.random.default_rng(0)
    truth = rng.normal(90, 2, 120)
    return truth / 100 + rng.normal(0, 0.01, 120), truth


def test_a_perfect_supernet_is_perfect_by_every_measure():
    truth = np.linspace(80, 90, 120)
    found = rank_report(truth / 100, truth, **FEW)
    assert found.tau_b.value == found.spearman.value == found.strict_tau == 1
    assert found.pearson.value == pytest.approx(1)
    assert [(top.k, top.overlap) for top in found.top_k] == [(5, 1), (10, 1), (50, 1)]
    assert (found.high_group.n_high, found.high_group.tau) == (30, 1)
    kept = found.order_preservation
    assert (kept.global_mean, kept.global_low, kept.local.value) == (10, 10, 1)


def test_a_supernet_that_turns_the_order_round_is_as_bad_as_can_be():
    truth = np.linspace(80, 90, 120)
    found = rank_report(-truth, truth, **FEW)
    assert found.tau_b.value == found.strict_tau == found.high_group.tau == -1
    assert found.order_preservation.global_mean == 0


def test_scores_without_relation_leave_a_third_of_the_good_ones_in_the_top_of_thirty():
    rng = np.random.default_rng(1)
    means = [
        rank_report(rng.normal(size=300), np.arange(300.0), seed=seed, **FEW)
        .order_preservation.global_mean
        for seed in range(12)
    ]  # fmt: skip
    assert np.mean(means) == pytest.approx(10 / 3, abs=0.8)


def test_the_interval_narrows_with_more_networks(noisy):
    scores, truth = noisy
    few, many = rank_report(scores[:20], truth[:20]), rank_report(scores, truth)
    assert few.tau_b.high - few.tau_b.low > 1.5 * (many.tau_b.high - many.tau_b.low)


def test_the_same_seed_gives_the_same_report_and_another_one_other_intervals(noisy):
    first, again, other = (rank_report(*noisy, seed=s, **FEW) for s in (1, 1, 2))
    assert first == again
    assert first.tau_b.value == other.tau_b.value
    assert first.tau_b != other.tau_b


def test_baselines_are_compared_with_the_truth_and_not_with_the_scores(noisy):
    scores, truth = noisy
    macs = np.arange(120.0)
    found = rank_report(scores, truth, baselines={"MACs": macs}, **FEW).baselines["MACs"]
    assert found.tau_b == kendall_tau(macs, truth)
    assert found.spearman == spearman(macs, truth)


def test_a_report_is_plain_json(noisy):
    found = rank_report(*noisy, baselines={"MACs": np.arange(120)}, **FEW).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == json.loads(json.dumps(found))
    assert found["tau_b"]["n_resamples"] == 50


def test_what_thirty_networks_are_needed_for_is_left_out_below(noisy):
    scores, truth = noisy
    found = rank_report(scores[:12], truth[:12], **FEW)
    assert found.order_preservation is None
    assert [top.k for top in found.top_k] == [5]
    assert rank_report(scores[:3], truth[:3], **FEW).high_group is None


@pytest.mark.parametrize(
    ("scores", "truth", "words"),
    [
        ([0.1, 0.2], [1, 2], "2 networks have both"),
        ([0.1] * 5, range(5), "the score of all 5 networks is 0.1"),
        (range(5), [90.0] * 5, "the truth of all 5 networks is 90"),
        ([0.1, np.nan, 0.2], range(3), "the score of network 1 is nan"),
    ],
)
def test_numbers_without_an_order_are_refused(scores, truth, words):
    with pytest.raises(DataError, match=words):
        rank_report(scores, truth, **FEW)


# -- picks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, 5, 7])
def test_the_chance_of_being_the_best_is_that_of_counting_all_draws(k):
    key = np.array([0.3, 0.9, 0.1, 0.9, 0.5, 0.2, 0.3])
    wanted = np.zeros(7)
    draws = list(combinations(range(7), k))
    for draw in draws:
        best = [i for i in draw if key[i] == max(key[j] for j in draw)]
        wanted[best] += 1 / len(best) / len(draws)
    # a tie is shared by those tied, whichever of them were drawn
    for tied in ([1, 3], [0, 6]):
        wanted[tied] = wanted[tied].mean()
    assert chance_of_best(key, k) == pytest.approx(wanted)


def test_picks_are_worth_what_drawing_many_times_gives(noisy):
    scores, truth = noisy
    rng = np.random.default_rng(5)
    by_name = {p.name: p for p in compare_picks(scores, truth, {})}
    draws = [rng.choice(120, 5, replace=False) for _ in range(4000)]
    best = [truth[draw].max() for draw in draws]
    assert by_name["random-select-5"].mean == pytest.approx(np.mean(best), abs=0.1)
    low, high = np.quantile(best, (0.05, 0.95))
    assert by_name["random-select-5"].low == pytest.approx(low, abs=0.3)
    assert by_name["random-select-5"].high == pytest.approx(high, abs=0.3)
    assert by_name["one at random"].mean == pytest.approx(truth.mean())
    hundreds = [rng.choice(120, 100, replace=False) for _ in range(2000)]
    picked = [truth[draw][scores[draw].argmax()] for draw in hundreds]
    assert by_name["random-100"].mean == pytest.approx(np.mean(picked), abs=0.1)


def test_the_supernets_pick_is_its_best_scored_network(noisy):
    scores, truth = noisy
    pick = compare_picks(scores, truth, {"MACs": -truth})[0]
    assert pick.mean == pick.low == pick.high == truth[scores.argmax()]
    assert pick.regret == pytest.approx(truth.max() - pick.mean)
    assert pick.better == (truth > pick.mean).sum()


def test_choosing_by_another_number_takes_its_largest(noisy):
    scores, truth = noisy
    by_name = {p.name: p for p in compare_picks(scores, truth, {"MACs": -truth})}
    assert by_name["most MACs"].mean == truth.min()
    assert by_name["truly best"].regret == 0


def test_a_hundred_random_ones_need_more_than_a_hundred(noisy):
    scores, truth = noisy
    names = [p.name for p in compare_picks(scores[:100], truth[:100], {})]
    assert "random-100" not in names
