"""The AutoFormer spaces: published sizes, and one function however a subnet is run."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from latency_tables.arch import Arch
from latency_tables.costs import VIEWS, graph_costs
from latency_tables.errors import InvalidArchError, SpaceError
from latency_tables.onnx_writer import to_onnx
from latency_tables.sampler import make_sampler
from pipeline.export.onnx_export import export_subnet
from pipeline.export.record import COLUMNS, graph_of, graph_weights, record, space_cost_table
from pipeline.export.reference_count import count_with_fvcore
from pipeline.spaces.autoformer import (
    PRESETS,
    RELEASED,
    AutoFormerSpace,
    AutoFormerSupernet,
    Subnet,
    autoformer,
)
from pipeline.spaces.autoformer.blocks import Block, BlockSize, Grid, RelativePosition
from pipeline.supernet.scoring import Scorer, evaluate, materialise
from pipeline.supernet.weights import load_supernet, save_supernet
from pipeline.training.config import OptimizerConfig
from pipeline.training.precision import Precision
from tests.pipeline.training.toys import CLASSES, SHAPE, ToyStream, toy_config, toy_train

torch.set_num_threads(1)

IMAGENET = (3, 224, 224)
PAPER = {
    name: autoformer(preset=name, input_shape=IMAGENET, n_classes=1000)
    for name in ("tiny", "small", "base", "tiny-absolute", "small-absolute", "base-absolute")
}
# 4 x 4 patches; 2 x 4 patches of pictures that are not square
MICRO = {
    "micro": autoformer(preset="micro", input_shape=(3, 16, 16), n_classes=10),
    "micro-absolute": autoformer(preset="micro-absolute", input_shape=(3, 16, 16), n_classes=10),
    "micro, wide pictures": autoformer(preset="micro", input_shape=(1, 8, 16), n_classes=5),
}
every_micro = pytest.mark.parametrize("space", MICRO.values(), ids=MICRO)
drawn = settings(max_examples=10, deadline=None)
seeds = st.integers(0, 2**32)


def trained_supernet(space: AutoFormerSpace, seed: int = 0) -> AutoFormerSupernet:
    """A supernet none of whose weights, biases and tables is neutral."""
    torch.manual_seed(seed)
    supernet = space.supernet()
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(mean, min(0.3, 1.5 / parameter[0].numel() ** 0.5))
    return supernet.eval()


def archs_of(space: AutoFormerSpace, n: int, seed: int = 0) -> list[Arch]:
    rng = np.random.default_rng(seed)
    return [space.sample(rng) for _ in range(n)]


# -- published sizes -----------------------------------------------------------------------------

# parameters, MACs without relative positions, MACs with their products
PUBLISHED = {
    "tiny": (5_867_944, 1_283_236_352, 1_481_938_432),
    "small": (22_891_432, 4_773_931_776, 5_161_400_832),
    "base": (53_691_688, 11_045_397_248, 11_691_179_008),
}
SUPERNETS = {"tiny": 11_669_224, "small": 34_790_440, "base": 80_160_360}
# parameters, then MACs without relative positions, of the smallest and the largest subnet
RANGES = {
    "tiny": (5_366_056, 10_517_272, 1_166_536_704, 2_263_242_112),
    "small": (13_057_320, 34_790_440, 2_767_278_080, 7_197_204_224),
    "base": (41_687_896, 76_882_264, 8_674_376_064, 15_742_997_888),
}
TABLES = 2 * 2 * 30 * 64
"""Weights of a block's relative positions: keys and values, two axes, 30 distances, 64."""


def closed_form(subnet: Subnet, *, n: int, d: int, tables: int, patch: int, classes: int):
    """(parameters, MACs without relative positions, MACs of their products), as sums over blocks.

    ``n`` tokens, heads of ``d``, ``patch`` numbers per patch.
    """
    e = subnet.embed_dim
    parameters = patch * e + e + (1 + n) * e + 2 * e + classes * e + classes
    macs, relative = (n - 1) * patch * e + classes * e, 0
    for h, ratio in zip(subnet.heads, subnet.mlp_ratios, strict=True):
        q, f = h * d, int(e * ratio)
        parameters += 4 * e + 3 * q * e + 3 * q + tables + q * e + e + f * e + f + f * e + e
        macs += n * 3 * q * e + 2 * n * n * q + n * q * e + 2 * n * e * f
        relative += 2 * n * n * q
    return parameters, macs, relative


