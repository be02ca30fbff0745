"""Ordering candidates by their loss instead of their accuracy."""

import numpy as np
import pytest

from latency_tables.arch import Arch
from pipeline.search.assisted import MIN_SCORED, Assistant
from pipeline.search.config import SearchConfig
from pipeline.search.evaluation import Candidate, Evaluation, Score
from pipeline.search.front import choose_winner, pareto_front
from pipeline.search.generation import OneWorker
from pipeline.search.halving import Halving
from pipeline.search.journal import Journal, read_journal
from pipeline.search.limits import Limit
from pipeline.search.measuring import LiveMeasurer
from pipeline.search.run_search import make_searcher, search, search_identity
from pipeline.supernet.tally import Tally

CONFIG = SearchConfig(
    population=20, parents=5, crossover=8, mutation=8, generations=6, rank_by="loss"
)
LIMIT = Limit(metric="latency_ms", bound=2.6, device="board")


def loss_of(world, arch):
    """Falls with accuracy in some decisions and rises in others: no monotone map of it."""
    genes = np.array(arch.genes(world.decisions), dtype=float)
    return float(3.0 - (genes * [1, -1, 1, -1, 1, -1]).sum() / 10)


def scorer(world):
    def score(arch):
        return Score(accuracy=world.accuracy(arch), loss=loss_of(world, arch), n_images=100)

    return score


def feasible(world):
    return [a for a in world.everything() if world.latencies_ms([a])[0] <= LIMIT.bound]


@pytest.mark.parametrize("method", ["evolution", "random", "nsga2"])
def test_a_search_by_loss_finds_the_lowest_loss_within_the_limit(world, journal_path, method):
    config = CONFIG.model_copy(update={"method": method, "evaluations": 120, "generations": 12})
    evaluator = world.evaluator(LIMIT, score=scorer(world), rank_by="loss")
    result = world.run(journal_path, config, LIMIT, evaluator=evaluator)
    kept = [e for e in result.archive if e.feasible]
    lowest = min(loss_of(world, a) for a in feasible(world))
    assert min(e.score.loss for e in kept) == pytest.approx(lowest, abs=0.11)
    with Journal.open(journal_path.with_name("front.jsonl"), {}) as journal:
        measurer = LiveMeasurer(sources={"board": world.latencies}, journal=journal)
        front = choose_winner(result.archive, [LIMIT], measurer)
    assert front.winner.evaluation.score.loss == min(e.score.loss for e in kept)
    assert front.objectives[0] == "loss"


def test_a_search_by_accuracy_ends_elsewhere(world, journal_path):
    config = CONFIG.model_copy(update={"rank_by": "accuracy"})
    result = world.run(
        journal_path, config, LIMIT, evaluator=world.evaluator(LIMIT, score=scorer(world))
    )
    front = pareto_front(result.archive)
    assert front[0].accuracy == max(e.accuracy for e in result.archive)
    assert front[0].score.loss > min(e.score.loss for e in result.archive)


def test_the_journal_keeps_what_scores_are_ordered_by(world, journal_path):
    evaluator = world.evaluator(LIMIT, score=scorer(world), rank_by="loss")
    world.run(journal_path, CONFIG, LIMIT, evaluator=evaluator)
    scores = [s for generation in read_journal(journal_path).scores for s in generation]
    assert {s.merit for s in scores} == {-s.loss for s in scores}


def test_scores_by_accuracy_are_journalled_as_they_always_were():
    assert "rank_by" not in Score(accuracy=0.5, loss=1.0).to_dict()
    assert "rank_by" not in SearchConfig().in_use()
    assert SearchConfig(rank_by="loss").score_key() == "recalibrate, by loss"


def test_a_loss_that_is_not_a_number_comes_last():
    def scored(**score):
        return Evaluation(
            candidate=Candidate(arch=Arch({}), costs={}), score=Score(rank_by="loss", **score)
        )

    nobody, good = scored(accuracy=0.9, loss=None), scored(accuracy=0.1, loss=9.0)
    assert sorted([nobody, good], key=lambda e: e.standing) == [good, nobody]


def test_rungs_keep_those_with_the_lower_loss(world, journal_path):
    class Images:
        """Everyone gets the same accuracy; losses differ."""

        def tally(self, arch, rung=0, before=None):
            n = 16 if rung == 0 else 48
            new = Tally(n_right=n // 2, loss_sum=n * loss_of(world, arch), n_images=n)
            return new if before is None else before + new

        def forget(self):
            pass

    config = CONFIG.model_copy(update={"generations": 0, "halving": 2})
    evaluator = world.evaluator(LIMIT, rank_by="loss")
    searcher = make_searcher(config, evaluator, seed=0)
    identity = search_identity(config, evaluator, seed=0, space_id="world")
    with Journal.open(journal_path, identity) as journal:
        scoring = Halving(evaluator, OneWorker(Images()), journal, n_rungs=2)
        archive = search(searcher, evaluator, journal, scoring=scoring).archive
    whole = [e.score.loss for e in archive if e.score.complete]
    given_up = [e.score.loss for e in archive if not e.score.complete]
    assert len(whole) == len(given_up) == 10
    assert max(whole) <= min(given_up)


def test_predictions_are_of_the_loss_where_that_is_what_orders(world):
    evaluator = world.evaluator(score=scorer(world), rank_by="loss")
    archs = world.everything()
    known = [
        Evaluation(candidate=c, score=evaluator.score(c)[0])
        for c in evaluator.screen(archs[:: len(archs) // (4 * MIN_SCORED)])
    ]
    found = Assistant(space=world, screen=evaluator.screen).predict(archs[5:105], known)
    true = [-loss_of(world, e.arch) for e in found]
    assert np.corrcoef([e.merit for e in found], true)[0, 1] > 0.8
