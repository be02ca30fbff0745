"""What the benchmark of searchers stands on: the tables, the hypervolume, the rival."""

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.search.config import SearchConfig
from tests.bench.table_worlds import macro


@pytest.fixture(scope="module")
def world():
    given = os.environ.get("HILNAS_SHARED_DATA")
    here = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    data = Path(given) if given else here
    if not (data / "nasbench" / "nas_bench_macro.csv.gz").is_file():
        pytest.skip(f"{data} is not there; HILNAS_SHARED_DATA names the folder")
    return macro(data)


def test_the_table_has_the_published_front_and_the_space_the_published_costs(world):
    assert len(world.front) == 35
    assert world.accuracy.max() == 93.1267
    np.testing.assert_array_equal(world.space.cost_table().column("macs", world.genes), world.cost)


def test_hypervolume_is_one_for_the_true_front_and_less_without_a_part_of_it(world):
    assert world.hypervolume(world.front) == pytest.approx(1.0)
    inner = world.front[world.front[:, 0] < 15]
    assert world.hypervolume(inner[::2]) < 1.0
    assert world.hypervolume(inner[:0].reshape(0, 2)) == 0.0


def test_both_rivals_evaluate_as_many_subnets_as_asked_for(world):
    pytest.importorskip("pymoo")
    from tests.bench.pymoo_nsga2 import RIVALS

    for rival in RIVALS.values():
        places = rival(world, 0, 120)
        assert len(places) == 120
        assert all(0 <= at < len(world.genes) for at in places)


def test_a_search_on_a_table_evaluates_as_many_subnets_as_asked_for(world):
    pytest.importorskip("pymoo")
    from tests.bench.search_tables import run

    config = SearchConfig(method="nsga2", population=10, generations=3)
    places, (wall, processor) = run(world, config, 0, limited=True)
    assert len(set(places)) == 40
    assert (world.cost[places] <= world.bound).all()
    assert min(wall, processor) > 0
