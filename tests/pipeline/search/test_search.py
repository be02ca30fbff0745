import time
from dataclasses import replace

import pytest

from latency_tables.errors import DivergedError, LimitError, MeasurementError, MissingLatencyError
from pipeline.search.config import SearchConfig
from pipeline.search.evaluation import Score
from pipeline.search.evaluator import AccuracyCache, Evaluator
from pipeline.search.journal import Journal
from pipeline.search.limits import Limit
from pipeline.search.run_search import make_searcher, search

SMALL = SearchConfig(population=20, parents=5, crossover=8, mutation=8, generations=6)
LATENCY = Limit(metric="latency_ms", bound=3.0, device="board")


def latency(bound):
    return Limit(metric="latency_ms", bound=bound, device="board")


MACS = Limit(metric="macs", bound=22e6)


def archs_of(result):
    return [e.arch for e in result.archive]


def best_possible(world, *limits):
    kept = [c for c in world.evaluator(*limits).screen(world.everything()) if c.feasible]
    return max(world.accuracy(c.arch) for c in kept)


@pytest.mark.parametrize("seed", range(5))
def test_evolution_finds_a_subnet_near_the_best_under_a_limit(make_world, journal_path, seed):
    world = make_world(n=8)  # 6,561 subnets
    config = SearchConfig(generations=10)
    result = world.run(journal_path, config, latency(5.0), seed=seed)
    found = max(e.accuracy for e in result.archive)
    assert found >= 0.98 * best_possible(world, latency(5.0))
    assert result.n_evaluated == config.n_candidates == 550


def test_evolution_beats_random_search_with_the_same_number_of_candidates(make_world, tmp_path):
    world = make_world(n=12)
    wins = 0
    for seed in range(5):
        evolved = world.run(
            tmp_path / f"e{seed}", SearchConfig(generations=7), latency(8.0), seed=seed
        )
        drawn = world.run(
            tmp_path / f"r{seed}",
            SearchConfig(method="random", evaluations=400),
            latency(8.0),
            seed=seed,
        )
        assert evolved.n_evaluated == drawn.n_evaluated
        wins += max(e.accuracy for e in evolved.archive) > max(e.accuracy for e in drawn.archive)
    assert wins == 5


@pytest.mark.parametrize("method", ["evolution", "random"])
def test_the_same_seed_gives_the_same_archive(make_world, tmp_path, method):
    config = SMALL.model_copy(update={"method": method})
    one, two, other = (
        make_world().run(tmp_path / name, config, MACS, seed=seed)
        for name, seed in (("one", 3), ("two", 3), ("other", 4))
    )
    assert one.archive == two.archive
    assert one.archive != other.archive


def test_random_search_scores_as_many_candidates_as_asked_for(world, journal_path):
    config = SMALL.model_copy(update={"method": "random", "evaluations": 33})
    assert world.run(journal_path, config, MACS).n_evaluated == 33


@pytest.mark.parametrize("method", ["evolution", "random"])
def test_no_candidate_is_scored_twice(world, journal_path, method):
    config = SMALL.model_copy(update={"method": method})
    result = world.run(journal_path, config)
    assert max(world.scored.values()) == 1
    assert len(set(archs_of(result))) == result.n_evaluated == result.n_scored


def test_candidates_of_one_canonical_form_are_scored_once(make_world, journal_path):
    world = make_world(n=5, merged=True)
    result = world.run(journal_path, SMALL)
    keys = [world.canonical(arch) for arch in archs_of(result)]
    assert len(set(keys)) == len(keys) == 81  # 3^4: the last gene does not count


def test_no_scored_candidate_breaks_a_limit(world, journal_path):
    limits = (MACS, LATENCY, Limit(metric="peak_memory_bytes", bound=110e3))
    result = world.run(journal_path, SMALL, *limits)
    assert result.n_evaluated > 100
    for e in result.archive:
        assert e.feasible
        assert world.table.cost(e.arch, "macs") <= 22e6
        assert world.table.cost(e.arch, "peak_memory_bytes") <= 110e3
        assert world.latencies_ms([e.arch])[0] <= 3.0


def test_nothing_is_spent_on_the_latency_of_a_subnet_that_breaks_a_cost_limit(world, journal_path):
    world.run(journal_path, SMALL, MACS, LATENCY)
    assert max(world.table.cost(arch, "macs") for arch in world.timed) <= 22e6


