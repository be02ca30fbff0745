"""What all searchers share: candidates told again, and the best of what was told."""

import pytest

from pipeline.search.config import SearchConfig
from pipeline.search.evaluation import Evaluation, Score
from pipeline.search.run_search import make_searcher

SMALL = SearchConfig(population=20, parents=5, crossover=8, mutation=8, generations=6)
METHODS = ["evolution", "nsga2", "random"]


def told(searcher, evaluator, accuracy, *, generations=1):
    """Ask and tell, with accuracies by (generation, architecture)."""
    for generation in range(searcher.generation, searcher.generation + generations):
        searcher.tell(
            [
                Evaluation(
                    candidate=candidate,
                    score=Score(accuracy=accuracy(generation, candidate.arch)),
                    generation=generation,
                )
                for candidate in evaluator.screen(searcher.ask())
            ]
        )


@pytest.mark.parametrize("method", METHODS)
def test_with_repeat_a_candidate_comes_again_in_a_later_generation_only(make_world, method):
    world = make_world(n=3, merged=True)  # 9 subnets that differ
    config = SearchConfig(
        method=method, population=6, parents=3, crossover=2, mutation=2, generations=9
    )
    evaluator = world.evaluator()
    searcher = make_searcher(config, evaluator, seed=0, repeat=True)
    told(searcher, evaluator, lambda _, arch: world.accuracy(arch), generations=5)
    asked = [world.canonical(e.arch) for e in searcher.archive]
    assert len(asked) == 30 > len(set(asked))
    for start in range(0, 30, 6):
        assert len(set(asked[start : start + 6])) == 6


def test_without_repeat_no_candidate_comes_again(make_world):
    world = make_world(n=3, merged=True)
    evaluator = world.evaluator()
    searcher = make_searcher(SMALL, evaluator, seed=0)
    told(searcher, evaluator, lambda _, arch: world.accuracy(arch))
    assert len(searcher.archive) == 9
    assert searcher.ask() == []


def test_the_newest_evaluation_of_a_canonical_form_counts_among_the_best(make_world):
    world = make_world(n=3, merged=True)
    evaluator = world.evaluator()
    searcher = make_searcher(SMALL, evaluator, seed=0, repeat=True)
    falling = lambda generation, arch: world.accuracy(arch) - generation  # noqa: E731
    told(searcher, evaluator, falling, generations=3)
    best = searcher.best(100)
    keys = [world.canonical(e.arch) for e in best]
    assert len(keys) == len(set(keys)) == 9
    assert {e.generation for e in best} == {2}
    assert [e.accuracy for e in best] == sorted((e.accuracy for e in best), reverse=True)


def test_a_searcher_with_repeats_goes_on_exactly_from_its_state(make_world):
    world = make_world(n=4)
    evaluator = world.evaluator()
    make = lambda: make_searcher(SMALL, evaluator, seed=2, repeat=True)  # noqa: E731
    first, second = make(), make()
    told(first, evaluator, lambda g, arch: world.accuracy(arch) + 0.1 * g, generations=4)
    second.load_state_dict(first.state_dict())
    assert second.best(100) == first.best(100)
    assert second.ask() == first.ask()