@pytest.mark.parametrize("name", PUBLISHED)
def test_released_subnets_have_the_published_parameters_and_macs(name: str) -> None:
    with torch.device("meta"):
        network = PAPER[name].network_of(RELEASED[name])
        absolute = PAPER[f"{name}-absolute"].network_of(RELEASED[name])
    parameters, macs, macs_relative = PUBLISHED[name]
    n_blocks = len(RELEASED[name].heads)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert sum(p.numel() for p in absolute.parameters()) == parameters - n_blocks * TABLES
    assert record(absolute, (1, *IMAGENET)).macs() == macs
    assert record(network, (1, *IMAGENET)).macs() == macs_relative


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_closed_form_gives_the_published_numbers(name: str) -> None:
    parameters, macs, relative = closed_form(
        RELEASED[name], n=197, d=64, tables=TABLES, patch=768, classes=1000
    )
    assert (parameters, macs, macs + relative) == PUBLISHED[name]


@pytest.mark.parametrize("name", SUPERNETS)
def test_supernets_hold_the_published_number_of_weights(name: str) -> None:
    with torch.device("meta"):
        supernet = PAPER[name].supernet()
    assert sum(p.numel() for p in supernet.parameters()) == SUPERNETS[name]


@pytest.mark.parametrize("name", ["tiny-absolute", "small-absolute", "base-absolute"])
def test_ranges_of_the_spaces_are_exact(name: str) -> None:
    table, depths = PAPER[name].cost_table(), PAPER[name].sizes.depths
    parameters_low, parameters_high, macs_low, macs_high = RANGES[name.removesuffix("-absolute")]
    assert table.minimum("params")[0] == parameters_low - depths[0] * TABLES
    assert table.maximum("params")[0] == parameters_high - depths[-1] * TABLES
    assert table.minimum("macs")[0] == macs_low
    assert table.maximum("macs")[0] == macs_high


@pytest.mark.parametrize(("name", "size"), [("tiny", 1.06e9), ("small", 7.7e13), ("base", 1.0e13)])
def test_spaces_have_the_published_number_of_subnets(name: str, size: float) -> None:
    sizes = PAPER[name].sizes
    per_block = len(sizes.heads) * len(sizes.mlp_ratios)
    n_subnets = len(sizes.embed_dims) * sum(per_block**depth for depth in sizes.depths)
    assert n_subnets == pytest.approx(size, rel=0.03)


@pytest.mark.parametrize("name", ["tiny-absolute", "small-absolute", "tiny"])
def test_the_cost_table_follows_the_closed_form(name: str) -> None:
    space = PAPER[name]
    relative = space.sizes.relative_position
    for arch in archs_of(space, 20):
        parameters, macs, products = closed_form(
            space.subnet(arch), n=197, d=64, tables=relative * TABLES, patch=768, classes=1000
        )
        costs = space.cost_table().costs(arch)
        assert costs["params"] == parameters
        assert costs["macs"] == macs + relative * products


def test_a_tenth_of_tiny_subnets_has_about_1600_million_macs() -> None:
    sampler = make_sampler(PAPER["tiny-absolute"].cost_table(), "macs")
    assert sampler.method == "elimination"
    # counted by drawing: 0.0918 of 200,000 architectures, 0.0920 by the exact way
    assert sampler.probability(1.55e9, 1.65e9) == pytest.approx(0.092, abs=1e-3)
    (arch,) = sampler.sample_archs(np.random.default_rng(0), 1.29e9, 1.31e9, 1)
    assert 1.29e9 <= PAPER["tiny-absolute"].cost_table().cost(arch, "macs") <= 1.31e9


@every_micro
def test_macs_agree_with_two_other_counters(space: AutoFormerSpace) -> None:
    arch = archs_of(space, 1)[0]
    network = space.network(arch).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, *space.input_shape))
    macs = space.cost_table().cost(arch, "macs")
    assert macs == count_with_fvcore(network, space.input_shape).macs
    assert 2 * macs == counter.get_total_flops()


# -- one function --------------------------------------------------------------------------------


