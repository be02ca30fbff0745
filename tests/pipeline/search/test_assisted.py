"""Predictor-assisted search: what is predicted chooses whom to score, and nothing else."""

import time

import moocore
import numpy as np
import pytest
from scipy.stats import spearmanr

from pipeline.search.assisted import MIN_SCORED, Assistant, predict_merit
from pipeline.search.config import SearchConfig
from pipeline.search.evaluation import Evaluation, Score
from pipeline.search.limits import Limit
from pipeline.search.operators import random_genes, sizes_of
from pipeline.search.run_search import make_searcher

SMALL = SearchConfig(
    population=10, parents=5, crossover=5, mutation=5, generations=5, assisted=True
)
NSGA2 = SMALL.model_copy(update={"method": "nsga2"})
CONFIGS = pytest.mark.parametrize("config", [SMALL, NSGA2], ids=["evolution", "nsga2"])
MACS = Limit(metric="macs", bound=22e6)


def evaluations(world, archs, **score):
    return [
        Evaluation(candidate=c, score=Score(accuracy=world.accuracy(c.arch), **score))
        for c in world.evaluator().screen(archs)
    ]


@pytest.fixture
def drawn(make_world):
    """A world, 100 subnets of it whose accuracies are known, and 200 others."""
    world = make_world(n=8)
    genes = random_genes(np.random.default_rng(0), sizes_of(world.decisions), 300)
    archs = list(dict.fromkeys(world.table.arch(g) for g in genes))
    return world, archs[:100], archs[100:]


def test_predictions_rank_subnets_that_were_never_scored(drawn):
    world, known, others = drawn
    assistant = Assistant(space=world, screen=world.evaluator().screen)
    predicted = assistant.predict(others, evaluations(world, known))
    assert [e.arch for e in predicted] == others
    truth = np.array([world.accuracy(arch) for arch in others])
    guess = np.array([e.accuracy for e in predicted])
    macs = np.array([e.costs["macs"] for e in predicted])
    by_model, by_macs = (spearmanr(truth, x).statistic for x in (guess, macs))
    assert by_model > 0.95 > by_macs
    assert abs(guess - truth).mean() < 0.3 * truth.std()


def test_what_is_predicted_is_the_same_whenever_it_is_asked(drawn):
    world, known, others = drawn
    told = evaluations(world, known)
    one, two = (
        Assistant(space=world, screen=world.evaluator().screen).predict(others, told)
        for _ in range(2)
    )
    assert one == two


def test_accuracies_of_subnets_that_were_given_up_early_teach_nothing(drawn):
    world, known, others = drawn
    assistant = Assistant(space=world, screen=world.evaluator().screen)
    whole = evaluations(world, known)
    misleading = [
        Evaluation(candidate=e.candidate, score=Score(accuracy=-e.accuracy, complete=False))
        for e in evaluations(world, others[:50])
    ]
    expected = [e.accuracy for e in assistant.predict(others, whole)]
    found = [e.accuracy for e in assistant.predict(others, [*whole, *misleading])]
    assert found == expected


def test_nothing_is_predicted_from_a_handful(drawn):
    world, known, others = drawn
    assistant = Assistant(space=world, screen=world.evaluator().screen)
    assert assistant.predict(others, evaluations(world, known[: MIN_SCORED - 1])) == []


def test_accuracies_that_are_all_equal_are_predicted_as_they_are():
    choices = np.eye(4)[[0, 1, 2, 3, 0]]
    found = predict_merit(np.full(4, 0.7), choices, np.empty((5, 0)))
    assert found == pytest.approx([0.7])


def test_predicting_twenty_children_each_takes_well_under_a_second(make_world):
    world = make_world(n=20)
    genes = random_genes(np.random.default_rng(0), sizes_of(world.decisions), 1500)
    archs = [world.table.arch(g) for g in genes]
    told = evaluations(world, archs[:500])
    assistant = Assistant(space=world, screen=world.evaluator().screen)
    assistant.predict(archs[500:], told)
    began = time.process_time()
    assistant.predict(archs[500:], told)
    assert time.process_time() - began < 1


@CONFIGS
def test_every_accuracy_in_the_archive_is_a_real_one(make_world, journal_path, config):
    world = make_world(n=8)
    result = world.run(journal_path, config, MACS)
    assert result.n_evaluated == result.n_scored == config.n_candidates == 60
    assert [e.accuracy for e in result.archive] == [world.accuracy(e.arch) for e in result.archive]
    assert set(world.scored) == {e.arch for e in result.archive}
    assert all(e.feasible for e in result.archive)
    assert sorted({e.generation for e in result.archive}) == list(range(6))


@CONFIGS
def test_a_resumed_search_asks_for_the_same(make_world, journal_path, config):
    world = make_world(n=8)
    whole = world.run(journal_path, config, MACS).archive
    first, second = (make_searcher(config, world.evaluator(MACS), seed=0) for _ in range(2))
    for start in (0, 10, 20):
        first.tell(whole[start : start + 10])
    second.load_state_dict(first.state_dict())
    assert first.ask() == first.ask() == second.ask() == [e.arch for e in whole[30:40]]


def test_assistance_finds_more_accurate_subnets_with_as_many_scored(make_world, tmp_path):
    world = make_world(n=12)

    def best(assisted, seed):
        config = SMALL.model_copy(update={"assisted": assisted, "generations": 4})
        archive = world.run(tmp_path / f"{assisted}{seed}", config, MACS, seed=seed).archive
        return max(e.accuracy for e in archive)

    gains = [best(True, seed) - best(False, seed) for seed in range(3)]
    assert min(gains) >= 0
    assert max(gains) > 0


@pytest.mark.parametrize("seed", range(2))
def test_assistance_finds_a_better_front_with_a_third_of_the_subnets_scored(
    make_world, tmp_path, seed
):
    world = make_world(n=8)

    def front(assisted, generations):
        config = SearchConfig(
            method="nsga2", population=20, generations=generations, assisted=assisted
        )
        archive = world.run(tmp_path / f"{assisted}", config, seed=seed).archive
        rows = np.array([[1 - e.accuracy, e.costs["macs"] / 1e8] for e in archive])
        return len(archive), moocore.hypervolume(rows, ref=[1, 1])

    (few, assisted), (many, plain) = front(True, 5), front(False, 17)
    assert few * 3 == many
    assert assisted > plain


def test_a_small_space_is_searched_to_its_end(make_world, journal_path):
    world = make_world(n=4)
    config = NSGA2.model_copy(update={"generations": 20})
    result = world.run(journal_path, config)
    assert result.exhausted
    assert result.n_evaluated == 81
