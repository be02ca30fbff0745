"""The BigNAS space: counts, one function however a subnet is run, training."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from latency_tables.costs import graph_costs
from latency_tables.errors import InvalidArchError, SpaceError
from latency_tables.sampler import make_sampler
from pipeline.export.onnx_export import export_subnet
from pipeline.export.record import COLUMNS, graph_of
from pipeline.export.reference_count import count_with_fvcore
from pipeline.spaces.elastic_cnn import Subnet, bignas
from pipeline.spaces.elastic_cnn.blocks import Block
from pipeline.strategies.sandwich import Sandwich
from pipeline.supernet.scoring import materialise
from tests.pipeline.spaces.elastic import (
    archs_of,
    assert_one_function,
    counted,
    lively,
    losses_around,
    wholly,
)
from tests.pipeline.training.toys import CLASSES, SHAPE

torch.set_num_threads(1)

PAPER = bignas(preset="paper", input_shape=(3, 320, 320), n_classes=1000)
TINY = bignas(preset="tiny", input_shape=SHAPE, n_classes=CLASSES)

SMALLEST = Subnet(
    resolution=192, stem=32, widths=(16, 24, 40, 80, 112, 192, 320), depths=(1, 2, 2, 2, 2, 2, 1),
    kernels=(3,) * 7, expands=(1, 6, 6, 6, 6, 6, 6), last=1280,
)  # fmt: skip
LARGEST = Subnet(
    resolution=320, stem=40, widths=(24, 32, 48, 88, 128, 216, 352), depths=(2, 3, 3, 4, 6, 6, 2),
    kernels=(3, 3, 5, 5, 5, 5, 5), expands=(1, 6, 6, 6, 6, 6, 6), last=1408,
)  # fmt: skip
ENDS = {
    "smallest": (SMALLEST, 206_390_144, 3_392_488),
    "largest": (LARGEST, 1_841_398_400, 9_241_632),
}


@pytest.mark.parametrize("name", ENDS)
def test_both_ends_have_the_known_macs_and_parameters(name: str) -> None:
    subnet, macs, n_parameters = ENDS[name]
    arch = PAPER.arch_of(subnet)
    with torch.device("meta"):
        network = PAPER.network(arch)
    assert graph_of(PAPER, arch).macs() == macs
    assert sum(p.numel() for p in network.parameters()) == n_parameters
    assert counted(PAPER, subnet) == (macs, n_parameters)
    assert arch == wholly(PAPER, 0 if name == "smallest" else -1)


def test_the_space_is_as_large_as_the_product_of_its_choices() -> None:
    per_stage = (2 * 2, 2 * 2, 2 * 2 * 2, 2 * 3 * 2, 3 * 5 * 2, 4 * 5 * 2, 5 * 2 * 2)
    assert math.prod(len(d.choices) for d in PAPER.decisions) == 4 * 2 * math.prod(per_stage) * 2


@pytest.mark.long
def test_the_papers_table_agrees_with_the_closed_form() -> None:
    table = PAPER.cost_table()
    for arch in archs_of(PAPER, 200):
        costs = table.costs(arch)
        assert (costs["macs"], costs["params"]) == counted(PAPER, PAPER.subnet(arch))
    (_, *low), (_, *high) = ENDS["smallest"], ENDS["largest"]
    assert [table.minimum(column)[0] for column in ("macs", "params")] == low
    assert [table.maximum(column)[0] for column in ("macs", "params")] == high
    sampler = make_sampler(table, "macs")
    assert sampler.method == "elimination"
    drawn = sampler.sample_archs(np.random.default_rng(0), 210e6, 230e6, 50)
    assert all(210e6 <= counted(PAPER, PAPER.subnet(arch))[0] <= 230e6 for arch in drawn)


def test_macs_agree_with_another_counter() -> None:
    arch = archs_of(TINY, 1)[0]
    count = count_with_fvcore(TINY.network(arch), TINY.input_shape_of(arch))
    assert count.macs == graph_of(TINY, arch).macs()


@pytest.mark.long
def test_the_smallest_subnets_macs_agree_with_another_counter() -> None:
    arch = PAPER.arch_of(SMALLEST)
    count = count_with_fvcore(PAPER.network(arch), PAPER.input_shape_of(arch))
    assert count.macs == ENDS["smallest"][1]


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_masked_sliced_and_materialised_subnets_are_one_function(batch_statistics: bool) -> None:
    assert_one_function(TINY, 50, batch_statistics=batch_statistics)


def test_a_stages_first_block_has_no_shortcut_and_starts_as_other_layers_do() -> None:
    network = TINY.network(wholly(TINY, -1))
    for name, block in network.named_children():
        if isinstance(block, Block):
            later = not name.endswith("_1")
            assert (block.shortcut is not None) is later, name
            assert bool(block.project.get_submodule("norm").weight.any()) is not later, name


def test_there_is_no_squeeze_and_excitation_and_one_layer_before_the_pooling() -> None:
    with torch.device("meta"):
        supernet = PAPER.supernet()
    assert not [name for name, _ in supernet.named_modules() if ".se" in name]
    assert [name for name, _ in supernet.get_submodule("head").named_children()] == [
        "mix", "pool", "flatten", "dropout", "classifier",
    ]  # fmt: skip


def test_what_is_not_of_the_space_is_refused() -> None:
    with pytest.raises(InvalidArchError, match=r"mb7_width.*324.*320, 328, 336, 344, 352"):
        PAPER.validate(wholly(PAPER, 0).replace(mb7_width=324))
    with pytest.raises(SpaceError, match="bignas has no preset 'large'; known: paper, tiny"):
        bignas(preset="large", input_shape=(3, 320, 320), n_classes=10)


def test_factors_add_up_to_the_graph() -> None:
    names = [c.name for c in COLUMNS if c.name not in ("params", "size_bytes")]
    table = TINY.cost_table()
    for arch in archs_of(TINY, 10):
        costs, graph = table.costs(arch), graph_costs(graph_of(TINY, arch))
        assert {n: costs[n] for n in names} == {n: graph[n] for n in names}
        with torch.device("meta"):
            network = TINY.network(arch)
        assert costs["params"] == sum(p.numel() for p in network.parameters())


def test_the_sandwich_rule_trains_the_tiny_space(tmp_path: Path) -> None:
    before, after = losses_around(TINY, Sandwich(TINY), tmp_path)
    assert after < before - 0.3  # ln 4 = 1.39 before


@pytest.mark.long
def test_the_exported_file_gives_the_logits_of_the_subnet(tmp_path: Path) -> None:
    arch = archs_of(TINY, 1, seed=3)[0]
    network: nn.Module = materialise(TINY, arch, lively(TINY)).eval()
    shape = TINY.input_shape_of(arch)
    exported = export_subnet(network, shape, tmp_path / "subnet.onnx")
    x = torch.randn(1, *shape)
    with torch.no_grad():
        expected = network(x).numpy()
    session = ort.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"image": x.numpy()})[0], expected, atol=1e-4)
    assert exported.operator_histogram == graph_of(TINY, arch).operator_histogram()