def dense(supernet: AutoFormerSupernet, x: Tensor, subnet: Subnet) -> Tensor:
    """The subnet by masks: every tensor has the supernet's size, what is inactive becomes zero."""
    weight = dict(supernet.named_parameters())
    widest, depth = supernet.space.sizes.supernet_embed_dim, len(subnet.heads)
    e, d = subnet.embed_dim, supernet.space.sizes.head_dim
    active = (torch.arange(widest) < e).float()  # (E,)

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weight[f"{name}.weight"], weight[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        mean = (x * active).sum(-1, keepdim=True) / e
        variance = ((x - mean).square() * active).sum(-1, keepdim=True) / e
        y = (x - mean) / (variance + 1e-5).sqrt()
        return (y * weight[f"{name}.weight"] + weight[f"{name}.bias"]) * active

    def attend(name: str, x: Tensor, heads: int) -> Tensor:
        b, n, _ = x.shape
        q, k, v = linear(f"{name}.qkv", x).reshape(b, n, -1, 3, d).unbind(3)  # (B, N, h, d) each
        scores = torch.einsum("bihd,bjhd->bhij", q, k)
        if supernet.space.sizes.relative_position:
            scores = scores + torch.einsum(
                "bihd,ijd->bhij", q, pairs_in(supernet, f"{name}.relative_key")
            )
        weights = (scores / d**0.5).softmax(-1)
        y = torch.einsum("bhij,bjhd->bihd", weights, v)
        if supernet.space.sizes.relative_position:
            y = y + torch.einsum(
                "bhij,ijd->bihd", weights, pairs_in(supernet, f"{name}.relative_value")
            )
        mask = (torch.arange(y.shape[2]) < heads).float()[:, None]
        return linear(f"{name}.proj", (y * mask).reshape(b, n, -1)) * active

    def perceptron(name: str, x: Tensor, hidden: int) -> Tensor:
        y = F.gelu(linear(f"{name}.fc1", x))
        mask = (torch.arange(y.shape[-1]) < hidden).float()
        return linear(f"{name}.fc2", y * mask) * active

    patch = supernet.space.sizes.patch
    x = F.conv2d(x, weight["patch_embed.project.weight"], weight["patch_embed.project.bias"], patch)
    x = torch.cat([weight["patch_embed.class_token"].expand(len(x), 1, -1),
                   x.flatten(2).transpose(1, 2)], 1)  # fmt: skip
    x = (x + weight["patch_embed.position"]) * active
    for i in range(supernet.space.sizes.depths[-1]):
        name, gate = f"block{i + 1:02d}", float(i < depth)
        heads = subnet.heads[i] if gate else 1
        hidden = int(e * subnet.mlp_ratios[i]) if gate else 1
        x = x + gate * attend(name, norm(f"{name}.norm1", x), heads)
        x = x + gate * perceptron(name, norm(f"{name}.norm2", x), hidden)
    return linear("head.linear", norm("head.norm", x)[:, 1:].mean(1))


@cache
def pairs_in(supernet: AutoFormerSupernet, name: str) -> Tensor:
    tables = (supernet.get_parameter(f"{name}.{axis}") for axis in ("vertical", "horizontal"))
    return pairs_of(*tables, supernet.space.grid)


def pairs_of(vertical: Tensor, horizontal: Tensor, grid: Grid) -> Tensor:
    """(N, N, d), pair by pair; token 0 is the class token."""
    limit = grid.max_distance
    rows = []
    for i in range(grid.n_tokens):
        row = []
        for j in range(grid.n_tokens):
            if i == 0 or j == 0:
                row.append(vertical[0] + horizontal[0])
                continue
            down = (j - 1) // grid.width - (i - 1) // grid.width
            across = (j - 1) % grid.width - (i - 1) % grid.width
            down, across = (min(max(x, -limit), limit) + limit + 1 for x in (down, across))
            row.append(vertical[down] + horizontal[across])
        rows.append(torch.stack(row))
    return torch.stack(rows)


@torch.no_grad()
@every_micro
def test_masked_sliced_and_materialised_subnets_are_one_function(space: AutoFormerSpace) -> None:
    supernet = trained_supernet(space)
    x = torch.randn(2, *space.input_shape)
    outputs = []
    for arch in archs_of(space, 50):
        sliced = supernet(x, arch)
        network = space.network(arch).eval()
        space.inherit(network, arch, supernet)
        assert sliced.abs().max() > 0.01
        torch.testing.assert_close(network(x), sliced, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            dense(supernet, x, space.subnet(arch)), sliced, atol=1e-5, rtol=1e-5
        )
        outputs.append(sliced)
    # subnets differ from each other, so agreeing is no accident
    different = {tuple(y.flatten().tolist()) for y in outputs}
    assert len(different) == len({space.canonical(a) for a in archs_of(space, 50)})


@torch.no_grad()
def test_a_subnet_of_the_papers_sizes_is_one_function() -> None:
    space = autoformer(preset="tiny", input_shape=(3, 32, 32), n_classes=10)
    supernet = trained_supernet(space)
    arch = archs_of(space, 1)[0]
    x = torch.randn(1, *space.input_shape)
    sliced = supernet(x, arch)
    torch.testing.assert_close(materialise(space, arch, supernet)(x), sliced, atol=1e-5, rtol=0)
    expected = dense(supernet, x, space.subnet(arch))
    torch.testing.assert_close(expected, sliced, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 3), (2, 5), (1, 1)])
