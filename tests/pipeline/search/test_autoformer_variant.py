"""AutoFormer's evolution: other chances for genes of the whole network, sound children."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency_tables.arch import check_arch
from latency_tables.errors import UsageError
from pipeline.search.config import SearchConfig
from pipeline.search.evaluation import Evaluation, Score
from pipeline.search.evaluator import Evaluator
from pipeline.search.evolution import dormant, mutation_chances
from pipeline.search.operators import archs_of, crossover, genes_of, mutate, sizes_of
from pipeline.search.run_search import make_searcher
from pipeline.spaces import load_space

CHANCES = {"depth": 0.4, "embed_dim": 0.4}
AUTOFORMER = SearchConfig(
    population=20,
    parents=10,
    crossover=10,
    mutation=10,
    mutation_probability=0.2,
    mutation_probabilities=CHANCES,
)


@pytest.fixture(scope="module")
def space():
    return load_space("autoformer", preset="micro", input_shape=(3, 16, 16), n_classes=10)


def test_depth_and_embedding_are_drawn_anew_twice_as_often_as_the_rest(space):
    sizes = sizes_of(space.decisions)
    chances = mutation_chances(space.decisions, 0.2, CHANCES)
    rng = np.random.default_rng(0)
    genes = np.zeros((4000, len(sizes)), dtype=np.int64)
    changed = (mutate(rng, genes, sizes, chances) != 0).mean(axis=0) / (1 - 1 / sizes)
    labels = [d.label for d in space.decisions]
    own = np.array([label in CHANCES for label in labels])
    assert changed[own] == pytest.approx(0.4, abs=0.04)
    assert changed[~own] == pytest.approx(0.2, abs=0.04)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_children_of_parents_of_different_depth_are_networks_of_the_space(space, seed):
    rng = np.random.default_rng(seed)
    shallow, deep = space.sizes.depths[0], space.sizes.depths[-1]
    parents = [space.sample(rng).replace(depth=d) for d in (shallow, deep)]
    genes = genes_of(space.decisions, parents)
    children = np.repeat(genes[:1], 8, axis=0), np.repeat(genes[1:], 8, axis=0)
    mixed = crossover(rng, *children)
    varied = mutate(
        rng, mixed, sizes_of(space.decisions), mutation_chances(space.decisions, 0.2, CHANCES)
    )
    for child in archs_of(space.decisions, np.concatenate([mixed, varied])):
        check_arch(space.decisions, child)
        subnet = space.subnet(child)
        assert len(subnet.blocks()) == child["depth"]
        assert space.validate(child) is None


def test_genes_of_absent_blocks_are_dormant_and_no_others(space):
    arch = space.sample(np.random.default_rng(0)).replace(depth=space.sizes.depths[0])
    (asleep,) = dormant(space, [arch])
    labels = {d.label for d, is_asleep in zip(space.decisions, asleep, strict=True) if is_asleep}
    absent = range(space.sizes.depths[0] + 1, space.sizes.depths[-1] + 1)
    assert labels == {f"block{i:02d}_{what}" for i in absent for what in ("heads", "mlp_ratio")}


def test_blocks_that_a_mutation_wakes_get_genes_drawn_anew(space):
    evaluator = Evaluator(
        space=space, cost_table=space.cost_table(), score=lambda _: Score(accuracy=0.5)
    )
    config = AUTOFORMER.model_copy(
        update={"population": 50, "crossover": 0, "mutation": 50, "parents": 1}
    )
    searcher = make_searcher(config, evaluator, seed=0)
    shallow = space.canonical(
        space.sample(np.random.default_rng(0)).replace(depth=space.sizes.depths[0])
    )
    searcher.tell(
        [Evaluation(candidate=c, score=Score(accuracy=0.5)) for c in evaluator.screen([shallow])]
    )
    deepest = space.sizes.depths[-1]
    woken = [a[f"block{deepest:02d}_mlp_ratio"] for a in searcher.ask() if a["depth"] == deepest]
    assert len(woken) > 2
    assert len(set(woken)) > 1  # with a chance of 0.2 alone most would be the first choice


def test_chances_of_a_decision_that_the_space_lacks_are_refused(world):
    config = SearchConfig(mutation_probabilities={"depth": 0.4})
    with pytest.raises(UsageError, match="no decision of this space is called 'depth'; there are"):
        make_searcher(config, world.evaluator(), seed=0)


def test_a_pattern_names_several_decisions_and_the_first_that_fits_counts(world):
    chances = mutation_chances(world.decisions, 0.1, {"block1": 0.9, "block*": 0.3})
    assert chances.tolist() == [0.3, 0.9, 0.3, 0.3, 0.3, 0.3]


def test_the_numbers_of_the_paper_give_its_thousand_and_fifty_candidates():
    config = SearchConfig(mutation_probability=0.2, mutation_probabilities=CHANCES)
    assert (config.population, config.parents, config.crossover, config.mutation) == (
        50,
        10,
        25,
        25,
    )
    assert config.n_candidates == 1050
