"""The ProxylessNAS-like mobile space against published numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from latency_tables.arch import Arch
from latency_tables.sampler import make_sampler
from pipeline.export.record import graph_of
from pipeline.spaces.proxyless import proxyless

torch.set_num_threads(1)

PAPER = proxyless(preset="paper", input_shape=(3, 224, 224), n_classes=1000)
TINY = proxyless(preset="tiny", input_shape=(1, 8, 8), n_classes=10)

# the same operator in all 21 layers: (million MACs, million parameters with batch norms)
UNIFORM = {
    "mb3_k3": (460.909, 5.152),
    "mb3_k5": (497.563, 5.265),
    "mb3_k7": (552.543, 5.435),
    "mb6_k3": (853.406, 7.816),
    "mb6_k5": (926.714, 8.043),
    "mb6_k7": (1_036.674, 8.382),
}


@pytest.fixture(scope="module")
def table():
    return PAPER.cost_table()


def uniform(operator: str) -> Arch:
    return Arch({d.label: operator for d in PAPER.decisions})


def test_the_space_has_seven_to_the_twenty_one_architectures(table) -> None:
    assert table.n_archs == 7**21


@pytest.mark.parametrize("operator", UNIFORM)
def test_uniform_networks_cost_what_is_published(table, operator: str) -> None:
    costs = table.costs(uniform(operator))
    macs, params = UNIFORM[operator]
    assert costs["macs"] / 1e6 == pytest.approx(macs, abs=1.1e-3)
    assert costs["params"] / 1e6 == pytest.approx(params, abs=5.1e-4)
    assert graph_of(PAPER, uniform(operator)).macs() == costs["macs"]


def test_the_usual_limit_of_465_million_macs_leaves_a_choice(table) -> None:
    sampler = make_sampler(table, "macs")
    assert 0 < sampler.probability(high=465e6) < 1
    for arch in sampler.sample_archs(np.random.default_rng(0), 455e6, 465e6, 10):
        assert 455e6 <= graph_of(PAPER, arch).macs() <= 465e6


def test_inner_identities_move_and_stage_first_ones_do_not() -> None:
    labels = [d.label for d in TINY.decisions]
    base = ["mb3_k3", "mb3_k3", "mb3_k5", "mb6_k3", "identity", "mb6_k7", "mb3_k7", "mb6_k5"]
    moved = [*base[:3], "identity", "mb6_k3", *base[5:]]
    first = [*base[:2], "identity", "mb6_k3", "mb3_k5", *base[5:]]
    archs = [Arch(dict(zip(labels, genes, strict=True))) for genes in (base, moved, first)]
    keys = [TINY.graph_key(arch) for arch in archs]
    assert keys[0] == keys[1] != keys[2]
    macs = [TINY.cost_table().cost(arch, "macs") for arch in archs]
    assert macs[0] == macs[1] != macs[2]


def test_path_and_cut_out_subnet_give_the_same_logits() -> None:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    supernet, x = TINY.supernet().train(), torch.randn(8, 1, 8, 8)
    for arch in (TINY.sample(rng) for _ in range(5)):
        with torch.no_grad():
            supernet(x, arch)  # statistics
            network = TINY.network(arch)
            TINY.inherit(network, arch, supernet)
            torch.testing.assert_close(
                supernet.eval()(x, arch), network.eval()(x), atol=1e-5, rtol=0
            )
        supernet.train()
