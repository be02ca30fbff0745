"""Successive halving on images that are right or wrong by formula."""

from collections import Counter

import numpy as np
import pytest

from latency_tables.errors import RunError, UsageError
from pipeline.search.config import SearchConfig
from pipeline.search.evaluation import Candidate, Evaluation, Score, comparable
from pipeline.search.evaluator import AccuracyCache
from pipeline.search.front import choose_winner, pareto_front
from pipeline.search.generation import OneWorker
from pipeline.search.halving import Halving, cost_share, rung_ends
from pipeline.search.journal import Journal, read_journal
from pipeline.search.limits import Limit
from pipeline.search.measuring import LiveMeasurer
from pipeline.search.run_search import make_searcher, search, search_identity
from pipeline.supernet.tally import Tally

CONFIG = SearchConfig(
    population=16, parents=4, crossover=6, mutation=6, generations=3, halving=3, images=64
)
LIMITS = (Limit(metric="latency_ms", bound=3.0, device="board"),)
ENDS = (16, 32, 64)


class Images:
    """A scorer: image j is right where a number that is the image's own is below the accuracy.

    So a part of the images says of all candidates alike whether they do better or worse than on
    all of them, plus ``noise`` that is a candidate's own.
    """

    def __init__(self, world, ends=ENDS, noise=0.05):
        self.world, self.ends, self.noise = world, ends, noise
        self.asked = []
        self.seen = Counter()
        self.forgotten = 0
        self.levels = np.random.default_rng(0).permutation(ends[-1]) / ends[-1]

    def right(self, arch):
        """Which of all images (N,) are classified correctly."""
        own = np.random.default_rng(arch.genes(self.world.decisions))
        noisy = self.levels + own.normal(0, self.noise, len(self.levels))
        return noisy < self.world.accuracy(arch)

    def tally(self, arch, rung=0, before=None):
        first = 0 if before is None else self.ends[rung - 1]
        assert before is None or before.n_images == first
        part = self.right(arch)[first : self.ends[rung]]
        self.asked.append((arch, rung))
        self.seen[arch] += len(part)
        new = Tally(n_right=int(part.sum()), loss_sum=0.5 * len(part), n_images=len(part))
        return new if before is None else before + new

    def forget(self):
        self.forgotten += 1


def run(world, path, images, *, config=CONFIG, limits=LIMITS, cache=None, on_progress=None):
    evaluator = world.evaluator(*limits, cache=cache)
    searcher = make_searcher(config, evaluator, seed=0)
    identity = search_identity(config, evaluator, seed=0, space_id="world")
    with Journal.open(path, identity) as journal:
        scoring = Halving(evaluator, OneWorker(images), journal, n_rungs=len(images.ends))
        return search(searcher, evaluator, journal, scoring=scoring, on_progress=on_progress)


@pytest.mark.parametrize(("n_rungs", "share"), [(2, 3 / 4), (3, 1 / 2), (4, 5 / 16)])
def test_a_generation_costs_the_share_of_all_images_that_the_module_promises(
    world, journal_path, n_rungs, share
):
    images = Images(world, rung_ends(64, n_rungs))
    result = run(world, journal_path, images)
    assert share == cost_share(n_rungs)
    assert images.seen.total() == pytest.approx(share * 64 * result.n_evaluated)
    assert images.forgotten == result.n_generations


