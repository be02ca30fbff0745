"""The search on a real landscape: trained accuracies of all 6,561 NAS-Bench-Macro subnets."""

import csv
import gzip
import os
from pathlib import Path
from statistics import median

import pytest

from pipeline.search.config import SearchConfig
from pipeline.search.evaluation import Score
from pipeline.search.evaluator import Evaluator
from pipeline.search.journal import Journal
from pipeline.search.limits import Limit, feasible_by_cost
from pipeline.search.operators import all_genes, sizes_of
from pipeline.search.run_search import make_searcher, search
from tests.bench.table_worlds import macro


def shared_data():
    given = os.environ.get("HILNAS_SHARED_DATA")
    here = Path(__file__).resolve().parents[3].parent / "shared" / "data"
    return (Path(given) if given else here) / "nasbench" / "nas_bench_macro.csv.gz"


@pytest.fixture(scope="module")
def accuracies():
    if not shared_data().is_file():
        pytest.skip(f"{shared_data()} is not there; HILNAS_SHARED_DATA names the folder")
    with gzip.open(shared_data(), "rt", newline="") as stream:
        return {row["arch"]: float(row["mean_acc"]) for row in csv.DictReader(stream)}


@pytest.fixture(scope="module")
def space():
    from pipeline.spaces import load_space

    return load_space("nasbench_macro", preset="paper", input_shape=(3, 32, 32), n_classes=10)


@pytest.mark.parametrize(
    ("macs", "best_accuracy", "n_feasible"),
    [(40e6, 91.5067, 932), (60e6, 92.5667, 4075), (80e6, 93.0800, 6270)],
)
def test_evolution_comes_within_two_tenths_of_the_best_under_a_macs_limit(
    space, accuracies, tmp_path, macs, best_accuracy, n_feasible
):
    def score(arch):
        genome = "".join(str(gene) for gene in arch.genes(space.decisions))
        return Score(accuracy=accuracies[genome], loss=0.0)

    limit = Limit(metric="macs", bound=macs)
    evaluator = Evaluator(space=space, cost_table=space.cost_table(), score=score, limits=[limit])
    genes = all_genes(sizes_of(space.decisions))
    assert feasible_by_cost(space.cost_table(), genes, [limit]).sum() == n_feasible
    searcher = make_searcher(SearchConfig(generations=9), evaluator, seed=0)
    with Journal.open(tmp_path / "search.jsonl", {}) as journal:
        result = search(searcher, evaluator, journal)
    found = max(e.accuracy for e in result.archive)
    assert best_accuracy - 0.2 <= found <= best_accuracy
    assert result.n_evaluated == 500
    assert all(e.costs["macs"] <= macs for e in result.archive)


@pytest.mark.long
def test_assisted_nsga2_has_the_front_of_plain_nsga2_after_a_third_of_the_evaluations(
    accuracies, tmp_path
):
    world = macro(shared_data().parents[1])

    def share(name, seed, **settings):
        evaluator = world.evaluator(limited=False)
        searcher = make_searcher(SearchConfig(method="nsga2", **settings), evaluator, seed=seed)
        with Journal.open(tmp_path / f"{name}{seed}.jsonl", {}) as journal:
            archive = search(searcher, evaluator, journal).archive
        rows = world.rows([world.place[e.arch] for e in archive])
        return len(archive), world.hypervolume(rows)

    few, assisted = zip(
        *(share("assisted", s, assisted=True, population=25, generations=12) for s in range(7)),
        strict=True,
    )
    many, plain = zip(*(share("plain", s, generations=19) for s in range(7)), strict=True)
    assert max(few) * 3 <= min(many)
    assert median(assisted) >= median(plain)
