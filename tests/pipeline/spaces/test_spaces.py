"""What holds for every shipped space, against other counters and against torch."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from latency_tables.arch import Arch
from latency_tables.costs import graph_costs
from latency_tables.errors import InvalidArchError
from latency_tables.onnx_writer import to_onnx
from pipeline.export.record import COLUMNS, export_or_fallback, graph_of, graph_weights, recorder_of
from pipeline.spaces import load_space
from pipeline.spaces.base import Space

torch.set_num_threads(1)

PAPER = {
    "shufflenetv2": load_space(
        "shufflenetv2", preset="paper", input_shape=(3, 64, 64), n_classes=100
    ),
    "nasbench_macro": load_space(
        "nasbench_macro", preset="paper", input_shape=(3, 32, 32), n_classes=10
    ),
}
TINY = {
    "shufflenetv2": load_space("shufflenetv2", preset="tiny", input_shape=(1, 8, 8), n_classes=10),
    "nasbench_macro": load_space(
        "nasbench_macro", preset="tiny", input_shape=(3, 16, 16), n_classes=10
    ),
    "mobilenetv2": load_space("mobilenetv2", preset="tiny", input_shape=(1, 8, 8), n_classes=10),
    "proxyless": load_space("proxyless", preset="tiny", input_shape=(1, 8, 8), n_classes=10),
}
SPACES = {f"{name}-{kind}": space for kind, group in (("paper", PAPER), ("tiny", TINY))
          for name, space in group.items()}  # fmt: skip
COUNTED = tuple(c.name for c in COLUMNS if c.name not in ("params", "size_bytes"))

every_space = pytest.mark.parametrize("name", SPACES)
drawn = settings(max_examples=10, deadline=None)
seeds = st.integers(0, 2**32)


def trained(space: Space, arch: Arch, seed: int = 0) -> nn.Sequential:
    """A network whose batch norms have statistics and weights that are not neutral."""
    torch.manual_seed(seed)
    network = space.network(arch)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    network.train()
    with torch.no_grad():  # statistics that fit keep the activations in range
        for _ in range(8):
            network(torch.randn(8, *space.input_shape))
    return network.eval()


def session(model: str | bytes, **options: object) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    for name, value in options.items():
        setattr(settings, name, value)
    return ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


# -- encodings -----------------------------------------------------------------------------------


@every_space
@drawn
@given(seed=seeds)
def test_an_architecture_survives_genes_and_json(name: str, seed: int) -> None:
    space = SPACES[name]
    arch = space.sample(np.random.default_rng(seed))
    space.validate(arch)
    assert Arch.from_genes(space.decisions, arch.genes(space.decisions)) == arch
    assert Arch.from_json(arch.to_json()) == arch
    space.validate(space.canonical(arch))
    assert space.graph_key(space.canonical(arch)) == space.graph_key(arch)


@every_space
@drawn
@given(seed=seeds)
def test_a_mutation_stays_in_the_space(name: str, seed: int) -> None:
    space, rng = SPACES[name], np.random.default_rng(seed)
    decision = space.decisions[rng.integers(len(space.decisions))]
    choice = decision.choices[rng.integers(len(decision.choices))]
    space.validate(space.sample(rng).replace(**{decision.label: choice}))


@every_space
def test_a_choice_that_the_space_lacks_is_refused_with_what_is_allowed(name: str) -> None:
    space = SPACES[name]
    arch = space.sample(np.random.default_rng(0)).replace(**{space.decisions[0].label: "k99"})
    with pytest.raises(InvalidArchError, match=r"k99.*allowed: '\w+'"):
        space.validate(arch)


# -- costs ---------------------------------------------------------------------------------------


@every_space
@drawn
@given(seed=seeds)
def test_factors_add_up_to_the_graph(name: str, seed: int) -> None:
    space = SPACES[name]
    arch = space.sample(np.random.default_rng(seed))
    table, graph = space.cost_table().costs(arch), graph_costs(graph_of(space, arch))
    assert {k: table[k] for k in COUNTED} == {k: graph[k] for k in COUNTED}


@every_space
@drawn
@given(seed=seeds)
def test_equal_graph_keys_mean_equal_costs(name: str, seed: int) -> None:
    space = SPACES[name]
    arch = space.sample(np.random.default_rng(seed))
    genes = np.array(arch.genes(space.decisions))
    swapped = genes.copy()
    swapped[3], swapped[4] = genes[4], genes[3]
    other = Arch.from_genes(space.decisions, swapped.tolist())
    if space.graph_key(arch) == space.graph_key(other):
        table = space.cost_table()
        assert table.cost(arch, "macs") == table.cost(other, "macs")


@pytest.mark.parametrize("name", TINY)
def test_the_table_counts_parameters_and_file_size(name: str) -> None:
    space = TINY[name]
    arch = space.sample(np.random.default_rng(5))
    network, costs = trained(space, arch), space.cost_table().costs(arch)
    graph = graph_of(space, arch)
    assert costs["params"] == sum(p.numel() for p in network.parameters())
    size = len(to_onnx(graph, graph_weights(graph, network)).model)
    assert costs["size_bytes"] == pytest.approx(size, rel=0.005)


@pytest.mark.parametrize("name", SPACES)
def test_macs_agree_with_two_other_counters(name: str) -> None:
    counted = pytest.importorskip("fvcore.nn")
    space = SPACES[name]
    arch = space.sample(np.random.default_rng(1))
    network = space.network(arch).eval()
    x = torch.zeros(1, *space.input_shape)
    analysis = counted.FlopCountAnalysis(network, x)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    by_operator = analysis.by_operator()
    macs = sum(by_operator[op] for op in ("conv", "linear", "matmul", "addmm", "bmm"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x)
    assert space.cost_table().cost(arch, "macs") == macs
    assert 2 * macs == counter.get_total_flops()


# -- graphs --------------------------------------------------------------------------------------


def assert_equal_to_torch(space: Space, seed: int) -> None:
    arch = space.sample(np.random.default_rng(seed))
    network, graph = trained(space, arch, seed), graph_of(space, arch)
    model = to_onnx(graph, graph_weights(graph, network)).model
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    x = torch.randn(1, *space.input_shape)
    with torch.no_grad():
        expected = network(x).numpy()
    got = session(model).run(["output"], {"input": x.numpy()})[0]
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
@every_space
def test_a_graph_with_real_weights_gives_torchs_output(name: str, seed: int) -> None:
    assert_equal_to_torch(SPACES[name], seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3, 33))
@every_space
def test_thirty_graphs_with_real_weights_give_torchs_output(name: str, seed: int) -> None:
    assert_equal_to_torch(SPACES[name], seed)


@every_space
def test_no_candidate_of_a_shipped_space_falls_back(name: str) -> None:
    space = SPACES[name]
    for decision in space.decisions:
        for choice in decision.choices:
            arch = space.sample(np.random.default_rng(0)).replace(**{decision.label: choice})
            graph_of(space, arch)  # raises UnsupportedOperatorError otherwise
    arch = space.sample(np.random.default_rng(0))
    with torch.device("meta"):
        network = space.network(arch)
    assert not export_or_fallback(network, (1, *space.input_shape)).fallback


@every_space
def test_a_composed_graph_is_the_graph_of_the_whole_network(name: str) -> None:
    space = SPACES[name]
    arch = space.sample(np.random.default_rng(2))
    with torch.device("meta"):
        network = space.network(arch)
    exported = export_or_fallback(network, (1, *space.input_shape)).candidate
    whole = onnx.load_from_string(exported.model).graph
    composed = onnx.load_from_string(to_onnx(graph_of(space, arch)).model).graph
    assert [n.op_type for n in whole.node] == [n.op_type for n in composed.node]
    assert exported.weights_spec is not None
    assert [t.n_elements for t in exported.weights_spec.tensors] == [
        t.n_elements for t in to_onnx(graph_of(space, arch)).weights_spec.tensors
    ]


def test_equal_segments_are_recorded_once() -> None:
    space = load_space("shufflenetv2", preset="tiny", input_shape=(3, 8, 8), n_classes=7)
    recorder = recorder_of(space.space_id)
    arch = Arch.from_genes(space.decisions, (0,) * 10)
    graph_of(space, arch)
    n_recorded = len(recorder)
    graph_of(space, arch)
    assert (
        len(recorder) == n_recorded == 10
    )  # stage 3 has three equal blocks: 12 segments, 10 kinds


@pytest.mark.parametrize("seed", range(3))
@every_space
def test_synthetic_weights_give_finite_activations_without_denormals(
    name: str, seed: int, tmp_path: Path
) -> None:
    space = SPACES[name]
    candidate = to_onnx(graph_of(space, space.sample(np.random.default_rng(seed))), seed=seed)
    assert candidate.weights_spec is not None
    (tmp_path / candidate.weights_spec.location).write_bytes(candidate.weights_spec.synthesise())
    model = onnx.load_from_string(candidate.model)
    for node in model.graph.node:
        model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in node.output if n != "output")
    onnx.save(model, tmp_path / "all.onnx")
    off = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    runner = session(str(tmp_path / "all.onnx"), graph_optimization_level=off)
    x = np.random.default_rng(seed).standard_normal((1, *space.input_shape)).astype(np.float32)
    for value in runner.run(None, {"input": x}):
        assert np.isfinite(value).all()
        assert np.abs(value).max() < 1e3  # float16 devices must cope as well
        nonzero = np.abs(value[value != 0])
        assert nonzero.size == 0 or nonzero.min() >= np.finfo(np.float32).tiny
        assert np.abs(value).max() > 1e-3


def optimised_operators(model: bytes, path: Path, level: object) -> Counter[str]:
    session(model, graph_optimization_level=level, optimized_model_filepath=str(path),
            log_severity_level=3)  # fmt: skip
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", TINY)
def test_optimised_operators_equal_those_of_torchs_exporter(name: str, tmp_path: Path) -> None:
    space = TINY[name]
    arch = space.sample(np.random.default_rng(3))
    network, graph = trained(space, arch), graph_of(space, arch)
    ours = to_onnx(graph, graph_weights(graph, network)).model
    x = torch.zeros(1, *space.input_shape)
    program = torch.onnx.export(network, (x,), dynamo=True, verbose=False)
    assert program is not None
    theirs = program.model_proto.SerializeToString()
    for level in ("BASIC", "EXTENDED", "ALL"):
        chosen = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        assert optimised_operators(ours, tmp_path / "ours.onnx", chosen) == optimised_operators(
            theirs, tmp_path / "theirs.onnx", chosen
        )


@pytest.mark.bench
def test_candidates_keep_their_budgets_and_run_like_exported_nets() -> None:
    repository = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.graph", "--json"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["within_budget"], result
    for pair in result["latency"]:
        low, high = pair["ratio_quartiles"]
        assert low <= 1.05, pair
        assert high >= 0.95, pair