def test_relative_positions_follow_from_the_places_of_two_tokens(shape: tuple[int, int]) -> None:
    grid = Grid(height=shape[0], width=shape[1], max_distance=2)  # (2, 5) has longer distances
    relative = RelativePosition(4, grid)
    for table in (relative.vertical, relative.horizontal):
        nn.init.normal_(table)
    torch.testing.assert_close(
        relative(), pairs_of(relative.vertical, relative.horizontal, grid), rtol=0, atol=0
    )


@torch.no_grad()
def test_attention_is_scaled_by_the_dimension_of_a_head() -> None:
    block = Block(BlockSize(embed_dim=6, heads=2, hidden=8), head_dim=4)
    x = torch.randn(1, 5, 6)
    q, k, v = block.qkv(block.norm1(x)).reshape(1, 5, 2, 3, 4).permute(3, 0, 2, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v, scale=4**-0.5).transpose(1, 2).reshape(1, 5, 8)
    y = x + block.proj(y)
    y = y + block.fc2(F.gelu(block.fc1(block.norm2(y))))
    torch.testing.assert_close(block(x), y, atol=1e-6, rtol=1e-5)


# -- architectures -------------------------------------------------------------------------------


@every_micro
@drawn
@given(seed=seeds)
def test_genes_of_absent_blocks_mean_nothing(space: AutoFormerSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    arch = space.sample(rng).replace(depth=2)
    other = arch.replace(**{
        label: d.choices[rng.integers(len(d.choices))]
        for d in space.decisions for label in [d.label] if label.startswith("block03")
    })  # fmt: skip
    assert space.canonical(arch) == space.canonical(other) == space.canonical(space.canonical(arch))
    space.validate(space.canonical(arch))
    assert space.graph_key(arch) == space.graph_key(other)
    assert space.cost_table().costs(arch) == space.cost_table().costs(other)
    deeper = arch.replace(depth=3)
    assert space.canonical(deeper) == deeper
    assert space.graph_key(deeper) != space.graph_key(arch)


@every_micro
@drawn
@given(seed=seeds)
def test_architectures_survive_genes_json_and_sizes(space: AutoFormerSpace, seed: int) -> None:
    arch = space.sample(np.random.default_rng(seed))
    space.validate(arch)
    assert Arch.from_genes(space.decisions, arch.genes(space.decisions)) == arch
    assert Arch.from_json(arch.to_json()) == arch
    assert space.arch_of(space.subnet(arch)) == space.canonical(arch)


def test_different_subnets_have_different_graph_keys() -> None:
    space = MICRO["micro"]
    genes = np.stack(np.unravel_index(np.arange(3 * 2 * 4**3), (3, 2, *(2,) * 6)), axis=1)
    archs = [Arch.from_genes(space.decisions, row.tolist()) for row in genes]
    canonical = {space.canonical(arch) for arch in archs}
    assert len(canonical) == len({space.graph_key(arch) for arch in archs}) == 3 * (4**2 + 4**3)


def test_the_released_tiny_subnet_is_outside_its_space_and_the_others_inside() -> None:
    with pytest.raises(InvalidArchError, match=r"mlp_ratio.*3\.0; allowed: 3\.5, 4\.0"):
        PAPER["tiny"].arch_of(RELEASED["tiny"])
    for name in ("small", "base"):
        space = PAPER[name]
        assert space.subnet(space.arch_of(RELEASED[name])) == RELEASED[name]


def test_what_a_space_cannot_be_is_refused() -> None:
    with pytest.raises(SpaceError, match="no preset 'nano'; known: tiny, small"):
        autoformer(preset="nano", input_shape=IMAGENET, n_classes=10)
    with pytest.raises(SpaceError, match="multiples of 16"):
        autoformer(preset="tiny", input_shape=(3, 30, 32), n_classes=10)
    ids = {autoformer(preset=p, input_shape=(3, 32, 32), n_classes=10).space_id for p in PRESETS}
    assert len(ids) == len(PRESETS)


# -- supernet ------------------------------------------------------------------------------------


def test_only_what_a_subnet_uses_gets_a_gradient() -> None:
    space = MICRO["micro"]
    supernet = trained_supernet(space)
    arch = space.arch_of(Subnet(embed_dim=16, heads=(1, 2), mlp_ratios=(2.0, 3.0)))
    supernet(torch.randn(2, *space.input_shape), arch).sum().backward()
    used = set(map(id, supernet.subnet_parameters(arch)))
    assert {n for n, p in supernet.named_parameters() if id(p) not in used} == {
        n for n, _ in supernet.named_parameters() if n.startswith("block03")
    }
    for name, parameter in supernet.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in used), name
    qkv = supernet.get_parameter("block01.qkv.weight").grad
    assert qkv is not None
    assert (qkv[:48, :16] != 0).any(dim=1).all()
    assert not qkv[48:].any()
    assert not qkv[:, 16:].any()


