"""What holds for every space holds for users' models; one function however it is run."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from latency_tables.arch import Arch
from latency_tables.costs import graph_costs
from latency_tables.errors import InvalidArchError
from latency_tables.onnx_writer import to_onnx
from latency_tables.sampler import make_sampler
from pipeline.export.onnx_export import export_subnet
from pipeline.export.record import COLUMNS, export_or_fallback, graph_of, graph_weights
from pipeline.export.reference_count import count_with_fvcore
from pipeline.own_model import Elastic, OwnSpace, own_space
from pipeline.spaces.own_model.dims import active_of, ranges
from pipeline.spaces.own_model.pieces import Layer
from pipeline.spaces.own_model.space import OwnSupernet
from pipeline.supernet.scoring import Scorer, evaluate, materialise
from pipeline.supernet.weights import load_supernet, save_supernet
from tests.pipeline.spaces.own_model.models import MODELS, SHAPE

torch.set_num_threads(1)

COUNTED = tuple(c.name for c in COLUMNS if c.name not in ("params", "size_bytes"))
every_model = pytest.mark.parametrize("name", MODELS)
drawn = settings(max_examples=5, deadline=None)
seeds = st.integers(0, 2**32)


@cache
def space_of(name: str) -> OwnSpace:
    return own_space(MODELS[name], input_shape=SHAPE)


def archs_of(space: OwnSpace, n: int, seed: int = 0) -> list[Arch]:
    rng = np.random.default_rng(seed)
    return [space.sample(rng) for _ in range(n)]


@cache
def trained_supernet(name: str) -> OwnSupernet:
    """A supernet none of whose weights and statistics is neutral."""
    torch.manual_seed(0)
    supernet = space_of(name).supernet()
    for module in supernet.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return supernet.eval()


# -- encodings and costs -------------------------------------------------------------------------


@every_model
@drawn
@given(seed=seeds)
def test_an_architecture_survives_genes_json_and_its_canonical_form(name: str, seed: int) -> None:
    space = space_of(name)
    arch = space.sample(np.random.default_rng(seed))
    space.validate(arch)
    assert Arch.from_genes(space.decisions, arch.genes(space.decisions)) == arch
    assert Arch.from_json(arch.to_json()) == arch
    canonical = space.canonical(arch)
    space.validate(canonical)
    assert space.canonical(canonical) == canonical
    assert space.graph_key(canonical) == space.graph_key(arch)
    assert space.cost_table().costs(canonical) == space.cost_table().costs(arch)


@every_model
def test_a_choice_that_the_space_lacks_is_refused_with_what_is_allowed(name: str) -> None:
    space = space_of(name)
    arch = archs_of(space, 1)[0].replace(**{space.decisions[0].label: 99})
    with pytest.raises(InvalidArchError, match=r"99; allowed: "):
        space.validate(arch)


@every_model
@drawn
@given(seed=seeds)
def test_factors_add_up_to_the_graph(name: str, seed: int) -> None:
    space = space_of(name)
    arch = space.sample(np.random.default_rng(seed))
    table, graph = space.cost_table().costs(arch), graph_costs(graph_of(space, arch))
    assert {k: table[k] for k in COUNTED} == {k: graph[k] for k in COUNTED}


@every_model
def test_macs_agree_with_two_other_counters(name: str) -> None:
    space = space_of(name)
    for arch in archs_of(space, 3):
        network = space.network(arch).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, *SHAPE))
        macs = space.cost_table().cost(arch, "macs")
        assert macs == count_with_fvcore(network, SHAPE).macs
        assert 2 * macs == counter.get_total_flops()


@every_model
def test_the_table_counts_parameters_and_file_size(name: str) -> None:
    space = space_of(name)
    for arch in archs_of(space, 3):
        network, costs = space.network(arch), space.cost_table().costs(arch)
        graph = graph_of(space, arch)
        assert costs["params"] == sum(p.numel() for p in network.parameters())
        size = len(to_onnx(graph, graph_weights(graph, network)).model)
        assert costs["size_bytes"] == pytest.approx(size, rel=0.005, abs=200)


@every_model
def test_sampling_at_a_cost_is_exact(name: str) -> None:
    table = space_of(name).cost_table()
    low, high = table.minimum("macs")[0], table.maximum("macs")[0]
    middle = (low + high) / 2
    sampler = make_sampler(table, "macs")
    drawn_archs = sampler.sample_archs(np.random.default_rng(0), low, middle, 20)
    assert sampler.exact
    assert all(table.cost(arch, "macs") <= middle for arch in drawn_archs)


# -- one function --------------------------------------------------------------------------------


def masked(supernet: OwnSupernet, x: Tensor, arch: Arch) -> Tensor:
    """The subnet by zeros: the whole model runs, weights of channels that are off are zero."""
    model = supernet.model
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    for cut in supernet.space.present(arch):
        for item in cut.body.active(arch):
            axes_of = item.tensors if isinstance(item, Layer) else {}
            for name, axes in axes_of.items():
                tensor = model.get_submodule(item.path)._parameters.get(name)
                for axis, dim in enumerate(axes if tensor is not None else ()):
                    if dim is not None and active_of(dim, arch) != tensor.shape[axis]:
                        mask = torch.zeros(tensor.shape[axis])
                        for start, length in ranges(dim, arch):
                            mask[start : start + length] = 1
                        tensor.mul_(mask.view(-1, *[1] * (tensor.ndim - axis - 1)))
    y: Tensor = model(x)
    for name, parameter in model.named_parameters():
        parameter.copy_(kept[name])
    return y


@every_model
def test_subnets_are_one_function_sliced_and_materialised(name: str) -> None:
    assert_one_function(name, 6)


@pytest.mark.long
@every_model
def test_fifty_subnets_are_one_function_sliced_and_materialised(name: str) -> None:
    assert_one_function(name, 50)


@torch.no_grad()
def assert_one_function(name: str, n: int) -> None:
    space, supernet = space_of(name), trained_supernet(name)
    x = torch.randn(3, *SHAPE)
    outputs = {}
    for arch in archs_of(space, n):
        sliced = supernet(x, arch)
        network = space.network(arch).eval()
        space.inherit(network, arch, supernet)
        torch.testing.assert_close(network(x), sliced, atol=1e-6, rtol=0)
        torch.testing.assert_close(
            materialise(space, arch, supernet).eval()(x), sliced, atol=1e-6, rtol=0
        )
        torch.testing.assert_close(supernet(x, space.canonical(arch)), sliced, atol=0, rtol=0)
        assert sliced.abs().max() > 0.01
        outputs[space.canonical(arch)] = tuple(sliced.flatten().tolist())
    # subnets differ from each other, so agreeing is no accident
    assert len(set(outputs.values())) == len(outputs)


@torch.no_grad()
@every_model
def test_a_subnet_normalised_by_its_batch_is_the_supernets(name: str) -> None:
    space, supernet = space_of(name), space_of(name).supernet()
    x = torch.randn(4, *SHAPE)
    for arch in archs_of(space, 5):
        network = materialise(space, arch, supernet)
        for model in (network, supernet):
            model.train()
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        torch.testing.assert_close(network(x), supernet(x, arch), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["plain", "inception", "mixer"])
def test_subnets_are_what_masks_of_zeros_give(name: str) -> None:
    """Where no alternatives stand and no norm mixes channels, zeros are as good as absence."""
    space, supernet = space_of(name), trained_supernet(name)
    x = torch.randn(2, *SHAPE)
    free_of = {"plain": {"block": "k3", "second.kernel": 5}, "inception": {}, "mixer": {}}[name]
    for arch in archs_of(space, 10):
        arch = arch.replace(**free_of)
        if name == "mixer":  # layer norm mixes channels: only hidden widths are masked
            arch = arch.replace(**{"embed.width": 12})
        torch.testing.assert_close(
            masked(supernet, x, arch), supernet(x, arch), atol=1e-5, rtol=1e-5
        )


def assert_graph_equals_torch(name: str, n: int, seed: int) -> None:
    space, supernet = space_of(name), trained_supernet(name)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    x = torch.randn(1, *SHAPE)
    for arch in archs_of(space, n, seed):
        network, graph = materialise(space, arch, supernet).eval(), graph_of(space, arch)
        model = to_onnx(graph, graph_weights(graph, network)).model
        onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        (got,) = session.run(["output"], {"input": x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(got, network(x).numpy(), atol=1e-4)


@every_model
def test_graphs_with_real_weights_give_torchs_output(name: str) -> None:
    assert_graph_equals_torch(name, 3, seed=1)


@pytest.mark.long
@every_model
def test_fifty_graphs_with_real_weights_give_torchs_output(name: str) -> None:
    assert_graph_equals_torch(name, 50, seed=2)


@pytest.mark.long
@every_model
def test_exported_files_give_torchs_output(name: str, tmp_path) -> None:
    space, supernet = space_of(name), trained_supernet(name)
    for i, arch in enumerate(archs_of(space, 3, seed=3)):
        network = materialise(space, arch, supernet).eval()
        file = tmp_path / f"{i}.onnx"
        export_subnet(network, SHAPE, file)
        session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        x = torch.randn(1, *SHAPE)
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(got, network(x).numpy(), atol=1e-4)


@every_model
def test_a_composed_graph_is_the_graph_of_the_whole_network(name: str) -> None:
    space = space_of(name)
    arch = archs_of(space, 1, seed=4)[0]
    with torch.device("meta"):
        network = space.network(arch)
    exported = export_or_fallback(network, (1, *SHAPE))
    assert not exported.fallback
    whole = onnx.load_from_string(exported.candidate.model).graph
    composed = onnx.load_from_string(to_onnx(graph_of(space, arch)).model).graph
    assert [n.op_type for n in whole.node] == [n.op_type for n in composed.node]


def test_batch_norms_are_folded_into_the_convolutions_before_them() -> None:
    space = space_of("residual")
    operators = graph_of(space, archs_of(space, 1)[0]).operator_histogram()
    assert operators["Conv"] > 4
    assert operators["BatchNormalization"] == 0


# -- the supernet --------------------------------------------------------------------------------


def test_a_copy_of_a_supernet_has_weights_of_its_own_and_the_same_space() -> None:
    supernet = trained_supernet("mobile")
    copied = copy.deepcopy(supernet)
    assert copied.space is supernet.space
    arch, x = archs_of(copied.space, 1)[0], torch.randn(2, *SHAPE)
    with torch.no_grad():
        expected = supernet(x, arch)
        assert torch.equal(copied(x, arch), expected)
        for parameter in copied.parameters():
            parameter.zero_()
        assert torch.equal(supernet(x, arch), expected)
        assert not torch.equal(copied(x, arch), expected)


@every_model
def test_only_what_a_subnet_uses_gets_a_gradient(name: str) -> None:
    space = space_of(name)
    for arch in archs_of(space, 3):
        supernet = space.supernet()
        supernet(torch.randn(4, *SHAPE), arch).square().sum().backward()
        used = set(map(id, supernet.subnet_parameters(arch)))
        for parameter_name, parameter in supernet.named_parameters():
            assert (parameter.grad is not None) == (id(parameter) in used), parameter_name


def test_gradients_reach_the_leading_channels_alone() -> None:
    space = space_of("plain")
    supernet = space.supernet()
    arch = archs_of(space, 1)[0].replace(**{"stem.width": 8, "second.kernel": 3})
    supernet(torch.randn(4, *SHAPE), arch).square().sum().backward()
    stem = supernet.get_parameter("model.stem.module.weight").grad
    second = supernet.get_parameter("model.second.module.weight").grad
    assert stem is not None
    assert second is not None
    assert (stem[:8] != 0).any()
    assert not stem[8:].any()
    assert not second[:, 8:].any()
    assert (second[:, :8, 1:4, 1:4] != 0).any()
    second[:, :, 1:4, 1:4] = 0
    assert not second.any()


def test_a_shared_subnet_sees_what_happens_to_the_supernet_and_a_copy_does_not() -> None:
    space = space_of("residual")
    supernet = space.supernet()
    arch = archs_of(space, 1)[0].replace(**{"stage1.width": 4})
    shared, copied = materialise(space, arch, supernet), space.network(arch)
    space.inherit(copied, arch, supernet)
    assert shared.get_parameter("stem.stem.weight").shape[0] == 4
    assert shared.get_parameter("fc.fc.bias") is supernet.get_parameter("model.fc.bias")
    with torch.no_grad():
        supernet.get_parameter("model.stem.weight").fill_(7.0)
        assert (shared.get_parameter("stem.stem.weight") == 7.0).all()
        assert not (copied.get_parameter("stem.stem.weight") == 7.0).any()
    before = supernet.get_buffer("model.stage1.0.bn1.running_mean").clone()
    shared.train()(torch.randn(4, *SHAPE))
    assert torch.equal(supernet.get_buffer("model.stage1.0.bn1.running_mean"), before)


def test_statistics_behind_a_concatenation_are_kept_for_the_channels_that_ran() -> None:
    space = space_of("inception")
    supernet = space.supernet().train()
    arch = Arch({"one.width": 4, "three.width": 6, "dense.width": 8})
    supernet(torch.randn(4, *SHAPE) + 1, arch)
    moved = supernet.get_buffer("model.norm.running_mean") != 0
    expected = [True] * 4 + [False] * 4 + [True] * 6 + [False] * 6 + [True] * 4
    assert moved.tolist() == expected


def test_buffers_and_parameters_behind_a_concatenation_are_cut_part_by_part() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = Elastic(nn.Conv2d(3, 4, 1), width=(2, 4))
            self.b = Elastic(nn.Conv2d(3, 4, 1), width=(2, 4))
            self.register_buffer("scale", torch.arange(8.0).view(1, 8, 1, 1))
            self.shift = nn.Parameter(torch.arange(8.0).view(8, 1, 1))
            self.fc = nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([self.a(x), self.b(x)], 1) * self.scale + self.shift
            return self.fc(x.mean((2, 3)))

    space = own_space(Scaled, input_shape=SHAPE)
    supernet, arch = space.supernet().train(), Arch({"a.width": 2, "b.width": 2})
    x = torch.randn(2, *SHAPE)
    network = materialise(space, arch, supernet).train()
    torch.testing.assert_close(network(x), supernet(x, arch))
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    for name in ("a.scale", "a.shift"):
        assert state[name].flatten().tolist() == [0, 1, 4, 5]


def test_statistics_in_training_are_those_of_torch() -> None:
    space = space_of("residual")
    supernet = space.supernet()
    arch = Arch({d.label: d.choices[-1] for d in space.decisions})
    twin = space.supernet()
    twin.load_state_dict(supernet.state_dict())
    x = torch.randn(4, *SHAPE)
    supernet.train()(x, arch)
    twin.model.train()(x)
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(supernet.state_dict()[key], value, msg=key)


@pytest.mark.parametrize("name", ["inception", "nested"])
def test_a_supernet_survives_its_file(name: str, tmp_path) -> None:
    space, supernet = space_of(name), trained_supernet(name)
    save_supernet(space, supernet, tmp_path / "supernet.safetensors")
    again = own_space(MODELS[name], input_shape=SHAPE)  # as another process would make it
    loaded = load_supernet(again, tmp_path / "supernet.safetensors").eval()
    arch = archs_of(space, 1)[0]
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        assert torch.equal(loaded(x, arch), supernet(x, arch))


def test_a_scored_subnet_has_the_supernets_accuracy() -> None:
    from tests.pipeline.training.toys import ToyBatch

    space, supernet = space_of("transformer"), trained_supernet("transformer")
    torch.manual_seed(0)
    batch = ToyBatch(images=torch.randn(64, *SHAPE), labels=torch.randint(10, (64,)))
    scorer = Scorer(space, supernet, [batch], [batch])
    for arch in archs_of(space, 3):
        accuracy, loss, _ = evaluate(
            materialise(space, arch, supernet).eval(), [batch], scorer.precision
        )
        score = scorer.score(arch)
        assert score.accuracy == accuracy
        assert score.loss == pytest.approx(loss)
