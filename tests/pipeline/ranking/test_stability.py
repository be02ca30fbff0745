"""Two halves of the images, and networks that cannot be told from the winner."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency_tables.ranking import kendall_tau
from pipeline.ranking.stability import difference, half_of, rank_stability, sentence

LABELS = np.arange(1000) % 10


def answers(accuracies, n=1000, seed=0):
    """Networks that get each image right by chance, independently."""
    return np.random.default_rng(seed).random((len(accuracies), n)) < np.array(accuracies)[:, None]


@given(st.lists(st.integers(0, 4), min_size=2, max_size=200))
def test_the_halves_are_disjoint_and_balanced_by_class(labels):
    labels = np.array(labels)
    first = half_of(labels)
    assert abs(int(first.sum()) - int((~first).sum())) <= 1
    for label in set(labels.tolist()):
        one, other = first[labels == label].sum(), (~first)[labels == label].sum()
        assert abs(int(one) - int(other)) <= 1


def test_networks_that_truly_differ_keep_their_order():
    found = rank_stability(answers(np.linspace(0.4, 0.9, 20)), LABELS, winner=19)
    assert found.tau.value > 0.8
    assert found.significant
    assert found.n_images == 1000


def test_networks_that_are_equal_have_an_order_of_chance():
    taus = [
        rank_stability(answers([0.7] * 30, seed=s), LABELS, winner=0).tau.value for s in range(20)
    ]
    assert abs(np.mean(taus)) < 0.1
    found = rank_stability(answers([0.7] * 30), LABELS, winner=0)
    assert found.significant is False
    assert len(found.ties) >= 25


def test_what_ranks_instead_of_the_accuracy_decides_the_order_but_not_the_ties():
    right, accuracies = answers([0.7] * 20), np.linspace(0.3, 0.9, 20)
    merits = answers(accuracies, seed=1).astype(float)
    found = rank_stability(right, LABELS, winner=0, merits=merits)
    assert found.tau.value > 0.8
    assert found.ties == rank_stability(right, LABELS, winner=0).ties
    first = half_of(LABELS)
    assert found.halves[3] == (merits[3, first].mean(), merits[3, ~first].mean())


def test_the_tau_is_that_of_the_two_halves_accuracies():
    right = answers(np.linspace(0.5, 0.6, 12))
    found = rank_stability(right, LABELS, winner=0)
    first = half_of(LABELS)
    halves = right[:, first].mean(1), right[:, ~first].mean(1)
    assert [h[0] for h in found.halves] == pytest.approx(halves[0])
    assert [h[1] for h in found.halves] == pytest.approx(halves[1])
    assert found.tau.value == kendall_tau(*halves)


def test_ties_are_those_whose_difference_may_be_nothing_the_closest_first():
    base = answers([0.8])[0]
    worse, close, same = base.copy(), base.copy(), base.copy()
    right = np.flatnonzero(base)
    worse[right[:60]] = False
    close[right[:3]] = False
    found = rank_stability(np.stack((base, worse, close, same)), LABELS, winner=0)
    assert [tie.index for tie in found.ties] == [3, 2]
    assert [tie.value for tie in found.ties] == [0, 0.003]


def test_the_winner_may_stand_anywhere_and_be_worse_than_a_tie():
    base = answers([0.8])[0]
    better = base.copy()
    better[np.flatnonzero(~base)[:2]] = True
    (tie,) = rank_stability(np.stack((better, base)), LABELS, winner=1).ties
    assert (tie.index, tie.value) == (0, -0.002)
    assert tie.low < tie.value < tie.high


def test_images_that_both_get_right_do_not_widen_the_interval_of_a_difference():
    apart = np.zeros((2, 1000), dtype=bool)
    apart[0, :40] = apart[1, 40:60] = True  # 40 gained, 20 lost
    shared = apart.copy()
    shared[:, 100:] = True
    assert difference(apart, 0, 1) == difference(shared, 0, 1)
    assert difference(apart, 0, 1).value == pytest.approx(0.02)


def test_the_interval_of_a_difference_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(0)

    def both(n):
        hard = rng.random(n)  # images are hard or easy for both
        return np.stack([hard + rng.normal(0, 0.2, n) > bound for bound in (0.4, 0.5)])

    truth = difference(both(1_000_000), 0, 1).value
    found = [difference(both(300), 0, 1) for _ in range(1000)]
    covered = np.mean([d.low <= truth <= d.high for d in found])
    assert 0.93 <= covered <= 0.97


def test_fewer_than_three_networks_say_nothing():
    found = rank_stability(answers([0.5, 0.6]), LABELS, winner=1)
    assert found.tau is None
    assert found.significant is None
    assert sentence(found.to_dict()) == "rank stability: 2 networks are too few to tell"


def test_the_line_says_when_the_winner_is_not_significant():
    sure, unsure = (
        rank_stability(answers(a), LABELS, winner=11).to_dict()
        for a in (np.linspace(0.4, 0.9, 12), [0.7] * 12)
    )
    assert "not significant" not in sentence(sure)
    assert "12 best networks" in sentence(sure)
    assert "1,000 images" in sentence(sure)
    assert f"the winner is not significant, {len(unsure['ties'])} of the others" in sentence(unsure)


def test_what_is_written_is_plain_json_and_follows_from_the_seed():
    right = answers(np.linspace(0.5, 0.6, 12))
    first, again, other = (rank_stability(right, LABELS, 0, seed=s).to_dict() for s in (1, 1, 2))
    assert json.loads(json.dumps(first)) == json.loads(json.dumps(again))
    assert first["tau"] != other["tau"]


def test_a_difference_turned_round_is_its_mirror_image():
    right = answers([0.6, 0.63])
    one, other = difference(right, 0, 1), difference(right, 1, 0)
    assert (other.value, other.low, other.high) == pytest.approx((-one.value, -one.high, -one.low))


def test_the_interval_is_that_of_bonett_and_price():
    right = np.zeros((2, 98), dtype=bool)
    right[0, :9] = right[1, 9:13] = True  # 9 gained, 4 lost: (10 - 5) / 100
    found = difference(right, 0, 1)
    half = 1.959964 * np.sqrt((0.15 - 0.05**2) / 100)
    assert (found.low, found.high) == pytest.approx((0.05 - half, 0.05 + half))
    assert found.value == pytest.approx(5 / 98)


def test_networks_with_the_same_answers_are_tied():
    right = np.ones((2, 98), dtype=bool)
    found = difference(right, 0, 1)
    assert found.tied
    assert found.low == -found.high < 0