def test_every_limit_of_every_device_holds_for_every_candidate(make_world, journal_path):
    world = make_world()

    def slow_on_last(archs):  # a second device with an order of its own
        answers = world.latencies(archs)
        return [
            answer if arch["block5"] == "skip" else replace(answer, latency_ms=9.0, high_ms=9.0)
            for answer, arch in zip(answers, archs, strict=True)
        ]

    limits = (LATENCY, Limit(metric="latency_ms", bound=8.0, device="other"))
    evaluator = world.evaluator(*limits, latency={"board": world.latencies, "other": slow_on_last})
    result = world.run(journal_path, SMALL, evaluator=evaluator)
    assert {e.arch["block5"] for e in result.archive} == {"skip"}
    assert all(set(e.latency) == {"board", "other"} for e in result.archive)
    assert all(e.latency["board"].latency_ms <= 3.0 for e in result.archive)


def test_the_last_generation_can_hold_the_winner(make_world, journal_path):
    world = make_world()
    seen = []

    def rising(arch):  # every new candidate is better than all before
        seen.append(arch)
        return Score(accuracy=len(seen) / 1000, loss=0.0)

    result = world.run(journal_path, SMALL, evaluator=world.evaluator(score=rising))
    best = max(result.archive, key=lambda e: e.accuracy)
    assert best.generation == SMALL.generations
    assert best.arch == seen[-1]


def test_a_small_space_ends_when_everything_feasible_was_scored(make_world, journal_path):
    world = make_world(n=4)
    result = world.run(journal_path, SMALL, Limit(metric="macs", bound=12e6))
    feasible = [a for a in world.everything() if world.table.cost(a, "macs") <= 12e6]
    assert result.exhausted
    assert set(archs_of(result)) == set(feasible)


def test_a_single_feasible_subnet_is_found_in_a_small_space(make_world, journal_path):
    world = make_world(n=8)
    result = world.run(journal_path, SMALL, Limit(metric="macs", bound=1e6))
    assert archs_of(result) == [world.table.minimum("macs")[1]]


def test_limits_that_no_subnet_keeps_together_say_how_close_it_came(make_world, journal_path):
    world = make_world(n=4)
    limits = (Limit(metric="latency_ms", bound=1.05, device="board"), MACS)
    with pytest.raises(
        LimitError, match=r"none of the 81 .*1.1 ms .predicted. on board, limit 1.05"
    ):
        world.run(journal_path, SMALL, *limits)


def test_a_sampler_that_keeps_the_limit_is_used_where_random_draws_fail(make_world, journal_path):
    world = make_world(n=20)  # 3e9 subnets; a handful have at most 4 MMACs
    limit = Limit(metric="macs", bound=4e6)

    def propose(rng, n):
        small = [g for g in world_genes if g[0] + 2 * g[1] + 3 * g[2] <= 3]
        return [world.table.arch([*small[i], *[0] * 17]) for i in rng.integers(len(small), size=n)]

    world_genes = [(a, b, c) for a in range(3) for b in range(3) for c in range(3)]
    evaluator = world.evaluator(limit)
    asked = make_searcher(SMALL, evaluator, seed=0, propose=propose).ask()
    assert len(asked) == len(set(asked)) == 6  # 000 100 200 010 110 001
    assert all(world.table.cost(arch, "macs") <= 4e6 for arch in asked)


def test_limits_that_random_draws_never_keep_are_approached_by_breeding(make_world, journal_path):
    world = make_world(n=20)
    result = world.run(journal_path, SMALL, Limit(metric="macs", bound=20e6))
    assert result.n_evaluated == SMALL.n_candidates
    assert all(world.table.cost(arch, "macs") <= 20e6 for arch in archs_of(result))


def test_asking_twice_gives_the_same_generation(world, journal_path):
    evaluator = world.evaluator(MACS)
    searcher = make_searcher(SMALL, evaluator, seed=1)
    with Journal.open(journal_path, {}) as journal:
        search(searcher, evaluator, journal)
    again = make_searcher(SMALL, evaluator, seed=1)
    assert again.ask() == again.ask() == archs_of(searcher)[:20]


def test_a_searcher_goes_on_exactly_from_its_state(world, journal_path):
    evaluator = world.evaluator(MACS)
    make = lambda: make_searcher(SMALL, evaluator, seed=1)  # noqa: E731
    whole, first, second = make(), make(), make()
    with Journal.open(journal_path, {}) as journal:
        search(whole, evaluator, journal)
    first.tell(whole.archive[:20])
    first.tell(whole.archive[20:40])
    second.load_state_dict(first.state_dict())
    assert (second.generation, second.archive) == (2, whole.archive[:40])
    assert second.ask() == [e.arch for e in whole.archive[40:60]]