def test_a_shared_subnet_sees_what_happens_to_the_supernet_and_a_copy_does_not() -> None:
    space = MICRO["micro"]
    supernet = trained_supernet(space)
    arch = space.arch_of(Subnet(embed_dim=24, heads=(1, 2), mlp_ratios=(2.0, 3.0)))
    shared, copied = materialise(space, arch, supernet), space.network(arch)
    space.inherit(copied, arch, supernet)
    own = supernet.get_parameter("block01.relative_key.vertical")
    assert shared.get_parameter("block01.relative_key.vertical") is own
    with torch.no_grad():
        supernet.get_parameter("block01.fc1.weight").fill_(7.0)
        assert (shared.get_parameter("block01.fc1.weight") == 7.0).all()
        assert not (copied.get_parameter("block01.fc1.weight") == 7.0).any()
        copied.get_parameter("block02.fc1.weight").fill_(9.0)
    assert not (supernet.get_parameter("block02.fc1.weight") == 9.0).any()


def test_a_scored_subnet_has_the_supernets_accuracy_and_loss() -> None:
    space = autoformer(preset="micro", input_shape=SHAPE, n_classes=CLASSES)
    supernet = trained_supernet(space)
    batches = [ToyStream(batch_size=32).batch(i) for i in range(2)]
    scorer = Scorer(space, supernet, batches, batches)
    for arch in archs_of(space, 4):
        score = scorer.score(arch)
        with torch.inference_mode():
            logits = torch.cat([supernet(b.images, arch) for b in batches])
        loss = F.cross_entropy(logits, torch.cat([b.labels for b in batches]))
        assert score.loss == pytest.approx(float(loss), abs=1e-5)
        again = evaluate(materialise(space, arch, supernet), batches, Precision())
        assert (score.accuracy, score.loss) == again[:2]


def test_the_engine_trains_entangled_weights(tmp_path: Path) -> None:
    space = autoformer(preset="micro", input_shape=SHAPE, n_classes=CLASSES)
    torch.manual_seed(0)
    supernet = space.supernet()
    validation = [ToyStream(batch_size=64, seed=2).batch(0)]
    archs = archs_of(space, 8)

    def mean_loss() -> float:
        scores = [evaluate(materialise(space, a, supernet), validation, Precision()) for a in archs]
        return float(np.mean([loss for _, loss, _ in scores]))

    before = mean_loss()
    config = toy_config(steps=30, optimizer=OptimizerConfig(kind="adamw", lr=5e-3))
    toy_train(tmp_path, space=space, supernet=supernet, config=config)
    assert mean_loss() < before - 0.3  # ln 4 = 1.39 before


def test_a_saved_supernet_comes_back(tmp_path: Path) -> None:
    space = MICRO["micro"]
    supernet = trained_supernet(space)
    save_supernet(space, supernet, tmp_path / "supernet.safetensors")
    loaded = load_supernet(space, tmp_path / "supernet.safetensors").eval()
    arch, x = archs_of(space, 1)[0], torch.randn(1, *space.input_shape)
    assert torch.equal(loaded(x, arch), supernet(x, arch))


# -- graphs --------------------------------------------------------------------------------------


def network_with_weights(space: AutoFormerSpace, arch: Arch) -> nn.Sequential:
    network = space.network(arch).eval()
    space.inherit(network, arch, trained_supernet(space))
    return network