def test_after_each_rung_the_more_accurate_half_goes_on_and_of_equal_ones_the_first(
    world, journal_path
):
    images = Images(world, noise=0.0)  # few levels, so there are ties
    result = run(world, journal_path, images)
    found = read_journal(journal_path)
    ties = 0
    for generation, candidates in enumerate(found.generations):
        going = list(range(len(candidates)))
        for rung in (0, 1):
            right = [found.rungs[generation, rung, i].n_right for i in going]
            kept = [going[i] for i in np.argsort([-r for r in right], kind="stable")]
            kept = kept[: (len(going) + 1) // 2]
            ties += len(set(right)) < len(right)
            climbed = [i for i in going if (generation, rung + 1, i) in found.rungs]
            assert climbed == sorted(kept)
            going = climbed
    assert ties
    assert [e.score.complete for e in result.archive].count(True) == 4 * result.n_generations


def test_what_reached_the_last_rung_has_the_score_of_all_images(world, journal_path):
    images = Images(world)
    result = run(world, journal_path, images)
    for evaluation in result.archive:
        score = evaluation.score
        right = images.right(evaluation.arch)[: score.n_images]
        assert score.accuracy == right.mean()
        assert score.complete == (score.n_images == 64)
        assert images.seen[evaluation.arch] == score.n_images  # no image twice
    assert {e.score.n_images for e in result.archive} == set(ENDS)


def test_what_was_given_up_stands_behind_everything_that_saw_all_images(world, journal_path):
    result = run(world, journal_path, Images(world))
    complete = {e.arch for e in result.archive if e.score.complete}
    lucky = [e for e in result.archive if not e.score.complete]
    worst = min(e.accuracy for e in result.archive if e.score.complete)
    assert max(e.accuracy for e in lucky) > worst  # or this test shows nothing

    searcher = make_searcher(CONFIG, world.evaluator(*LIMITS), seed=0)
    searcher.tell(result.archive)
    assert {e.arch for e in searcher.best(len(complete))} == complete
    assert {e.arch for e in pareto_front(result.archive)} <= complete
    with Journal.open(journal_path.with_name("front.jsonl"), {}) as journal:
        measurer = LiveMeasurer(sources={"board": world.latencies}, journal=journal)
        front = choose_winner(result.archive, LIMITS, measurer, front_size=8)
    assert {p.arch for p in front.points} <= complete
    assert front.winner.evaluation.score.complete


def test_the_progress_never_calls_a_given_up_candidate_the_best(world, journal_path):
    best = []
    run(world, journal_path, Images(world), on_progress=lambda p: best.append(p.best))
    known = [e.score.complete for e in best if e is not None]
    first = known.index(True)
    assert all(known[first:])


@pytest.mark.parametrize("seed", range(5))
def test_the_winner_of_scoring_everyone_on_all_images_is_kept(make_world, tmp_path, seed):
    world = make_world(n=6)
    images = Images(world, rung_ends(256, 3), noise=0.02)
    archs = list(dict.fromkeys(_drawn(world, 50, seed)))
    candidates = [Candidate(arch=arch, costs={}) for arch in archs]
    with Journal.open(tmp_path / "search.jsonl", {}) as journal:
        journal.asked(0, candidates)
        scoring = Halving(world.evaluator(), OneWorker(images), journal, n_rungs=3)
        scores = list(scoring.scores(0, candidates, []))
    full = [images.right(arch).mean() for arch in archs]
    kept = [s.accuracy if s.complete else -1.0 for s in scores]
    assert max(kept) == max(full)
    assert 0.4 < images.seen.total() / (256 * len(archs)) < 0.6


def _drawn(world, n, seed):
    genes = np.random.default_rng(seed).integers(0, 3, (n, world.n))
    return [world.table.arch(row) for row in genes]


def test_a_candidate_that_breaks_a_limit_goes_on_last(world, tmp_path):
    images = Images(world, (4, 8))
    archs = sorted(set(_drawn(world, 8, 1)), key=world.accuracy, reverse=True)[:4]
    broken = [  # the more accurate half breaks a limit
        Candidate(arch=arch, costs={}, violation=0.1 if i < 2 else 0.0)
        for i, arch in enumerate(archs)
    ]
    with Journal.open(tmp_path / "search.jsonl", {}) as journal:
        journal.asked(0, broken)
        scoring = Halving(world.evaluator(), OneWorker(images), journal, n_rungs=2)
        scores = list(scoring.scores(0, broken, []))
    assert [s.complete for s in scores] == [False, False, True, True]


def test_a_search_killed_after_any_line_ends_alike_and_counts_nothing_twice(make_world, tmp_path):
    finished = tmp_path / "finished.jsonl"
    archive = run(make_world(), finished, Images(make_world())).archive
    data = finished.read_bytes()
    lines = data.splitlines(keepends=True)
    counts = sum(b'"kind":"rung"' in line for line in lines)
    for n in (*range(0, len(lines), 5), len(lines) - 1):
        path, world = tmp_path / "killed.jsonl", make_world()
        path.write_bytes(b"".join(lines[:n]) + lines[n][: len(lines[n]) // 2])
        images = Images(world)
        assert run(world, path, images).archive == archive
        assert path.read_bytes() == data
        known = sum(b'"kind":"rung"' in line for line in lines[:n])
        assert len(images.asked) == counts - known


def test_a_complete_score_of_another_search_costs_nothing_and_displaces_nobody(
    make_world, tmp_path
):
    world, cache = make_world(), AccuracyCache()
    first = Images(world)
    known = run(world, tmp_path / "first.jsonl", first, cache=cache)
    second = Images(world)
    config = CONFIG.model_copy(update={"generations": 0})
    again = run(world, tmp_path / "second.jsonl", second, config=config, cache=cache)
    complete = {e.arch for e in known.archive if e.score.complete}
    met = [e for e in again.archive if e.arch in complete]
    assert len(met) == 4 == again.n_cached
    assert not {e.arch for e in met} & set(second.seen)
    assert sum(e.score.complete for e in again.archive) == 4 + 3  # of the 12 others


def test_a_rung_that_does_not_follow_is_refused_with_the_number_of_its_line(world, journal_path):
    run(world, journal_path, Images(world))
    lines = journal_path.read_bytes().splitlines(keepends=True)
    second = next(i for i, line in enumerate(lines) if b'"rung":1' in line)
    journal_path.write_bytes(b"".join([*lines[:2], lines[second], *lines[2:]]))
    with pytest.raises(RunError, match="line 3 is damaged"):
        read_journal(journal_path)


def test_where_nothing_that_keeps_the_limits_was_fully_scored_the_rest_is_compared():
    def evaluation(violation, complete):
        candidate = Candidate(arch=None, costs={}, violation=violation)
        return Evaluation(candidate=candidate, score=Score(accuracy=0.5, complete=complete))

    full, early = evaluation(0.0, True), evaluation(0.0, False)
    assert comparable([early, full]) == [full]
    broken = evaluation(1.0, True)
    assert comparable([early, broken]) == [early, broken]


def test_rungs_that_do_not_double_are_refused():
    assert rung_ends(7, 3) == (2, 4, 7)
    assert rung_ends(1, 1) == (1,)
    with pytest.raises(UsageError, match="2 batches of images cannot be cut into 3 rungs"):
        rung_ends(2, 3)
    with pytest.raises(UsageError, match="at least 2"):
        Halving(None, None, None, n_rungs=1)


def test_halving_and_shifting_exclude_each_other():
    with pytest.raises(ValueError, match="leave one of the two out"):
        SearchConfig(halving=2, shifting=True)


def test_settings_that_score_as_before_leave_the_journal_of_before_valid():
    assert not {"images", "halving", "precision"} & SearchConfig().lineage().keys()
    given = SearchConfig(images=10, halving=2, precision="auto").lineage()
    assert {"images": 10, "halving": 2, "precision": "auto"}.items() <= given.items()


@pytest.mark.parametrize("method", ["evolution", "nsga2", "random"])
def test_halving_fits_every_way_to_search(world, journal_path, method):
    config = CONFIG.model_copy(update={"method": method, "evaluations": 64})
    result = run(world, journal_path, Images(world), config=config)
    assert result.n_evaluated == 64
    complete = {e.arch for e in result.archive if e.score.complete}
    assert len(complete) == 16
    searcher = make_searcher(config, world.evaluator(*LIMITS), seed=0)
    searcher.tell(result.archive)
    assert {e.arch for e in searcher.best(16)} == complete