def test_a_cached_accuracy_is_not_scored_again(make_world, tmp_path):
    world, cache = make_world(), AccuracyCache()
    first = world.run(tmp_path / "a", SMALL, MACS, evaluator=world.evaluator(MACS, cache=cache))
    second = world.run(tmp_path / "b", SMALL, MACS, evaluator=world.evaluator(MACS, cache=cache))
    assert max(world.scored.values()) == 1
    assert (second.n_scored, second.n_cached) == (0, first.n_scored)
    assert second.archive == first.archive


def test_other_weights_or_another_batch_norm_policy_are_scored_anew(world):
    cache = AccuracyCache()
    arch = world.table.minimum("macs")[1]
    for supernet, policy in (("w1", "batch"), ("w2", "batch"), ("w2", "tracked"), ("w1", "batch")):
        evaluator = Evaluator(
            space=world, cost_table=world.table, score=world.score, cache=cache,
            supernet=supernet, bn_policy=policy,
        )  # fmt: skip
        evaluator.score(evaluator.screen([arch])[0])
    assert world.scored[arch] == len(cache) == 3


def test_a_limit_on_a_device_that_nothing_answers_for_is_refused(world):
    with pytest.raises(MissingLatencyError, match="nothing was measured on 'board'"):
        world.evaluator(LATENCY, latency={})


def test_an_accuracy_that_is_not_a_number_stops_the_search(world, journal_path):
    evaluator = world.evaluator(score=lambda arch: Score(accuracy=float("nan"), loss=0.0))
    with pytest.raises(DivergedError, match=r"accuracy of .* is nan"):
        world.run(journal_path, SMALL, evaluator=evaluator)


def flaky(world, faults, *, blames):
    """Latencies of the world; the first ``faults`` requests fail for every second network."""
    left = [faults]

    def latencies(archs):
        answers = world.latencies(archs)
        if left[0] > 0:
            left[0] -= 1
            error = MeasurementError("REBOOTED", "the board rebooted", blames=blames)
            return [error if i % 2 else answer for i, answer in enumerate(answers)]
        return answers

    return latencies


def test_a_fault_of_the_board_does_not_change_the_search(make_world, tmp_path):
    world = make_world()
    calm = world.run(tmp_path / "calm", SMALL, LATENCY)
    evaluator = world.evaluator(LATENCY, latency={"board": flaky(world, 1, blames="board")})
    shaken = world.run(tmp_path / "shaken", SMALL, LATENCY, evaluator=evaluator)
    assert shaken.archive == calm.archive


def test_a_board_that_stays_down_stops_the_search_and_the_next_call_goes_on(make_world, tmp_path):
    world = make_world()
    calm = world.run(tmp_path / "calm", SMALL, LATENCY)
    path = tmp_path / "down"
    down = world.evaluator(LATENCY, latency={"board": flaky(world, 2, blames="board")})
    with pytest.raises(MeasurementError, match="the board rebooted"):
        world.run(path, SMALL, LATENCY, evaluator=down)
    assert world.run(path, SMALL, LATENCY).archive == calm.archive


def test_a_network_that_crashes_the_device_itself_is_never_scored(world, journal_path):
    def crashing(archs):
        return [
            MeasurementError("RUN_CRASHED", "segmentation fault", blames="candidate")
            if arch["block0"] == "k5" else answer
            for arch, answer in zip(archs, world.latencies(archs), strict=True)
        ]  # fmt: skip

    evaluator = world.evaluator(LATENCY, latency={"board": crashing})
    result = world.run(journal_path, SMALL, evaluator=evaluator)
    assert {e.arch["block0"] for e in result.archive} == {"skip", "k3"}


def test_progress_counts_every_candidate_and_its_best_never_falls(world, journal_path):
    steps = []
    world.run(journal_path, SMALL, MACS, on_progress=steps.append)
    assert [p.n_done for p in steps] == list(range(1, 141))
    best = [p.best.accuracy for p in steps]
    assert best == sorted(best)


def test_a_thousand_candidates_cost_little_bookkeeping(make_world, journal_path):
    world = make_world(n=20)
    began = time.process_time()
    result = world.run(journal_path, SearchConfig(generations=19), latency(22.0))
    seconds = time.process_time() - began
    assert result.n_evaluated == 1000
    assert seconds < 1
