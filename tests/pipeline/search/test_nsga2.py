"""NSGA-II: ranks and crowding by hand, then the search as a whole."""

import time
from dataclasses import replace
from itertools import permutations

import moocore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.search.config import SearchConfig
from pipeline.search.evaluation import Candidate, Evaluation, Score
from pipeline.search.limits import Limit
from pipeline.search.nsga2 import constrained_ranks, crowding, standings
from pipeline.search.objectives import Objectives
from pipeline.search.run_search import make_searcher

# minimise both: fronts {A, B, C}, {D}, {E}
FIVE = np.array([[1.0, 5], [2, 3], [4, 1], [3, 4], [5, 5]])
SMALL = SearchConfig(method="nsga2", population=20, generations=6)
MACS = Limit(metric="macs", bound=22e6)
LATENCY = Limit(metric="latency_ms", bound=3.0, device="board")

rows_of_3 = arrays(
    np.float64, st.tuples(st.integers(1, 12), st.just(3)), elements=st.integers(0, 4)
)


def told(*rows, violations=None, complete=None):
    """Evaluations with the given (error, MACs)."""
    n = len(rows)
    return [
        Evaluation(
            candidate=Candidate(arch=i, costs={"macs": macs}, violation=violation),
            score=Score(accuracy=-error, n_images=10, complete=whole),
        )
        for i, ((error, macs), violation, whole) in enumerate(
            zip(rows, violations or [0.0] * n, complete or [True] * n, strict=True)
        )
    ]


def test_five_points_have_the_fronts_crowding_and_hypervolume_worked_out_by_hand():
    ranks = constrained_ranks(FIVE, np.zeros(5, dtype=np.int64))
    assert ranks.tolist() == [0, 0, 0, 1, 2]
    assert crowding(FIVE[:3]).tolist() == [np.inf, 2.0, np.inf]
    assert moocore.hypervolume(FIVE, ref=[6, 6]) == 17.0


@settings(max_examples=60, deadline=None)
@given(rows=rows_of_3)
def test_ranks_follow_from_peeling_off_what_nothing_dominates(rows):
    ranks = constrained_ranks(rows, np.zeros(len(rows), dtype=np.int64))
    left, rank = set(range(len(rows))), 0
    while left:
        front = {
            i
            for i in left
            if not any((rows[j] <= rows[i]).all() and (rows[j] < rows[i]).any() for j in left)
        }
        assert {i for i in left if ranks[i] == rank} == front
        left, rank = left - front, rank + 1


@settings(max_examples=40, deadline=None)
@given(rows=rows_of_3, seed=st.integers(0, 2**32))
def test_crowding_does_not_depend_on_the_order_of_candidates(rows, seed):
    different = np.unique(rows, axis=0)
    order = np.random.default_rng(seed).permutation(len(different))
    np.testing.assert_array_equal(crowding(different)[order], crowding(different[order]))


def test_of_equal_points_one_has_the_distance_and_the_others_have_none():
    for order in permutations(range(4)):
        rows = np.array([[1.0, 5], [2, 3], [2, 3], [4, 1]])[list(order)]
        assert sorted(crowding(rows)) == [0.0, 2.0, np.inf, np.inf]


def test_points_that_are_all_equal_in_one_objective_are_spread_by_the_other():
    assert crowding(np.array([[3.0, 1], [3, 2], [3, 4]])).tolist() == [np.inf, 1.0, np.inf]


def test_unknown_latencies_leave_the_distances_of_the_others_finite():
    rows = np.array([[1.0, 2], [2, 1.5], [3, 1], [4, np.inf], [5, np.inf]])
    distance = crowding(rows)
    assert not np.isnan(distance).any()
    assert distance[1] == pytest.approx(2 / 4 + 1)


def test_what_breaks_no_limit_comes_before_all_that_does_and_then_less_comes_before_more():
    archive = told((9, 9), (1, 1), (2, 2), (8, 8), violations=[0.0, 0.5, 0.1, 0.0])
    ranks, _ = standings(archive, Objectives.of(["error", "macs"], devices=[]))
    assert ranks.tolist() == [1, 3, 2, 0]


def test_what_was_given_up_early_comes_after_what_saw_all_images():
    archive = told((1, 1), (5, 5), complete=[False, True])
    ranks, _ = standings(archive, Objectives.of(["error", "macs"], devices=[]))
    assert ranks.tolist() == [1, 0]


def test_the_best_are_those_of_low_rank_and_then_of_sparse_places(world):
    searcher = make_searcher(SMALL, world.evaluator(latency={}), seed=0)
    evaluations = [
        replace(e, candidate=replace(e.candidate, arch=arch))
        for e, arch in zip(
            told((5, 1), (3, 2), (1, 4), (4, 3), (5, 5), (1.1, 3.9)),
            world.everything(),
            strict=False,
        )
    ]
    searcher.tell(evaluations)
    # A, C are ends; B has more room than the sixth point, which is close to C
    assert searcher.best(6) == [evaluations[i] for i in (0, 2, 1, 5, 3, 4)]


