"""The MobileNetV2 space of K-shot, GreedyNAS and FairNAS against published numbers."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from latency_tables.arch import Arch
from latency_tables.errors import SpaceError
from latency_tables.onnx_writer import to_onnx
from latency_tables.sampler import make_sampler
from pipeline.export.onnx_export import export_subnet
from pipeline.export.record import export_or_fallback, graph_of, graph_weights
from pipeline.onnx_runtime import open_session
from pipeline.spaces.mobile_blocks import (
    IDENTITY,
    OPERATORS,
    PLAIN,
    Layer,
    SqueezeExcitation,
    layer_module,
    make_divisible,
)
from pipeline.spaces.mobilenetv2 import mobilenetv2
from tests.pipeline.spaces.weighted import weighted

torch.set_num_threads(1)

IMAGENET = {"input_shape": (3, 224, 224), "n_classes": 1000}
PAPER = mobilenetv2(preset="paper", **IMAGENET)
FAIRNAS = mobilenetv2(preset="fairnas", **IMAGENET)
TINY = mobilenetv2(preset="tiny", input_shape=(1, 8, 8), n_classes=10)

INNER = Layer(name="layer02", in_channels=16, channels=16, stride=1)
FIRST = Layer(name="layer01", in_channels=16, channels=24, stride=2)

# the same operator in all 21 layers: (MACs, parameters with batch norms)
UNIFORM = {
    "mb3_k3": (291_084_032, 3_203_992),
    "mb3_k3_se": (292_087_040, 4_213_688),
    "mb3_k5": (321_791_744, 3_289_240),
    "mb3_k5_se": (322_794_752, 4_298_936),
    "mb3_k7": (367_853_312, 3_417_112),
    "mb3_k7_se": (368_856_320, 4_426_808),
    "mb6_k3": (539_944_448, 4_708_840),
    "mb6_k3_se": (543_924_224, 8_701_952),
    "mb6_k5": (601_359_872, 4_879_336),
    "mb6_k5_se": (605_339_648, 8_872_448),
    "mb6_k7": (693_483_008, 5_135_080),
    "mb6_k7_se": (697_462_784, 9_128_192),
}

# per stage (expansion, kernel) of each layer; published with 388, 345 and 321 million MACs
FAIRNAS_NETWORKS = {
    "FairNAS-A": (
        [[(3, 7), (3, 3)],
         [(3, 7), (6, 3), (6, 7), (3, 3)],
         [(3, 3), (6, 7), (6, 7), (3, 5)],
         [(6, 3), (3, 5), (3, 5), (6, 3)],
         [(6, 3), (6, 7), (6, 3), (6, 7)],
         [(6, 5)]],
        388_122_848, 4_651_352,
    ),
    "FairNAS-B": (
        [[(3, 5), (3, 3)],
         [(3, 5), (3, 3), (6, 3), (3, 5)],
         [(3, 7), (3, 3), (6, 3), (3, 5)],
         [(3, 3), (6, 3), (3, 7), (3, 3)],
         [(6, 7), (6, 5), (6, 7), (6, 3)],
         [(6, 5)]],
        345_297_632, 4_506_272,
    ),
    "FairNAS-C": (
        [[(3, 5), (3, 3)],
         [(3, 7), (3, 3), (3, 3), (3, 3)],
         [(3, 3), (3, 3), (3, 3), (6, 3)],
         [(3, 3), (3, 3), (3, 3), (3, 3)],
         [(6, 7), (6, 7), (6, 3), (6, 3)],
         [(6, 5)]],
        321_024_992, 4_397_864,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def table():
    return PAPER.cost_table()


def arch_of(space, operators) -> Arch:
    return Arch({d.label: op for d, op in zip(space.decisions, operators, strict=True)})


def fairnas_operators(stages, repeats) -> list[str]:
    """Operators of a FairNAS network; a stage with more layers is filled up with identities."""
    operators = []
    for stage, length in zip(stages, repeats, strict=True):
        names = [f"mb{expand}_k{kernel}" for expand, kernel in stage]
        operators += names + [IDENTITY] * (length - len(names))
    return operators


# -- published numbers ---------------------------------------------------------------------------


def test_every_layer_has_thirteen_operators_so_strict_fairness_applies() -> None:
    assert [len(d.choices) for d in PAPER.decisions] == [13] * 21
    assert [len(d.choices) for d in TINY.decisions] == [13] * 8
    assert [len(d.choices) for d in FAIRNAS.decisions] == [6] * 19


def test_the_space_has_thirteen_to_the_twenty_one_architectures(table) -> None:
    assert table.n_archs == 13**21


@pytest.mark.parametrize("operator", UNIFORM)
def test_uniform_networks_cost_what_is_published(table, operator: str) -> None:
    arch = arch_of(PAPER, [operator] * 21)
    costs = table.costs(arch)
    assert (costs["macs"], costs["params"]) == UNIFORM[operator]
    assert graph_of(PAPER, arch).macs() == UNIFORM[operator][0]
    with torch.device("meta"):
        network = PAPER.network(arch)
    assert sum(p.numel() for p in network.parameters()) == UNIFORM[operator][1]


def test_the_network_of_stage_first_layers_costs_what_is_published(table) -> None:
    operators = ["mb3_k3" if index == 0 else IDENTITY for n in PAPER.repeats for index in range(n)]
    costs = table.costs(arch_of(PAPER, operators))
    assert (costs["macs"], costs["params"]) == (108_869_888, 2_158_000)


@pytest.mark.parametrize("name", FAIRNAS_NETWORKS)
@pytest.mark.parametrize("space", [PAPER, FAIRNAS], ids=["paper", "fairnas"])
def test_fairnas_networks_cost_what_is_published(space, name: str) -> None:
    stages, macs, params = FAIRNAS_NETWORKS[name]
    arch = arch_of(space, fairnas_operators(stages, space.repeats))
    with torch.device("meta"):
        network = space.network(arch)
    assert graph_of(space, arch).macs() == macs
    assert sum(p.numel() for p in network.parameters()) == params


def test_the_supernet_holds_the_published_weights_and_six_projections() -> None:
    with torch.device("meta"):
        supernet = PAPER.supernet()
    # published without the 1×1 convolutions that stand in for a stage-first identity
    channels = (16, 32, 40, 80, 96, 192, 320)
    projections = sum(c_in * c + 2 * c for c_in, c in itertools.pairwise(channels))
    assert sum(p.numel() for p in supernet.parameters()) == 45_630_800 + projections


def test_the_range_of_the_space_is_exact(table) -> None:
    lowest, arch = table.minimum("macs")
    assert set(arch.values()) == {IDENTITY}
    # stem, mb1, projections, last convolution and classifier
    expected = 3 * 9 * 32 * 112**2 + (9 * 32 + 32 * 16) * 112**2
    for (c_in, c), size in zip(
        ((16, 32), (32, 40), (40, 80), (80, 96), (96, 192), (192, 320)),
        (56, 28, 14, 14, 7, 7),
        strict=True,
    ):
        expected += c_in * c * size**2
    assert lowest == expected + 320 * 1280 * 49 + 1280 * 1000
    assert table.maximum("macs")[0] == UNIFORM["mb6_k7_se"][0]


def test_networks_under_a_limit_can_be_drawn(table) -> None:
    sampler = make_sampler(table, "macs")
    archs = sampler.sample_archs(np.random.default_rng(0), 320e6, 330e6, 20)
    assert all(320e6 <= table.cost(arch, "macs") <= 330e6 for arch in archs)
    assert len(set(archs)) == 20


# -- blocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "squeezed"), [(48, 16), (96, 24), (240, 64), (1152, 288)])
def test_squeezing_takes_a_quarter_of_the_expanded_channels(channels: int, squeezed: int) -> None:
    block = SqueezeExcitation(channels)
    weights = {name: tuple(p.shape) for name, p in block.named_parameters()}
    assert weights == {
        "gate.0.weight": (squeezed, channels, 1, 1), "gate.0.bias": (squeezed,),
        "gate.2.weight": (channels, squeezed, 1, 1), "gate.2.bias": (channels,),
    }  # fmt: skip


def test_rounding_keeps_nine_tenths_of_the_channels() -> None:
    values = np.arange(1, 400)
    rounded = np.array([make_divisible(v) for v in values])
    assert (rounded % 8 == 0).all()
    assert (rounded >= 0.9 * values).all()
    assert (np.abs(rounded - values) < 8).all()


def test_the_gate_scales_channels_of_its_own_image() -> None:
    torch.manual_seed(0)
    block, x = SqueezeExcitation(16), torch.randn(2, 16, 4, 4)
    ratio = (block(x) / x)[:, :, :1, :1]
    torch.testing.assert_close(block(x), x * ratio)
    assert ((ratio > 0) & (ratio < 1)).all()
    torch.testing.assert_close(block(x[:1]), block(x)[:1])
    assert (ratio[0] - ratio[1]).abs().max() > 1e-6


def test_an_inner_identity_changes_nothing_and_a_first_one_projects() -> None:
    x = torch.randn(2, 16, 8, 8)
    inner = layer_module(IDENTITY, INNER, affine=True)
    first = layer_module(IDENTITY, FIRST, affine=True)
    assert inner(x) is x
    assert first(x).shape == (2, 24, 4, 4)


@pytest.mark.parametrize("operator", ["mb3_k3_sq", "skip", "mb_k3"])
def test_an_unknown_operator_is_refused_with_those_that_exist(operator: str) -> None:
    with pytest.raises(SpaceError, match=f"{operator}.*mb6_k7_se"):
        layer_module(operator, INNER, affine=True)


def test_an_unknown_preset_and_tiny_pictures_are_refused() -> None:
    with pytest.raises(SpaceError, match="'huge'; known: paper, fairnas, tiny"):
        mobilenetv2(preset="huge", input_shape=(3, 32, 32), n_classes=10)
    with pytest.raises(SpaceError, match="3x8"):
        mobilenetv2(preset="tiny", input_shape=(3, 3, 8), n_classes=10)


@pytest.mark.parametrize("size", [8, 9, 17, 32])
def test_small_pictures_keep_two_by_two_positions(size: int) -> None:
    space = mobilenetv2(preset="tiny", input_shape=(3, size, size), n_classes=10)
    sections = graph_of(space, arch_of(space, ["mb3_k3"] * 8)).sections
    assert min(sections[-1].input.shape[2:]) >= 2


# -- identity of networks ------------------------------------------------------------------------


def test_moved_inner_identities_share_a_key_and_costs_but_not_supernet_weights() -> None:
    operators = ["mb3_k3", "mb6_k5", "mb3_k3_se", "mb6_k3", IDENTITY, "mb3_k5", "mb6_k7", "mb3_k7"]
    first = arch_of(TINY, operators)
    operators[3], operators[4] = operators[4], operators[3]
    second = arch_of(TINY, operators)
    assert TINY.graph_key(first) == TINY.graph_key(second)
    assert TINY.canonical(first) != TINY.canonical(second)
    columns = TINY.cost_table().costs
    assert columns(first) == pytest.approx(columns(second), rel=1e-3)  # names differ in length
    assert columns(first)["macs"] == columns(second)["macs"]
    torch.manual_seed(0)
    supernet, x = TINY.supernet().train(), torch.randn(8, 1, 8, 8)
    with torch.no_grad():
        assert (supernet(x, first) - supernet(x, second)).abs().max() > 1e-2


def test_a_stage_first_identity_does_not_move() -> None:
    first = arch_of(TINY, [IDENTITY, "mb3_k3", *["mb3_k3"] * 6])
    second = arch_of(TINY, ["mb3_k3", IDENTITY, *["mb3_k3"] * 6])
    assert TINY.graph_key(first) != TINY.graph_key(second)
    costs = TINY.cost_table()
    assert costs.cost(first, "macs") != costs.cost(second, "macs")


def test_operators_do_not_move_across_stages() -> None:
    # the first stage has two layers, the second three
    first = arch_of(TINY, ["mb3_k3", IDENTITY, "mb3_k3", "mb3_k3", *["mb3_k3"] * 4])
    second = arch_of(TINY, ["mb3_k3", "mb3_k3", "mb3_k3", IDENTITY, *["mb3_k3"] * 4])
    assert TINY.graph_key(first) != TINY.graph_key(second)


# -- supernet, network, Graph and file -----------------------------------------------------------

ALL_KINDS = [
    IDENTITY, "mb6_k5_se", "mb3_k7", IDENTITY, "mb3_k3_se", "mb6_k3_se", "mb6_k7_se", "mb3_k5",
]  # fmt: skip


def archs_of_every_kind() -> list[Arch]:
    rng = np.random.default_rng(0)
    return [arch_of(TINY, ALL_KINDS), *(TINY.sample(rng) for _ in range(4))]


@pytest.mark.parametrize("arch", archs_of_every_kind())
def test_path_subnet_and_graph_give_the_same_logits(arch: Arch) -> None:
    supernet, network = weighted(TINY, arch)
    x = torch.randn(1, *TINY.input_shape)
    with torch.no_grad():
        path, cut = supernet(x, arch), network(x)
    torch.testing.assert_close(path, cut, atol=1e-5, rtol=0)
    graph = graph_of(TINY, arch)
    model = to_onnx(graph, graph_weights(graph, network)).model
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    got = open_session(model).run(["output"], {"input": x.numpy()})[0]
    assert np.abs(got).max() > 0.01
    np.testing.assert_allclose(got, cut.numpy(), atol=1e-4)


def test_the_exported_file_has_the_operators_and_logits_of_the_measured_candidate(
    tmp_path: Path,
) -> None:
    arch = arch_of(TINY, ALL_KINDS)
    _, network = weighted(TINY, arch)
    exported = export_subnet(network, TINY.input_shape, tmp_path / "subnet.onnx")
    candidate = onnx.load_from_string(to_onnx(graph_of(TINY, arch)).model)
    measured = Counter(node.op_type for node in candidate.graph.node)
    assert exported.operator_histogram == dict(measured)
    assert measured["HardSigmoid"] == measured["Mul"] == measured["ReduceMean"] - 1 == 4
    x = torch.randn(1, *TINY.input_shape)
    with torch.no_grad():
        expected = network(x).numpy()
    got = open_session(exported.path).run(["logits"], {"image": x.numpy()})[0]
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("operator", OPERATORS)
def test_no_operator_falls_back_to_torchs_exporter(operator: str) -> None:
    with torch.device("meta"):
        network = TINY.network(arch_of(TINY, [operator] * 8))
    assert not export_or_fallback(network, (1, *TINY.input_shape)).fallback


def test_a_path_trains_its_own_operators_only() -> None:
    arch = arch_of(TINY, ALL_KINDS)
    torch.manual_seed(0)
    supernet = TINY.supernet().train()
    supernet(torch.randn(4, 1, 8, 8), arch).sum().backward()
    trained = {name for name, p in supernet.named_parameters() if p.grad is not None}
    on_path = {id(p) for p in supernet.subnet_parameters(arch)}
    assert trained == {n for n, p in supernet.named_parameters() if id(p) in on_path}
    assert any("layer01.identity" in name for name in trained)  # the projection has weights
    assert not any("layer04.identity" in name for name in trained)


def test_plain_and_gated_operators_differ_in_the_gate_only() -> None:
    for name in PLAIN:
        plain, gated = (layer_module(n, INNER, affine=True) for n in (name, f"{name}_se"))
        extra = sum(p.numel() for p in gated.parameters()) - sum(
            p.numel() for p in plain.parameters()
        )
        mid = 16 * int(name[2])
        squeezed = make_divisible(mid // 4)
        assert extra == 2 * mid * squeezed + mid + squeezed
