"""The ShuffleNetV2 space against published numbers."""

from __future__ import annotations

import pytest
import torch

from latency_tables.arch import Arch
from latency_tables.sampler import make_sampler
from pipeline.export.record import graph_of, space_cost_table
from pipeline.spaces import load_space

torch.set_num_threads(1)

PAPER = load_space("shufflenetv2", preset="paper", input_shape=(3, 224, 224), n_classes=1000)
TINY = load_space("shufflenetv2", preset="tiny", input_shape=(1, 8, 8), n_classes=10)

# one block of each kind; per operator (weights without BN, MACs, BN weights)
BLOCKS = {
    "block01": [(2_736, 13_396_992, 288), (3_504, 15_805_440, 288),
                (4_656, 19_418_112, 288), (4_192, 13_146_112, 448)],
    "block02": [(2_336, 7_325_696, 192), (2_848, 8_931_328, 192),
                (3_616, 11_339_776, 192), (3_936, 12_343_296, 384)],
    "block05": [(18_192, 26_304_768, 768), (20_496, 28_111_104, 768),
                (23_952, 30_820_608, 768), (25_888, 20_296_192, 1_216)],
    "block06": [(13_520, 10_599_680, 480), (14_800, 11_603_200, 480),
                (16_720, 13_108_480, 480), (21_360, 16_746_240, 960)],
    "block09": [(79_680, 30_670_080, 1_600), (84_800, 31_673_600, 1_600),
                (92_480, 33_178_880, 1_600), (108_160, 21_199_360, 2_560)],
    "block10": [(52_640, 10_317_440, 960), (55_200, 10_819_200, 960),
                (59_040, 11_571_840, 960), (81_120, 15_899_520, 1_920)],
    "block17": [(312_960, 30_387_840, 3_200), (323_200, 30_889_600, 3_200),
                (338_560, 31_642_240, 3_200), (421_120, 20_634_880, 5_120)],
    "block18": [(207_680, 10_176_320, 1_920), (212_800, 10_427_200, 1_920),
                (220_480, 10_803_520, 1_920), (315_840, 15_476_160, 3_840)],
}  # fmt: skip
STEM = (432, 5_419_008, 32)
HEAD = (655_360 + 1_024_000, 32_112_640 + 1_024_000, 2_048)

SPOS = (2, 1, 0, 1, 2, 0, 2, 0, 2, 0, 2, 3, 0, 0, 0, 0, 3, 2, 3, 3)
MMRAZOR = (2, 0, 2, 0, 3, 1, 1, 0, 0, 1, 0, 1, 0, 3, 1, 2, 2, 0, 1, 3)
SAMPLE = (0, 0, 3, 1, 1, 1, 0, 0, 2, 0, 2, 1, 1, 0, 2, 0, 2, 1, 3, 2)
NETWORKS = {
    "spos": (SPOS, 322_918_720, 3_558_464),
    "mmrazor": (MMRAZOR, 317_023_040, 3_353_104),
    "block and channel sample at scale 1": (SAMPLE, 318_729_024, 3_345_088),
    "all k3": ((0,) * 20, 295_842_496, 3_154_880),
    "all k5": ((1,) * 20, 313_654_976, 3_211_968),
    "all k7": ((2,) * 20, 340_373_696, 3_297_600),
    "all xception": ((3,) * 20, 358_825_920, 3_870_816),
}


@pytest.fixture(scope="module")
def table():
    return PAPER.cost_table()


def arch_of(genes: tuple[int, ...]) -> Arch:
    return Arch.from_genes(PAPER.decisions, genes)


def test_the_space_has_four_to_the_twenty_architectures(table) -> None:
    assert table.n_archs == 4**20


@pytest.mark.parametrize("block", BLOCKS)
def test_every_operator_of_a_block_costs_what_is_published(table, block: str) -> None:
    column = {c.name: i for i, c in enumerate(table.columns)}
    factor = next(f for f in table.factors if f.name == block)
    for operator, (weights, macs, norms) in enumerate(BLOCKS[block]):
        costs = factor.values[operator]
        assert costs[column["macs"]] == macs
        assert costs[column["params"]] == weights + norms
        # folding turns a batch norm's two weights per channel into one bias
        assert costs[column["weight_bytes"]] == 4 * (weights + norms // 2)


@pytest.mark.parametrize(("name", "expected"), [("stem", STEM), ("head", HEAD)])
def test_fixed_parts_cost_what_is_published(table, name: str, expected: tuple[int, ...]) -> None:
    column = {c.name: i for i, c in enumerate(table.columns)}
    costs = next(f for f in table.factors if f.name == name).values
    weights, macs, norms = expected
    assert (costs[column["macs"]], costs[column["params"]]) == (macs, weights + norms)


@pytest.mark.parametrize("name", NETWORKS)
def test_published_networks_cost_what_is_published(table, name: str) -> None:
    genes, macs, params = NETWORKS[name]
    costs = table.costs(arch_of(genes))
    assert (costs["macs"], costs["params"]) == (macs, params)
    assert graph_of(PAPER, arch_of(genes)).macs() == macs


def test_a_built_network_has_the_parameters_of_the_table() -> None:
    with torch.device("meta"):
        network = PAPER.network(arch_of(SPOS))
    assert sum(p.numel() for p in network.parameters()) == 3_558_464


def test_the_range_of_the_space_is_exact(table) -> None:
    assert table.minimum("macs")[0] == 270_359_360
    assert table.maximum("macs")[0] == 398_609_216
    assert table.mean("macs") == pytest.approx(327.18e6, abs=0.01e6)


def test_the_share_below_330_million_is_that_of_the_paper(table) -> None:
    sampler = make_sampler(table, "macs")
    assert sampler.method == "elimination"
    assert sampler.counts_are_exact
    # 0.5889 is published; counting all 4^20 architectures gives 0.58919
    assert sampler.probability(high=330e6) == pytest.approx(0.5889, abs=5e-4)
    assert sampler.count(high=330e6) == pytest.approx(0.589193 * 4**20, rel=1e-6)


def test_the_supernet_holds_the_published_number_of_weights() -> None:
    with torch.device("meta"):
        supernet = PAPER.supernet()
    assert sum(p.numel() for p in supernet.parameters()) == 8_388_176


def test_the_table_is_cached_and_reproducible() -> None:
    assert TINY.cost_table() is TINY.cost_table()
    assert space_cost_table(TINY).table_hash == TINY.cost_table().table_hash


# figure 4 of Supernet Shifting: stages that many times as deep; MACs with one operator everywhere
DEPTHS = {
    "0.5": (198_369_344, 206_096_448),
    "1.5": (393_315_648, 511_555_392),
    "2": (490_788_800, 664_284_864),
    "4": (880_681_408, 1_275_202_752),
}


@pytest.mark.parametrize("multiplier", DEPTHS)
def test_deeper_and_shallower_spaces_cost_what_the_definition_says(multiplier: str) -> None:
    space = load_space(
        "shufflenetv2", preset=f"paper-x{multiplier}", input_shape=(3, 224, 224), n_classes=1000
    )
    n = len(space.decisions)
    assert n == 20 * float(multiplier)
    macs = tuple(
        graph_of(space, Arch.from_genes(space.decisions, [op] * n)).macs() for op in (0, 3)
    )
    assert macs == DEPTHS[multiplier]
