"""A search that starts from subnets that training found good."""

from __future__ import annotations

import numpy as np

from pipeline.search.config import SearchConfig
from pipeline.search.evolution import EvolutionSearch
from pipeline.spaces import load_space


def test_evolution_starts_with_the_given_subnets_that_keep_the_limits() -> None:
    space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    rng = np.random.default_rng(0)
    given = [space.sample(rng) for _ in range(6)]
    searcher = EvolutionSearch(
        SearchConfig(population=10, parents=2, crossover=2, mutation=2),
        space=space,
        violations=lambda archs: [float(arch in given[::2]) for arch in archs],
        seed=0,
        initial=given,
    )
    asked = searcher.ask()
    assert asked[:3] == given[1::2]
    assert len(set(asked)) == 10
