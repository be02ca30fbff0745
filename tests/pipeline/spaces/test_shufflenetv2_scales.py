"""The ShuffleNetV2 space with channel scales against the published network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from latency_tables.arch import Arch
from latency_tables.costs import graph_costs
from latency_tables.sampler import make_sampler
from pipeline.export.record import graph_of
from pipeline.spaces.shufflenetv2 import shufflenetv2
from pipeline.spaces.shufflenetv2_scales import SCALES, middle, shufflenetv2_scales
from tests.pipeline.spaces.weighted import weighted

torch.set_num_threads(1)

TINY = shufflenetv2_scales(preset="tiny", input_shape=(1, 8, 8), n_classes=10)
IMAGENET = {"preset": "paper", "input_shape": (3, 224, 224), "n_classes": 1000}

# the network that the authors' search over blocks and channels found
OPERATORS = (0, 0, 3, 1, 1, 1, 0, 0, 2, 0, 2, 1, 1, 0, 2, 0, 2, 1, 3, 2)
FOUND_SCALES = (6, 5, 3, 5, 2, 6, 3, 4, 2, 5, 7, 5, 4, 6, 7, 4, 4, 5, 4, 3)


def test_the_published_network_costs_what_is_published() -> None:
    space = shufflenetv2_scales(**IMAGENET)
    arch = Arch.from_genes(space.decisions, OPERATORS + FOUND_SCALES)
    costs = graph_costs(graph_of(space, arch))
    with torch.device("meta"):
        n_parameters = sum(p.numel() for p in space.network(arch).parameters())
    assert (costs["macs"], n_parameters) == (327_857_920, 3_432_579)


def test_scale_one_is_the_space_without_scales() -> None:
    space, plain = shufflenetv2_scales(**IMAGENET), shufflenetv2(**IMAGENET)
    arch = Arch.from_genes(space.decisions, OPERATORS + (SCALES.index(1.0),) * 20)
    costs = graph_costs(graph_of(space, arch))
    assert costs == graph_costs(graph_of(plain, Arch.from_genes(plain.decisions, OPERATORS)))
    assert costs["macs"] == 318_729_024


@pytest.mark.parametrize("channels", [24, 48, 64, 96, 160, 192, 320, 640])
def test_every_scale_gives_other_channels_so_no_gene_is_idle(channels: int) -> None:
    assert len({middle(channels, scale) for scale in SCALES}) == len(SCALES)


@pytest.mark.parametrize("seed", range(5))
def test_factors_add_up_to_the_graph(seed: int) -> None:
    arch = TINY.sample(np.random.default_rng(seed))
    table, graph = TINY.cost_table().costs(arch), graph_costs(graph_of(TINY, arch))
    assert table["macs"] == graph["macs"]
    assert table["params"] == sum(p.numel() for p in TINY.network(arch).parameters())


def test_architectures_are_drawn_exactly_by_their_macs() -> None:
    table = TINY.cost_table()
    sampler = make_sampler(table, "macs")
    low, high = 0.9 * table.mean("macs"), table.mean("macs")
    archs = sampler.sample_archs(np.random.default_rng(0), low, high, 20)
    assert sampler.method == "elimination"
    assert all(low <= table.cost(arch, "macs") <= high for arch in archs)


def test_a_narrow_path_trains_leading_channels_only() -> None:
    arch = Arch.from_genes(TINY.decisions, (0,) * 10 + (2,) * 10)
    supernet, _ = weighted(TINY, arch)
    supernet.train()
    supernet(torch.randn(4, *TINY.input_shape), arch).sum().backward()
    block = supernet.get_submodule("blocks.block01.k3.main.0")
    gradient = block.weight.grad
    mid = middle(24, SCALES[2])
    assert gradient is not None
    assert gradient[:mid].abs().sum() > 0
    assert not gradient[mid:].any()
    assert supernet.get_submodule("blocks.block01.k5.main.0").weight.grad is None
