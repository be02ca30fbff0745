"""The AttentiveNAS space: published counts, one function however a subnet is run, training."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from latency_tables.arch import Arch
from latency_tables.costs import graph_costs
from latency_tables.errors import InvalidArchError, SpaceError
from latency_tables.onnx_writer import to_onnx
from latency_tables.sampler import make_sampler
from pipeline.export.onnx_export import export_subnet
from pipeline.export.record import COLUMNS, graph_of, graph_weights, recorder_of
from pipeline.export.reference_count import count_with_fvcore
from pipeline.spaces.drop_path import DropPath
from pipeline.spaces.elastic_cnn import RELEASED, Subnet, attentivenas
from pipeline.spaces.elastic_cnn.blocks import Block, BlockKind, BlockSize, Shortcut, part
from pipeline.spaces.elastic_cnn.sizes import Stage, scaled_resolutions
from pipeline.strategies.attentivenas import AttentiveNAS, AttentiveNASOptions
from pipeline.strategies.passes import probing
from pipeline.strategies.sandwich import Sandwich
from pipeline.supernet.resolution import resized
from pipeline.supernet.scoring import Scorer, materialise
from pipeline.supernet.weights import load_supernet, save_supernet
from tests.pipeline.spaces.elastic import (
    archs_of,
    assert_one_function,
    counted,
    lively,
    losses_around,
    wholly,
)
from tests.pipeline.strategies.steps import hand_step
from tests.pipeline.training.toys import CLASSES, SHAPE, ToyStream, toy_space, toy_supernet

torch.set_num_threads(1)

PAPER = attentivenas(preset="paper", input_shape=(3, 288, 288), n_classes=1000)
TINY = attentivenas(preset="tiny", input_shape=SHAPE, n_classes=CLASSES)
# maps of 6 pixels become 3: shortcuts pool an odd size; pictures that are not square
ODD = attentivenas(preset="tiny", input_shape=(1, 24, 12), n_classes=5)

# -- published counts ----------------------------------------------------------------------------

LARGEST = Subnet(
    resolution=288, stem=24, widths=(24, 32, 40, 72, 128, 216, 224), depths=(2, 5, 6, 6, 8, 8, 2),
    kernels=(5,) * 7, expands=(1, 6, 6, 6, 6, 6, 6), last=1984,
)  # fmt: skip
# what another toolbox calls A6: the released depths and kernels with wider stages
WIDE_A6 = Subnet(
    resolution=288, stem=16, widths=(24, 32, 40, 72, 128, 216, 224), depths=(1, 3, 3, 4, 4, 6, 1),
    kernels=(3, 3, 3, 3, 3, 5, 3), expands=(1, 4, 6, 5, 4, 6, 6), last=1984,
)  # fmt: skip
SUBNETS = {**RELEASED, "max": LARGEST, "wide A6": WIDE_A6}
PUBLISHED = {
    "A0": (203_389_568, 8_954_184),
    "A1": (279_238_816, 9_452_872),
    "A2": (316_730_080, 11_149_824),
    "A3": (356_518_400, 12_784_928),
    "A4": (443_530_752, 11_809_640),
    "A5": (490_520_064, 12_597_464),
    "A6": (709_007_232, 15_154_792),
    "max": (1_939_335_808, 23_404_080),
    "wide A6": (897_385_312, 15_593_520),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_released_subnets_have_the_published_macs_and_parameters(name: str) -> None:
    arch = PAPER.arch_of(SUBNETS[name])
    with torch.device("meta"):
        network = PAPER.network(arch)
    n_parameters = sum(p.numel() for p in network.parameters())
    assert (graph_of(PAPER, arch).macs(), n_parameters) == PUBLISHED[name]
    assert counted(PAPER, SUBNETS[name]) == PUBLISHED[name]


def test_the_first_released_subnet_is_the_smallest_one() -> None:
    assert PAPER.arch_of(RELEASED["A0"]) == wholly(PAPER, 0)
    assert PAPER.arch_of(LARGEST) == wholly(PAPER, -1)


def test_the_space_has_as_many_subnets_as_counted() -> None:
    assert math.prod(len(d.choices) for d in PAPER.decisions) == 440_301_256_704


def test_macs_agree_with_another_counter() -> None:
    for arch in archs_of(ODD, 2):
        count = count_with_fvcore(ODD.network(arch), ODD.input_shape_of(arch))
        assert count.macs == ODD.cost_table().cost(arch, "macs")


@pytest.mark.long
@pytest.mark.parametrize("name", RELEASED)
def test_released_macs_agree_with_another_counter(name: str) -> None:
    arch = PAPER.arch_of(RELEASED[name])
    count = count_with_fvcore(PAPER.network(arch), PAPER.input_shape_of(arch))
    assert count.macs == PUBLISHED[name][0]


def test_a_subnets_weights_do_not_depend_on_its_resolution() -> None:
    arch = PAPER.arch_of(RELEASED["A2"])
    with torch.device("meta"):
        shapes = [
            {n: p.shape for n, p in PAPER.network(arch.replace(resolution=r)).named_parameters()}
            for r in (192, 288)
        ]
    assert shapes[0] == shapes[1]


@pytest.mark.long
def test_the_papers_table_agrees_with_the_closed_form() -> None:
    table = PAPER.cost_table()
    for arch in archs_of(PAPER, 200):
        costs = table.costs(arch)
        assert (costs["macs"], costs["params"]) == counted(PAPER, PAPER.subnet(arch))
    assert table.minimum("macs")[0] == PUBLISHED["A0"][0]
    assert table.maximum("macs")[0] == PUBLISHED["max"][0]


@pytest.mark.long
def test_architectures_of_the_paper_are_drawn_exactly_by_their_macs() -> None:
    sampler = make_sampler(PAPER.cost_table(), "macs")
    assert sampler.method == "elimination"
    assert sampler.count() == PAPER.cost_table().n_archs
    drawn = sampler.sample_archs(np.random.default_rng(0), 200e6, 225e6, 50)
    assert all(200e6 <= counted(PAPER, PAPER.subnet(arch))[0] <= 225e6 for arch in drawn)


# -- one function --------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_masked_sliced_and_materialised_subnets_are_one_function(batch_statistics: bool) -> None:
    assert_one_function(TINY, 50, batch_statistics=batch_statistics)


def test_so_they_are_where_pictures_are_not_square_and_maps_are_odd() -> None:
    assert {ODD.input_shape_of(a) for a in archs_of(ODD, 20)} == {(1, 18, 9), (1, 24, 12)}
    assert_one_function(ODD, 15, batch_statistics=False)


@pytest.mark.long
def test_subnets_of_the_papers_sizes_are_one_function() -> None:
    space = attentivenas(preset="paper", input_shape=(3, 32, 32), n_classes=10)
    assert_one_function(space, 2, batch_statistics=False)


def test_small_kernels_are_the_centre_of_large_ones() -> None:
    weight = torch.arange(50.0).reshape(2, 1, 5, 5)
    assert torch.equal(part(weight, 2, 1, 3, 3), weight[:, :, 1:4, 1:4])
    assert part(weight, 2, 1, 5, 5) is weight
    assert part(torch.tensor(4)) == 4


@torch.no_grad()
def test_images_may_come_at_the_subnets_resolution() -> None:
    supernet, arch = lively(TINY), archs_of(TINY, 1)[0].replace(resolution=6)
    x = torch.randn(2, *SHAPE)
    assert torch.equal(supernet(x, arch), supernet(resized(x, (6, 6)), arch))
    assert not torch.allclose(supernet(x, arch), supernet(x, arch.replace(resolution=8)))


# -- architectures -------------------------------------------------------------------------------


def test_architectures_survive_genes_json_and_sizes() -> None:
    for arch in archs_of(PAPER, 20):
        PAPER.validate(arch)
        assert Arch.from_genes(PAPER.decisions, arch.genes(PAPER.decisions)) == arch
        assert Arch.from_json(arch.to_json()) == arch
        assert PAPER.arch_of(PAPER.subnet(arch)) == arch


def test_every_gene_makes_another_network_so_nothing_leaves_the_canonical_form() -> None:
    arch = archs_of(TINY, 1)[0]
    assert TINY.canonical(arch) == arch
    neighbours = {arch.replace(**{d.label: c}) for d in TINY.decisions for c in d.choices}
    assert len({TINY.graph_key(a) for a in neighbours}) == len(neighbours)
    assert len({weights_and_macs(a) for a in neighbours}) == len(neighbours)


def weights_and_macs(arch: Arch) -> tuple[object, ...]:
    with torch.device("meta"):
        network = TINY.network(arch)
    shapes = tuple((n, tuple(p.shape)) for n, p in network.named_parameters())
    return *shapes, graph_of(TINY, arch).macs()


def test_only_what_is_searched_is_a_decision() -> None:
    labels = [d.label for d in PAPER.decisions]
    assert "mb1_expand" not in labels
    assert "mb6_expand" not in labels
    assert labels[:3] == ["resolution", "stem_width", "mb1_width"]


def test_what_is_not_of_the_space_is_refused() -> None:
    arch = archs_of(PAPER, 1)[0]
    with pytest.raises(InvalidArchError, match=r"resolution.*200.*192, 224, 256, 288"):
        PAPER.validate(arch.replace(resolution=200))
    with pytest.raises(InvalidArchError, match="mb3_kernel"):
        PAPER.network(arch.replace(mb3_kernel=7))
    with pytest.raises(SpaceError, match="no preset 'nano'; known: paper, tiny"):
        attentivenas(preset="nano", input_shape=(3, 288, 288), n_classes=10)
    too_small = r"2 pixels are too small for the 4 resolutions.* 9 or more"
    with pytest.raises(SpaceError, match=too_small):
        attentivenas(preset="paper", input_shape=(3, 288, 2), n_classes=10)
    arch, foreign = wholly(TINY, 0), toy_supernet(toy_space())
    with pytest.raises(SpaceError, match="ChainSupernet is not a supernet of attentivenas"):
        TINY.inherit(TINY.network(arch), arch, foreign)


def test_stages_that_cannot_share_weights_are_refused() -> None:
    given = {"name": "mb1", "widths": (8, 16), "depths": (1, 2), "kernels": (3,), "stride": 1}
    with pytest.raises(ValueError, match="expansion 1"):
        Stage(**given, expands=(1, 4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="small to large"):
        Stage(**(given | {"widths": (16, 8)}), expands=(1,))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [8, 12, 28, 32, 96, 224, 288])
def test_resolutions_are_proportional_and_all_different(size: int) -> None:
    for wanted in ((192, 224, 256, 288), (6, 8)):
        if size < 9 and len(wanted) == 4:
            continue
        found = scaled_resolutions(wanted, size)
        assert len(set(found)) == len(wanted)
        assert list(found) == sorted(found)
        assert found[-1] == size
        gap = size * min(np.diff(wanted)) / wanted[-1]
        for got, target in zip(found, wanted, strict=True):
            assert abs(got - size * target / wanted[-1]) <= max(gap / 4, 0.5)


def test_the_papers_pictures_keep_the_papers_resolutions() -> None:
    assert scaled_resolutions((192, 224, 256, 288), 288) == (192, 224, 256, 288)
    assert scaled_resolutions((192, 224, 288, 320), 320) == (192, 224, 288, 320)


# -- supernet ------------------------------------------------------------------------------------


def test_residual_branches_start_at_zero() -> None:
    torch.manual_seed(0)
    supernet, x = TINY.supernet(), torch.randn(2, 16, 8, 8)
    block = supernet.get_submodule("mb2_1").eval()
    shortcut = supernet.get_submodule("mb2_1.shortcut")
    assert torch.equal(block(x), shortcut(x))
    network = TINY.network(wholly(TINY, -1))
    gammas = [m.project.get_submodule("norm").weight for m in network if isinstance(m, Block)]
    assert gammas
    assert not any(bool(gamma.any()) for gamma in gammas)


def test_a_narrow_subnet_trains_and_tracks_leading_channels_only() -> None:
    torch.manual_seed(0)
    supernet = TINY.supernet().train()
    for name, parameter in supernet.named_parameters():
        if name.endswith("project.norm.weight"):
            nn.init.ones_(parameter)  # branches that are zero pass no gradient on
    arch = wholly(TINY, 0)
    supernet(torch.randn(8, *SHAPE), arch).square().sum().backward()
    depthwise = supernet.get_parameter("mb2_1.depthwise.conv.weight").grad  # (48, 1, 5, 5)
    assert depthwise is not None
    assert (depthwise[:16, :, 1:4, 1:4] != 0).flatten(1).any(dim=1).all()
    assert not depthwise[16:].any()
    assert not depthwise[:, :, 0].any()
    mean = supernet.get_buffer("mb2_1.depthwise.norm.running_mean")
    assert (mean[:16] != 0).all()
    assert not mean[16:].any()
    assert int(supernet.get_buffer("mb2_1.depthwise.norm.num_batches_tracked")) == 1
    assert int(supernet.get_buffer("mb2_2.depthwise.norm.num_batches_tracked")) == 0


def test_only_what_a_subnet_uses_gets_a_gradient() -> None:
    supernet = lively(TINY)
    for arch in (wholly(TINY, 0), *archs_of(TINY, 3)):
        supernet.zero_grad(set_to_none=True)
        supernet(torch.randn(2, *SHAPE), arch).sum().backward()
        used = {id(p) for p in supernet.subnet_parameters(arch)}
        for name, parameter in supernet.named_parameters():
            assert (parameter.grad is not None) == (id(parameter) in used), name


def test_a_probing_pass_leaves_statistics_as_they_were() -> None:
    supernet = lively(TINY).train()
    before = {n: b.clone() for n, b in supernet.named_buffers()}
    with probing(supernet):
        supernet(torch.randn(4, *SHAPE), archs_of(TINY, 1)[0])
    assert all(torch.equal(b, before[n]) for n, b in supernet.named_buffers())


@pytest.mark.parametrize("share", [True, False])
def test_a_shared_subnet_writes_to_the_supernets_weights_but_not_its_statistics(
    share: bool,
) -> None:
    supernet, arch = TINY.supernet(), wholly(TINY, 0)
    with torch.device("meta"):
        network = TINY.network(arch)
    TINY.inherit(network, arch, supernet, share=share)
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.fill_(7)
    kernel = supernet.get_parameter("mb2_1.depthwise.conv.weight")
    assert bool((kernel[:16, :, 1:4, 1:4] == 7).all()) is share
    assert not (kernel[16:] == 7).any()
    assert not (kernel[:, :, 0] == 7).any()
    assert not any((b == 7).any() for b in supernet.buffers())


def test_drop_rates_grow_in_the_last_two_stages() -> None:
    with torch.device("meta"):
        supernet = PAPER.supernet()
    rates = {n.split(".")[0]: m.p for n, m in supernet.named_modules()
             if isinstance(m, DropPath) and m.p}  # fmt: skip
    # 37 blocks, the first of mb6 is number 27 and has another shape than its input
    assert list(rates) == [*(f"mb6_{i}" for i in range(2, 9)), "mb7_1", "mb7_2"]
    assert list(rates.values()) == pytest.approx([0.2 * i / 37 for i in range(28, 37)])


@pytest.mark.parametrize(("channels", "stride", "drops"), [(8, 1, 1), (16, 1, 0), (8, 2, 0)])
def test_a_branch_is_dropped_only_where_its_input_remains(
    channels: int, stride: int, drops: int
) -> None:
    size = BlockSize(in_channels=8, channels=channels, kernel=3, expand=2)
    block = Block(size, BlockKind(stride=stride, se=False, shortcut=True), drop_path=0.5).train()
    dropped = []
    for module in block.modules():
        if isinstance(module, DropPath):
            module.register_forward_hook(lambda *_: dropped.append(1))
    block(torch.randn(4, 8, 4, 4))
    assert len(dropped) == drops


@pytest.mark.parametrize("strategy", [AttentiveNAS, Sandwich])
def test_only_the_largest_subnet_of_a_step_is_regularised(strategy) -> None:
    supernet = lively(TINY).train()
    dropping: list[bool] = []
    for module in supernet.modules():
        if isinstance(module, DropPath | nn.Dropout):
            module.register_forward_hook(lambda m, *_: dropping.append(m.training))
    (update,) = strategy(TINY).updates(hand_step(supernet))
    dropping.clear()  # what probed candidates
    teacher, *students = update.losses
    teacher()
    assert any(dropping)
    dropping.clear()
    for student in students:
        student()
    assert dropping
    assert not any(dropping)


@pytest.mark.parametrize("pick", ["best", "worst"])
def test_the_strategy_of_the_paper_trains_the_tiny_space(
    pick: Literal["best", "worst"], tmp_path: Path
) -> None:
    strategy = AttentiveNAS(TINY, AttentiveNASOptions(pick=pick))
    before, after = losses_around(TINY, strategy, tmp_path)
    assert after < before - 0.3  # ln 4 = 1.39 before


def test_a_scored_subnet_sees_images_at_its_resolution() -> None:
    supernet = lively(TINY)
    batches = [ToyStream(batch_size=32).batch(i) for i in range(2)]
    scorer = Scorer(TINY, supernet, batches, batches, policy="tracked")
    for arch in archs_of(TINY, 4):
        with torch.inference_mode():
            right = [(supernet(b.images, arch).argmax(1) == b.labels) for b in batches]
        assert scorer.score(arch).accuracy == float(torch.cat(right).float().mean())


def test_a_saved_supernet_comes_back(tmp_path: Path) -> None:
    supernet = lively(TINY)
    save_supernet(TINY, supernet, tmp_path / "supernet.safetensors")
    loaded = load_supernet(TINY, tmp_path / "supernet.safetensors").eval()
    arch, x = archs_of(TINY, 1)[0], torch.randn(1, *SHAPE)
    assert torch.equal(loaded(x, arch), supernet(x, arch))


# -- graphs and files ----------------------------------------------------------------------------


def cut_out(arch: Arch) -> nn.Sequential:
    return materialise(TINY, arch, lively(TINY)).eval()


def run_onnx(model: str | bytes, x: torch.Tensor) -> np.ndarray:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    output: np.ndarray = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    return output


def test_factors_add_up_to_the_graph() -> None:
    names = [c.name for c in COLUMNS if c.name not in ("params", "size_bytes")]
    for space in (TINY, ODD):
        table = space.cost_table()
        for arch in archs_of(space, 15):
            costs, graph = table.costs(arch), graph_costs(graph_of(space, arch))
            assert {n: costs[n] for n in names} == {n: graph[n] for n in names}
            with torch.device("meta"):
                network = space.network(arch)
            assert costs["params"] == sum(p.numel() for p in network.parameters())


def test_each_structure_is_recorded_once_per_input_shape() -> None:
    ODD.cost_table()
    # stem, mb1 (of whose blocks later ones equal first ones), mb2, mb3, head; two resolutions
    assert len(recorder_of(ODD.space_id)) == 2 * (2 + 4 + (16 + 8) + (16 + 8) + 4)


def test_architectures_are_drawn_exactly_by_their_macs() -> None:
    table = TINY.cost_table()
    low, high = (float(q) for q in make_sampler(table, "macs").quantiles([0.1, 0.2]))
    drawn = make_sampler(table, "macs").sample_archs(np.random.default_rng(0), low, high, 20)
    assert all(low <= graph_of(TINY, arch).macs() <= high for arch in drawn)


@pytest.mark.parametrize("index", [0, *(pytest.param(i, marks=pytest.mark.long) for i in (1, 2))])
def test_graphs_and_files_give_the_logits_and_runtimes_fuse_every_swish(
    index: int, tmp_path: Path
) -> None:
    arch = archs_of(TINY, 3, seed=4)[index]
    network, graph = cut_out(arch), graph_of(TINY, arch)
    shape = TINY.input_shape_of(arch)
    exported = export_subnet(network, shape, tmp_path / "subnet.onnx")
    candidate = to_onnx(graph, graph_weights(graph, network)).model
    onnx.checker.check_model(onnx.load_from_string(candidate), full_check=True)
    x = torch.randn(1, *shape)
    with torch.no_grad():
        expected = network(x).numpy()
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(run_onnx(candidate, x), expected, atol=1e-4)
    np.testing.assert_allclose(run_onnx(str(exported.path), x), expected, atol=1e-4)
    assert exported.operator_histogram == graph.operator_histogram()
    fused = optimised_operators(str(exported.path), tmp_path / "fused.onnx")
    assert fused["QuickGelu"] == sum(isinstance(m, nn.SiLU) for m in network.modules())
    assert not fused["Sigmoid"]


def optimised_operators(path: str, to: Path) -> Counter[str]:
    """Operators that onnxruntime runs: it knows x · sigmoid(x) as a QuickGelu with factor one."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(to)
    options.log_severity_level = 3  # it warns that the written file suits this machine
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(str(to)).graph.node)


@pytest.mark.long
def test_a_released_subnet_is_exported_at_its_resolution(tmp_path: Path) -> None:
    arch = PAPER.arch_of(RELEASED["A0"])
    torch.manual_seed(0)
    network = PAPER.network(arch).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    exported = export_subnet(network, PAPER.input_shape_of(arch), tmp_path / "subnet.onnx")
    x = torch.randn(1, 3, 192, 192)
    with torch.no_grad():
        expected = network(x).numpy()
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(run_onnx(str(exported.path), x), expected, atol=1e-4 * scale)
    assert exported.operator_histogram == graph_of(PAPER, arch).operator_histogram()


def test_pooling_shortcuts_average_what_is_there() -> None:
    x = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]]])
    pooled = Shortcut(1, stride=2, project_from=None)(x)
    assert pooled.tolist() == [[[[1.0, 2.5], [5.5, 7.0]]]]
