"""The NAS-Bench-Macro space against the benchmark's own figures."""

from __future__ import annotations

import csv
import gzip
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from latency_tables.sampler import EliminationSampler, EnumerationSampler
from pipeline.export.record import graph_of
from pipeline.spaces import load_space
from pipeline.spaces.nasbench_macro import arch_of_genome

torch.set_num_threads(1)

SPACE = load_space("nasbench_macro", preset="paper", input_shape=(3, 32, 32), n_classes=10)

# genome: (parameters, MACs) as the benchmark's file has them
PUBLISHED = {
    "00000000": (387_882, 7_713_280),
    "00000001": (791_594, 14_115_328),
    "00000002": (1_219_370, 20_910_592),
    "00000010": (791_594, 14_115_328),
    "01201201": (1_283_434, 46_109_184),
    "11111111": (1_588_874, 53_246_464),
    "22222222": (2_932_586, 105_660_928),
    "22212220": (1_985_514, 85_164_544),
    "10000000": (396_298, 12_128_768),
    "02012012": (2_006_186, 62_677_504),
    "12012012": (2_014_602, 67_092_992),
    "20102102": (1_611_306, 53_418_496),
    "21212121": (2_191_274, 78_289_408),
}


@pytest.fixture(scope="module")
def table():
    return SPACE.cost_table()


def shared_file() -> Path:
    root = os.environ.get("HILNAS_SHARED_DATA")
    repository = Path(__file__).resolve().parents[3]
    folder = Path(root) if root else repository.parent / "shared" / "data"
    return folder / "nasbench" / "nas_bench_macro.csv.gz"


@pytest.mark.parametrize("genome", PUBLISHED)
def test_a_dozen_networks_cost_what_is_published(table, genome: str) -> None:
    arch = arch_of_genome(SPACE, genome)
    costs = table.costs(arch)
    assert (costs["params"], costs["macs"]) == PUBLISHED[genome]
    assert graph_of(SPACE, arch).macs() == PUBLISHED[genome][1]


def test_all_networks_cost_what_is_published(table) -> None:
    path = shared_file()
    if not path.exists():
        pytest.skip(f"{path} is not here; set HILNAS_SHARED_DATA to the folder of shared data")
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 6_561
    genes = np.array([[int(digit) for digit in row["arch"]] for row in rows])
    published = np.array([[int(row["params"]), int(row["flops"])] for row in rows], dtype=float)
    for i, column in enumerate(("params", "macs")):
        assert np.array_equal(table.column(column, genes), published[:, i])


def test_there_are_3969_networks_among_6561_genomes() -> None:
    genomes = ("".join(g) for g in itertools.product("012", repeat=8))
    assert len({SPACE.graph_key(arch_of_genome(SPACE, g)) for g in genomes}) == 3_969


def test_elimination_counts_what_enumeration_counts(table) -> None:
    exact, counted = EnumerationSampler(table, "macs"), EliminationSampler(table, "macs")
    assert counted.counts_are_exact
    # the numbers of candidates under a limit that are published for the benchmark
    for limit, n in ((20e6, 30), (40e6, 932), (60e6, 4_075), (80e6, 6_270)):
        assert exact.count(high=limit) == counted.count(high=limit) == n


def test_elimination_draws_every_network_below_a_limit_equally_often(table) -> None:
    sampler = EliminationSampler(table, "macs")
    drawn = sampler.sample(np.random.default_rng(0), 0, 20e6, 30_000)
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(counts) == 30
    statistic = ((counts - 1_000) ** 2 / 1_000).sum()
    assert statistic < 29 + 5 * np.sqrt(2 * 29)


def test_isomorphic_networks_share_a_graph_key_and_differ_in_the_supernet() -> None:
    tiny = load_space("nasbench_macro", preset="tiny", input_shape=(3, 8, 8), n_classes=10)
    first, second = (arch_of_genome(tiny, g) for g in ("11110111", "11101111"))
    assert tiny.graph_key(first) == tiny.graph_key(second)
    assert tiny.canonical(first) != tiny.canonical(second)
    torch.manual_seed(0)
    supernet = tiny.supernet().train()  # statistics of the batch: fresh weights have none
    x = torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        a, b = supernet(x, first), supernet(x, second)
    assert (a - b).abs().max() > 1e-2


def test_networks_of_different_keys_have_different_graphs() -> None:
    first, second = (arch_of_genome(SPACE, g) for g in ("11110111", "11110121"))
    assert SPACE.graph_key(first) != SPACE.graph_key(second)
    assert graph_of(SPACE, first).macs() != graph_of(SPACE, second).macs()