def run_onnx(model: str | bytes, x: Tensor) -> np.ndarray:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    output: np.ndarray = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    return output


def assert_graph_equals_torch(space: AutoFormerSpace, arch: Arch) -> None:
    network, graph = network_with_weights(space, arch), graph_of(space, arch)
    model = to_onnx(graph, graph_weights(graph, network)).model
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    x = torch.randn(1, *space.input_shape)
    with torch.no_grad():
        expected = network(x).numpy()
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(run_onnx(model, x), expected, atol=1e-4)


@every_micro
def test_graphs_with_real_weights_give_torchs_output(space: AutoFormerSpace) -> None:
    for arch in archs_of(space, 3):
        assert_graph_equals_torch(space, arch)


@pytest.mark.long
@every_micro
def test_thirty_graphs_with_real_weights_give_torchs_output(space: AutoFormerSpace) -> None:
    for arch in archs_of(space, 30, seed=1):
        assert_graph_equals_torch(space, arch)


@every_micro
def test_factors_add_up_to_the_graph(space: AutoFormerSpace) -> None:
    counted = [c.name for c in COLUMNS if c.name not in ("params", "size_bytes")]
    for arch in archs_of(space, 10):
        table, graph = space.cost_table().costs(arch), graph_costs(graph_of(space, arch))
        assert {k: table[k] for k in counted} == {k: graph[k] for k in counted}


def test_the_table_counts_parameters_and_file_size() -> None:
    space = MICRO["micro"]
    arch = archs_of(space, 1)[0]
    network, graph = network_with_weights(space, arch), graph_of(space, arch)
    size = len(to_onnx(graph, graph_weights(graph, network)).model)
    costs = space.cost_table().costs(arch)
    assert costs["params"] == sum(p.numel() for p in network.parameters())
    assert costs["size_bytes"] == pytest.approx(size, rel=0.005)
    assert space_cost_table(space).table_hash == space.cost_table().table_hash


def assert_export_equals_torch(space: AutoFormerSpace, arch: Arch, folder: Path) -> Counter[str]:
    network = network_with_weights(space, arch)
    exported = export_subnet(network, space.input_shape, folder / "subnet.onnx")
    x = torch.randn(1, *space.input_shape)
    with torch.no_grad():
        expected = network(x).numpy()
    np.testing.assert_allclose(run_onnx(str(folder / "subnet.onnx"), x), expected, atol=1e-4)
    return Counter(exported.operator_histogram)


def optimised_operators(model: str | bytes, path: Path) -> Counter[str]:
    """Operators that onnxruntime runs: fused, and without what depends on weights only.

    Without views, which it merges or not, and which cost nothing.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3  # it warns that the written file suits this machine
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(str(path)).graph.node
    return Counter(node.op_type for node in nodes if node.op_type not in VIEWS)


def assert_the_export_runs_as_measured(space: AutoFormerSpace, arch: Arch, folder: Path) -> None:
    graph = graph_of(space, arch)
    measured = to_onnx(graph, graph_weights(graph, network_with_weights(space, arch))).model
    deployed = optimised_operators(str(folder / "subnet.onnx"), folder / "deployed.onnx")
    assert deployed == optimised_operators(measured, folder / "measured.onnx")
    assert deployed["Gelu"] == int(arch["depth"])


def test_the_exported_file_runs_the_operators_that_were_measured(tmp_path: Path) -> None:
    space = MICRO["micro-absolute"]
    arch = archs_of(space, 1)[0].replace(depth=2)
    histogram = assert_export_equals_torch(space, arch, tmp_path)
    assert histogram == graph_of(space, arch).operator_histogram()
    assert_the_export_runs_as_measured(space, arch, tmp_path)


@pytest.mark.long
def test_with_relative_positions_the_exported_file_runs_the_operators_that_were_measured(
    tmp_path: Path,
) -> None:
    """The exporter computes tables from weights beforehand; a runtime does so when it loads."""
    space = MICRO["micro"]
    arch = archs_of(space, 1)[0]
    assert_export_equals_torch(space, arch, tmp_path)
    assert_the_export_runs_as_measured(space, arch, tmp_path)


@pytest.mark.long
def test_a_released_subnet_is_exported_at_full_size(tmp_path: Path) -> None:
    space = PAPER["small"]
    assert_export_equals_torch(space, space.arch_of(RELEASED["small"]), tmp_path)
