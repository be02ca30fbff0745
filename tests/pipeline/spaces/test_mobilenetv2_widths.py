"""Operators and widths together, against the space without widths and a count of our own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from latency_tables.arch import Arch
from latency_tables.costs import graph_costs
from latency_tables.onnx_writer import to_onnx
from latency_tables.sampler import make_sampler
from pipeline.export.onnx_export import export_subnet
from pipeline.export.record import COLUMNS, graph_of, graph_weights
from pipeline.onnx_runtime import open_session
from pipeline.spaces.entangled import leading
from pipeline.spaces.mobile_blocks import IDENTITY, OPERATORS
from pipeline.spaces.mobilenetv2 import mobilenetv2
from pipeline.spaces.mobilenetv2_widths import COEFFICIENTS, mobilenetv2_widths
from tests.pipeline.spaces.weighted import weighted

torch.set_num_threads(1)

IMAGENET = {"input_shape": (3, 224, 224), "n_classes": 1000}
PAPER = mobilenetv2_widths(preset="paper", **IMAGENET)
TINY = mobilenetv2_widths(preset="tiny", input_shape=(1, 8, 8), n_classes=10)
WIDTHS = [d.label for d in TINY.decisions if d.label.endswith("_width")]

# output (channels, size) of the searched layers of the paper's space on 224 px
OUTPUTS = [
    *[(32, 56)] * 4, *[(40, 28)] * 4, *[(80, 14)] * 4, *[(96, 14)] * 4, *[(192, 7)] * 4, (320, 7),
]  # fmt: skip


def divisible(value: float) -> int:
    nearest = max(8, int(value / 8 + 0.5) * 8)
    return nearest + 8 if nearest < 0.9 * value else nearest


def counted(arch: Arch) -> tuple[int, int]:
    """(MACs, parameters) of an architecture of the paper's space, from the definition."""

    def conv(c_in: int, c: int, kernel: int, size: int, groups: int = 1) -> None:
        nonlocal macs, params
        weights = c_in // groups * c * kernel**2
        macs += weights * size**2
        params += weights + 2 * c

    macs = params = 0
    stem = divisible(32 * arch["stem_width"])
    mb1 = divisible(16 * arch["mb1_width"])
    conv(3, stem, 3, 112)
    conv(stem, stem, 3, 112, groups=stem)
    conv(stem, mb1, 1, 112)
    c_in, nominal, size_in = mb1, 16, 112
    for number, (c, size) in enumerate(OUTPUTS, start=1):
        operator = str(arch[f"layer{number:02d}"])
        if operator == IDENTITY:
            if nominal != c:
                conv(c_in, c, 1, size)
        else:
            expand, kernel = int(operator[2]), int(operator[5])
            mid = divisible(nominal * expand * arch[f"layer{number:02d}_width"])
            conv(c_in, mid, 1, size_in)
            conv(mid, mid, kernel, size, groups=mid)
            if operator.endswith("_se"):
                squeezed = divisible(mid // 4)
                macs += 2 * mid * squeezed
                params += 2 * mid * squeezed + mid + squeezed
            conv(mid, c, 1, size)
        c_in = nominal = c
        size_in = size
    features = divisible(1280 * arch["head_width"])
    conv(320, features, 1, 7)
    return macs + features * 1000, params + features * 1000 + 1000


def widened(space, arch: Arch, width: float) -> Arch:
    labels = [d.label for d in space.decisions if d.label.endswith("_width")]
    return arch.replace(**dict.fromkeys(labels, width))


def some_archs(n: int) -> list[Arch]:
    rng = np.random.default_rng(0)
    return [TINY.sample(rng) for _ in range(n)]


# -- costs ---------------------------------------------------------------------------------------


def test_there_are_21_operators_and_24_widths() -> None:
    sizes = Counter(len(d.choices) for d in PAPER.decisions)
    assert sizes == {13: 21, 5: 24}


@pytest.mark.parametrize("seed", range(3))
def test_networks_cost_what_the_definition_says(seed: int) -> None:
    arch = PAPER.sample(np.random.default_rng(seed))
    with torch.device("meta"):
        network = PAPER.network(arch)
    n_parameters = sum(p.numel() for p in network.parameters())
    assert (graph_of(PAPER, arch).macs(), n_parameters) == counted(arch)


@pytest.mark.parametrize("operator", ["mb3_k3", "mb6_k7_se"])
def test_full_widths_are_the_space_without_widths(operator: str) -> None:
    plain = mobilenetv2(preset="paper", **IMAGENET)
    arch = Arch({d.label: operator for d in plain.decisions})
    wide = Arch({d.label: d.choices[-1] for d in PAPER.decisions}).replace(**dict(arch))
    assert graph_costs(graph_of(PAPER, wide)) == graph_costs(graph_of(plain, arch))


def test_widths_of_the_fixed_layers_act_where_the_space_says() -> None:
    arch = widened(PAPER, PAPER.sample(np.random.default_rng(0)), 1.0)
    narrow = arch.replace(stem_width=0.4, mb1_width=0.2, head_width=0.6)
    with torch.device("meta"):
        network = PAPER.network(narrow)
    shapes = {n: tuple(p.shape) for n, p in network.named_parameters() if p.ndim == 4}
    assert shapes["stem.0.weight"] == (16, 3, 3, 3)
    assert next(s for n, s in reversed(shapes.items()) if n.startswith("mb1")) == (8, 16, 1, 1)
    assert shapes["head.0.weight"] == (768, 320, 1, 1)


def test_factors_add_up_to_the_graph() -> None:
    table = TINY.cost_table()
    names = [c.name for c in COLUMNS if c.name not in ("params", "size_bytes")]
    for arch in some_archs(10):
        costs, graph = table.costs(arch), graph_costs(graph_of(TINY, arch))
        assert {n: costs[n] for n in names} == {n: graph[n] for n in names}
        with torch.device("meta"):
            network = TINY.network(arch)
        assert costs["params"] == sum(p.numel() for p in network.parameters())


def test_architectures_are_drawn_exactly_by_their_macs() -> None:
    table = TINY.cost_table()
    low, high = (float(np.quantile([table.cost(a, "macs") for a in some_archs(200)], q))
                 for q in (0.1, 0.2))  # fmt: skip
    drawn = make_sampler(table, "macs").sample_archs(np.random.default_rng(0), low, high, 20)
    assert all(low <= graph_of(TINY, arch).macs() <= high for arch in drawn)


@pytest.mark.long
def test_the_papers_table_agrees_with_the_definition() -> None:
    table, rng = PAPER.cost_table(), np.random.default_rng(1)
    assert table.n_archs == 5**24 * 13**21
    for _ in range(200):
        arch = PAPER.sample(rng)
        costs = table.costs(arch)
        assert (costs["macs"], costs["params"]) == counted(arch)


# -- identity of networks ------------------------------------------------------------------------


def test_widths_without_effect_leave_the_canonical_form() -> None:
    base = widened(TINY, some_archs(1)[0], 1.0).replace(layer02=IDENTITY)
    # 32 channels times 0.6 or 0.8 are 24; an identity has no middle
    first = base.replace(stem_width=0.6, layer02_width=0.2)
    second = base.replace(stem_width=0.8, layer02_width=0.6)
    assert TINY.canonical(first) == TINY.canonical(second)
    assert TINY.graph_key(first) == TINY.graph_key(second)
    assert TINY.canonical(first)["layer02_width"] == 1.0
    assert TINY.canonical(first) != TINY.canonical(base)
    torch.manual_seed(0)
    supernet, x = TINY.supernet(), torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(supernet(x, first), supernet(x, second))


@pytest.mark.parametrize("arch", some_archs(10))
def test_the_canonical_form_is_the_same_network(arch: Arch) -> None:
    canonical = TINY.canonical(arch)
    TINY.validate(canonical)
    assert TINY.canonical(canonical) == canonical
    assert TINY.graph_key(canonical) == TINY.graph_key(arch)
    assert graph_costs(graph_of(TINY, canonical)) == graph_costs(graph_of(TINY, arch))


def test_inner_identities_move_together_with_the_widths_of_their_neighbours() -> None:
    base = widened(TINY, some_archs(1)[0], 1.0).replace(layer03="mb3_k3")
    first = base.replace(layer04=IDENTITY, layer05="mb6_k3", layer05_width=0.4)
    second = base.replace(layer05=IDENTITY, layer04="mb6_k3", layer04_width=0.4)
    other = base.replace(layer05=IDENTITY, layer04="mb6_k3", layer04_width=0.6)
    assert TINY.graph_key(first) == TINY.graph_key(second) != TINY.graph_key(other)
    assert graph_of(TINY, first).macs() == graph_of(TINY, second).macs()
    assert graph_of(TINY, first).macs() != graph_of(TINY, other).macs()


# -- supernet, network, Graph and file -----------------------------------------------------------


@pytest.mark.parametrize("arch", some_archs(8))
def test_path_subnet_and_graph_give_the_same_logits(arch: Arch) -> None:
    supernet, network = weighted(TINY, arch)
    x = torch.randn(1, *TINY.input_shape)
    with torch.no_grad():
        path, cut = supernet(x, arch), network(x)
    assert path.abs().max() > 0.01
    torch.testing.assert_close(path, cut, atol=1e-5, rtol=0)
    graph = graph_of(TINY, arch)
    model = to_onnx(graph, graph_weights(graph, network)).model
    got = open_session(model).run(["output"], {"input": x.numpy()})[0]
    np.testing.assert_allclose(got, cut.numpy(), atol=1e-4)


def test_a_path_at_full_width_is_a_path_of_the_supernet_without_widths() -> None:
    arch = widened(TINY, some_archs(1)[0], 1.0)
    torch.manual_seed(0)
    supernet, x = TINY.supernet().train(), torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        expected = x
        for position in TINY.chain:
            expected = supernet.block(position, arch)(expected)
        torch.testing.assert_close(supernet(x, arch), expected, atol=0, rtol=0)


def test_a_narrow_path_trains_and_tracks_leading_channels_only() -> None:
    arch = widened(TINY, some_archs(1)[0], 0.4).replace(layer02="mb3_k3")
    torch.manual_seed(0)
    supernet = TINY.supernet().train()
    supernet(torch.randn(8, 1, 8, 8), arch).square().sum().backward()
    conv = supernet.get_parameter("blocks.layer02.mb3_k3.body.0.weight")  # (72, 24, 1, 1)
    mean = supernet.get_buffer("blocks.layer02.mb3_k3.body.1.running_mean")
    assert conv.grad is not None
    assert conv.grad[:32].abs().sum(dim=(1, 2, 3)).min() > 0
    assert not conv.grad[32:].any()
    assert mean[:32].abs().min() > 0
    assert not mean[32:].any()


@pytest.mark.parametrize("share", [True, False])
def test_a_shared_subnet_writes_to_the_supernets_weights_but_not_its_statistics(
    share: bool,
) -> None:
    arch = widened(TINY, some_archs(1)[0], 0.4).replace(layer02="mb3_k3")
    supernet = TINY.supernet()
    with torch.device("meta"):
        network = TINY.network(arch)
    TINY.inherit(network, arch, supernet, share=share)
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.fill_(7)
    conv = supernet.get_parameter("blocks.layer02.mb3_k3.body.0.weight")
    assert bool((conv[:32] == 7).all()) is share
    assert not (conv[32:] == 7).any()
    assert not any((b == 7).any() for b in supernet.buffers())


def test_only_weights_of_the_full_width_are_saved() -> None:
    supernet = TINY.supernet()
    before = set(supernet.state_dict())
    with torch.no_grad():
        for arch in some_archs(3):
            supernet(torch.randn(2, 1, 8, 8), arch)
    assert set(supernet.state_dict()) == before
    assert all(t.device.type == "cpu" for t in supernet.state_dict().values())


def test_the_exported_file_has_the_operators_and_logits_of_the_measured_candidate(
    tmp_path: Path,
) -> None:
    operators = ["mb3_k5_se", IDENTITY, IDENTITY, "mb6_k3_se", "mb3_k7"]
    labels = [layer.name for layer in TINY.layers]
    arch = widened(TINY, some_archs(1)[0], 0.6).replace(**dict(zip(labels, operators, strict=True)))
    supernet, network = weighted(TINY, arch)
    TINY.inherit(network, arch, supernet, share=True)  # views that are not contiguous
    exported = export_subnet(network, TINY.input_shape, tmp_path / "subnet.onnx")
    candidate = onnx.load_from_string(to_onnx(graph_of(TINY, arch)).model)
    assert exported.operator_histogram == dict(Counter(n.op_type for n in candidate.graph.node))
    x = torch.randn(1, *TINY.input_shape)
    with torch.no_grad():
        expected = supernet(x, arch).numpy()
    got = open_session(exported.path).run(["logits"], {"image": x.numpy()})[0]
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_leading_entries_are_a_view() -> None:
    tensor = torch.zeros(4, 3)
    leading(tensor, 2, 2).fill_(1)
    assert tensor.sum() == 4
    assert leading(torch.tensor(5)) == 5


def test_every_operator_and_every_width_is_drawn() -> None:
    rng = np.random.default_rng(0)
    drawn = [TINY.sample(rng) for _ in range(400)]
    assert {arch["layer01"] for arch in drawn} == set(OPERATORS)
    assert all({arch[label] for arch in drawn} == set(COEFFICIENTS) for label in WIDTHS)