def front_of(world, archs):
    macs = world.table.column("macs", world.table.genes(archs))
    return np.stack([1 - np.array([world.accuracy(a) for a in archs]), macs / 1e8], axis=1)


@pytest.mark.parametrize("seed", range(3))
def test_the_front_comes_near_the_true_one_and_nearer_than_that_of_random_search(
    make_world, tmp_path, seed
):
    world = make_world(n=8)  # 6,561 subnets
    best = moocore.hypervolume(front_of(world, world.everything()), ref=[1, 1])
    reached = {}
    for method in ("nsga2", "random"):
        config = SearchConfig(method=method, generations=9, evaluations=500)
        result = world.run(tmp_path / method, config, seed=seed)
        assert result.n_evaluated == 500
        rows = front_of(world, [e.arch for e in result.archive])
        reached[method] = moocore.hypervolume(rows, ref=[1, 1]) / best
    assert reached["nsga2"] > 0.95
    assert reached["nsga2"] > reached["random"]


def test_one_objective_finds_what_evolution_finds(make_world, journal_path):
    world = make_world(n=8)
    config = SearchConfig(method="nsga2", objectives=("error",), generations=10)
    result = world.run(journal_path, config)
    best = max(world.accuracy(arch) for arch in world.everything())
    assert max(e.accuracy for e in result.archive) >= 0.98 * best


def test_no_candidate_breaks_a_limit_or_is_asked_twice(world, journal_path):
    result = world.run(journal_path, SMALL, MACS, LATENCY)
    assert result.n_evaluated > 100
    assert all(e.feasible for e in result.archive)
    assert max(world.scored.values()) == 1


def test_canonical_forms_are_asked_once(make_world, journal_path):
    world = make_world(n=5, merged=True)
    result = world.run(journal_path, SMALL)
    keys = [world.canonical(e.arch) for e in result.archive]
    assert len(set(keys)) == len(keys) == 81


def test_the_same_seed_gives_the_same_archive_and_another_seed_another(make_world, tmp_path):
    one, two, other = (
        make_world().run(tmp_path / name, SMALL, seed=seed)
        for name, seed in (("one", 3), ("two", 3), ("other", 4))
    )
    assert one.archive == two.archive
    assert one.archive != other.archive


def test_telling_the_archive_again_gives_the_next_generation(world, journal_path):
    evaluator = world.evaluator(MACS)
    whole = world.run(journal_path, SMALL, evaluator=evaluator).archive
    again = make_searcher(SMALL, world.evaluator(MACS), seed=0)
    state = make_searcher(SMALL, world.evaluator(MACS), seed=0)
    for start in (0, 20, 40):
        again.tell(whole[start : start + 20])
    state.load_state_dict(again.state_dict())
    assert again.ask() == state.ask() == [e.arch for e in whole[60:80]]


def test_survivors_follow_from_revised_latencies_alone(world):
    evaluator = world.evaluator(LATENCY)
    revised, fresh = (make_searcher(SMALL, evaluator, seed=0) for _ in range(2))
    evaluations = [
        Evaluation(candidate=c, score=world.score(c.arch)) for c in evaluator.screen(revised.ask())
    ]
    revised.tell(evaluations)
    winner = revised.best(1)[0]
    slower = [
        replace(e, candidate=replace(e.candidate, violation=0.4)) if e is winner else e
        for e in evaluations
    ]
    revised.revise(slower)
    fresh.tell(slower)
    assert revised.best(20) == fresh.best(20)
    assert revised.best(20)[-1].arch == winner.arch
    assert revised.ask() == fresh.ask()


def test_children_still_keep_the_limits_when_all_parents_turned_out_to_break_them(world):
    evaluator = world.evaluator(LATENCY)
    searcher = make_searcher(SMALL, evaluator, seed=0)
    searcher.tell(
        [
            Evaluation(candidate=replace(c, violation=0.1), score=world.score(c.arch))
            for c in evaluator.screen(searcher.ask())
        ]
    )
    children = searcher.ask()
    assert len(children) == SMALL.population
    assert all(c.feasible for c in evaluator.screen(children))


def test_a_thousand_candidates_cost_little_bookkeeping(make_world, journal_path):
    world = make_world(n=20)
    began = time.process_time()
    config = SearchConfig(method="nsga2", generations=19)
    result = world.run(journal_path, config, Limit(metric="macs", bound=200e6))
    seconds = time.process_time() - began
    assert result.n_evaluated == 1000
    assert seconds < 1
