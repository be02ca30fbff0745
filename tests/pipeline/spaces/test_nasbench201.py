"""The NAS-Bench-201 space against the benchmark's own figures, and against recorded graphs."""

from __future__ import annotations

import csv
import gzip
import os
from collections import Counter, defaultdict
from pathlib import Path

import networkx as nx
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latency_tables.arch import Arch
from latency_tables.costs import graph_costs
from latency_tables.errors import InvalidArchError, SpaceError
from latency_tables.onnx_writer import to_onnx
from latency_tables.sampler import make_sampler
from pipeline.export.record import (
    COLUMNS,
    export_or_fallback,
    fragment_costs,
    graph_of,
    graph_weights,
    record,
    recorder_of,
)
from pipeline.spaces.nasbench201 import (
    EveryOperator,
    NASBench201,
    all_genes,
    arch_of_string,
    nasbench201,
    string_of_arch,
)
from pipeline.spaces.nasbench201_cell import (
    EDGES,
    LABELS,
    OPERATORS,
    cell_key,
    live_operators,
    steps_of,
)
from pipeline.supernet.scoring import materialise

torch.set_num_threads(1)

SPACE = nasbench201(preset="paper", input_shape=(3, 32, 32), n_classes=10)
TINY = nasbench201(preset="tiny", input_shape=(3, 8, 8), n_classes=10)
CELLS = [tuple(OPERATORS[gene] for gene in row) for row in all_genes().tolist()]

ALL_3X3, ALL_1X1 = ("conv3x3",) * 6, ("conv1x1",) * 6
DOCUMENTED = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|"
# cell: parameters and MACs for CIFAR-10, CIFAR-100 and ImageNet16-120
PUBLISHED = {
    ALL_3X3: (1_531_546, 220_119_680, 1_537_396, 220_125_440, 1_538_696, 55_037_440),
    ALL_1X1: (241_306, 31_376_000, 247_156, 31_381_760, 248_456, 7_851_520),
    **dict.fromkeys(
        [("skip",) * 6, ("none",) * 6, ("avgpool3x3",) * 6],
        (73_306, 7_783_040, 79_156, 7_788_800, 80_456, 1_953_280),
    ),
}


def arch_of(operators: tuple[str, ...]) -> Arch:
    return Arch(dict(zip(LABELS, operators, strict=True)))


def sampled(n: int, seed: int = 0) -> list[Arch]:
    rng = np.random.default_rng(seed)
    return [SPACE.sample(rng) for _ in range(n)]


@pytest.fixture(scope="module")
def table():
    return SPACE.cost_table()


@pytest.fixture(scope="module")
def by_key() -> dict[str, list[int]]:
    """Rows of CELLS by the key of their networks."""
    found = defaultdict(list)
    for i, cell in enumerate(CELLS):
        found[cell_key(cell)].append(i)
    return found


def shared_file() -> Path:
    root = os.environ.get("HILNAS_SHARED_DATA")
    repository = Path(__file__).resolve().parents[3]
    folder = Path(root) if root else repository.parent / "shared" / "data"
    return folder / "nasbench" / "nb201.csv.gz"


# -- published figures ---------------------------------------------------------------------------


@pytest.mark.parametrize("cell", PUBLISHED, ids="-".join)
def test_uniform_cells_cost_what_is_published_for_every_data_set(cell, table) -> None:
    figures = iter(PUBLISHED[cell])
    hundred = nasbench201(preset="paper", input_shape=(3, 32, 32), n_classes=100)
    small = nasbench201(preset="paper", input_shape=(3, 16, 16), n_classes=120)
    for space in (SPACE, hundred, small):
        costs = space.cost_table().costs(arch_of(cell))
        params, macs = next(figures), next(figures)
        assert (costs["params"], costs["macs"]) == (params, macs)
        assert graph_of(space, arch_of(cell)).macs() == macs


@pytest.mark.parametrize(
    ("text", "params", "macs"),
    [
        (f"{DOCUMENTED}skip_connect~2|", 802_426, 113_951_360),
        (
            "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_1x1~1|"
            "+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|",
            1_073_466,
            153_272_960,
        ),
    ],
)
def test_documented_cells_cost_what_is_published(text, params, macs, table) -> None:
    costs = table.costs(arch_of_string(text))
    assert (costs["params"], costs["macs"]) == (params, macs)
    network = SPACE.network(arch_of_string(text))
    assert sum(p.numel() for p in network.parameters()) == params


def test_all_nominal_costs_are_the_published_ones(table) -> None:
    path = shared_file()
    if not path.exists():
        pytest.skip(f"{path} is not here; set HILNAS_SHARED_DATA to the folder of shared data")
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 15_625
    archs = [arch_of_string(row["arch"]) for row in rows]
    assert len(set(archs)) == 15_625
    assert [string_of_arch(arch) for arch in archs] == [row["arch"] for row in rows]
    genes = table.genes(archs)
    for column, name in (("nominal_params", "params_m"), ("nominal_macs", "flops_m")):
        published = np.array([float(row[name]) for row in rows])
        assert np.array_equal(table.column(column, genes), np.round(published * 1e6))
    assert all(arch_of_string(string_of_arch(arch)) == arch for arch in archs[:50])
    alive = np.array([SPACE.canonical(arch) == arch for arch in archs])
    for column in ("macs", "params"):
        nominal, built = table.column(f"nominal_{column}", genes), table.column(column, genes)
        assert np.array_equal(nominal[alive], built[alive])
        assert (built <= nominal).all()


# -- costs ---------------------------------------------------------------------------------------


def assert_recorded(space: NASBench201, archs: list[Arch]) -> None:
    """The table holds what is counted on recorded graphs, in every column, to the last bit."""
    table = space.cost_table()
    for arch in archs:
        pieces = recorder_of(space.space_id).fragments(space, arch)
        rows = np.array([fragment_costs(name, fragment) for name, fragment in pieces])
        costs = table.costs(arch)
        for i, column in enumerate(COLUMNS):
            expected = rows[:, i].max() if column.reduce == "max" else rows[:, i].sum()
            assert costs[column.name] == expected, (arch, column.name)
        graph = graph_costs(graph_of(space, arch))
        assert {name: costs[name] for name in graph} == graph
        parameters = sum(p.numel() for p in space.network(arch).parameters())
        assert costs["params"] == parameters


@pytest.mark.parametrize(("space", "n"), [(SPACE, 50), (TINY, 10)], ids=["paper", "tiny"])
def test_the_table_holds_the_costs_of_recorded_graphs(space: NASBench201, n: int) -> None:
    special = [arch_of(("none",) * 6), arch_of(("skip",) * 6), arch_of(ALL_3X3)]
    assert_recorded(space, [*special, *sampled(n)])


@pytest.mark.long
def test_the_table_holds_the_costs_of_a_thousand_recorded_graphs() -> None:
    assert_recorded(TINY, sampled(1_000, seed=7))


def test_a_limit_is_sampled_exactly(table) -> None:
    sampler = make_sampler(table, "macs")
    macs = table.column("macs", all_genes())
    assert sampler.count(20e6, 60e6) == ((macs >= 20e6) & (macs <= 60e6)).sum()
    assert table.minimum("macs")[0], table.maximum("macs") == (
        7_783_040,
        (220_119_680, arch_of(ALL_3X3)),
    )


def test_isomorphic_networks_cost_the_same_but_for_their_peak_of_memory(table, by_key) -> None:
    costs = table.batch(all_genes())
    compared = [
        i
        for i, column in enumerate(table.columns)
        if column.reduce == "sum" and not column.name.startswith("nominal_")
    ]
    for rows in by_key.values():
        assert (costs[rows][:, compared] == costs[rows[0], compared]).all()


# -- canonical form and graph key ----------------------------------------------------------------


def test_there_are_9445_canonical_genomes_and_5264_networks(by_key) -> None:
    assert len({live_operators(cell) for cell in CELLS}) == 9_445
    assert len(by_key) == 5_264
    assert len(by_key[cell_key(("none",) * 6)]) == 341


def test_edges_are_live_where_a_path_of_operators_leads_through_them() -> None:
    for cell in CELLS[::7]:
        graph = nx.DiGraph([e for e, op in zip(EDGES, cell, strict=True) if op != "none"])
        graph.add_nodes_from(range(4))
        paths = nx.all_simple_edge_paths(graph, 0, 3)
        on_paths = {edge for path in paths for edge in path}
        expected = [op if e in on_paths else "none" for e, op in zip(EDGES, cell, strict=True)]
        assert live_operators(cell) == tuple(expected)
        assert live_operators(live_operators(cell)) == live_operators(cell)


def step_graph(cell: tuple[str, ...]) -> nx.MultiDiGraph:
    """Values as vertices; a sum that only a sum reads is part of that sum."""
    graph = nx.MultiDiGraph()
    graph.add_node(0, kind="input")
    for i, step in enumerate(steps_of(cell), 1):
        graph.add_node(i, kind=step.kind)
        graph.add_edges_from((read, i) for read in step.reads)
    for i in list(graph):
        readers = list(graph.successors(i))
        if graph.nodes[i]["kind"] == "add" and graph.out_degree(i) == 1:
            (reader,) = readers
            if graph.nodes[reader]["kind"] == "add":
                graph.add_edges_from((read, reader) for read, _ in list(graph.in_edges(i)))
                graph.remove_node(i)
    return graph


def isomorphic(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    match = nx.algorithms.isomorphism.categorical_node_match("kind", "")
    return bool(nx.is_isomorphic(step_graph(first), step_graph(second), node_match=match))


def test_graph_keys_are_equal_exactly_for_isomorphic_cells(by_key) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows = list(by_key.values())[rng.integers(len(by_key))]
        assert isomorphic(CELLS[rows[0]], CELLS[rng.choice(rows)])
    alike = defaultdict(list)  # first cell of every key, by what a cheap look can tell
    for rows in by_key.values():
        alike[tuple(sorted(step.kind for step in steps_of(CELLS[rows[0]])))].append(CELLS[rows[0]])
    groups = [cells for cells in alike.values() if len(cells) > 1]
    for _ in range(200):
        cells = groups[rng.integers(len(groups))]
        first, second = rng.choice(len(cells), size=2, replace=False)
        assert not isomorphic(cells[first], cells[second])


def test_convolutions_that_are_shared_are_not_those_that_are_repeated() -> None:
    once = ("conv1x1", "none", "none", "none", "skip", "none")
    shared = ("conv1x1", "skip", "none", "skip", "conv3x3", "conv1x1")
    repeated = ("conv1x1", "conv1x1", "none", "skip", "conv3x3", "conv1x1")
    assert len({cell_key(cell) for cell in (once, shared, repeated)}) == 3


def test_a_dead_edge_changes_neither_function_nor_weights_that_are_inherited() -> None:
    torch.manual_seed(0)
    supernet = TINY.supernet()
    arch = arch_of(("conv3x3", "none", "conv1x1", "avgpool3x3", "conv1x1", "none"))
    canonical = TINY.canonical(arch)
    assert canonical["op_e12"] == "none" != arch["op_e12"]
    assert TINY.graph_key(canonical) == TINY.graph_key(arch)
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(supernet(x, arch), supernet(x, canonical))
    used = [[id(p) for p in supernet.subnet_parameters(a)] for a in (arch, canonical)]
    assert used[0] == used[1]
    inherited = [materialise(TINY, a, supernet).state_dict() for a in (arch, canonical)]
    assert inherited[0].keys() == inherited[1].keys()


def test_isomorphic_cells_differ_in_the_supernet() -> None:
    first, second = (
        arch_of(("conv3x3", "none", "none", "none", "skip", "none")),
        arch_of(("none", "conv3x3", "none", "none", "none", "skip")),
    )
    assert TINY.graph_key(first) == TINY.graph_key(second)
    assert TINY.canonical(first) != TINY.canonical(second)
    torch.manual_seed(0)
    supernet = TINY.supernet()
    x = torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        assert (supernet(x, first) - supernet(x, second)).abs().max() > 1e-3


# -- networks ------------------------------------------------------------------------------------


def with_statistics(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


class EdgeByEdge(nn.Module):
    """A cell as its definition reads: every edge by itself, nothing shared."""

    def __init__(self, operators: tuple[str, ...], edges: nn.ModuleDict) -> None:
        super().__init__()
        self.operators, self.edges = operators, edges

    def forward(self, x: Tensor) -> Tensor:
        nodes: list[Tensor] = [x]
        for node in range(1, 4):
            terms = [
                self.brought(label, operator, nodes[start])
                for label, (start, end), operator in zip(LABELS, EDGES, self.operators, strict=True)
                if end == node and operator != "none"
            ]
            total = terms[0] if terms else torch.zeros_like(x)
            for term in terms[1:]:
                total = total + term
            nodes.append(total)
        return nodes[-1]

    def brought(self, label: str, operator: str, x: Tensor) -> Tensor:
        if operator == "skip":
            return x
        if operator == "avgpool3x3":
            return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return self.edges[label][operator](F.relu(x))


def test_a_cell_computes_the_sum_of_its_edges_at_every_node() -> None:
    torch.manual_seed(0)
    every = with_statistics(EveryOperator(4, affine=True)).eval()
    x = torch.randn(2, 4, 6, 6)
    for row in np.random.default_rng(0).integers(0, len(CELLS), size=300):
        live = live_operators(CELLS[row])
        with torch.no_grad():
            expected = EdgeByEdge(live, every.edges)(x)
            torch.testing.assert_close(every.cell(CELLS[row])(x), expected)


def test_a_subnet_gives_what_the_supernet_gives() -> None:
    torch.manual_seed(0)
    supernet = with_statistics(TINY.supernet()).eval()
    x = torch.randn(4, 3, 8, 8)
    for arch in sampled(20):
        shared = materialise(TINY, arch, supernet).eval()
        copied = TINY.network(arch).eval()
        TINY.inherit(copied, arch, supernet)
        with torch.no_grad():
            expected = supernet(x, arch)
            assert torch.equal(shared(x), expected)
            assert torch.equal(copied(x), expected)
        own = {id(p) for p in supernet.subnet_parameters(arch)}
        assert {id(p) for p in shared.parameters()} == own
        assert not {id(p) for p in copied.parameters()} & own


def test_a_step_reaches_every_parameter_of_a_subnet_and_no_other() -> None:
    torch.manual_seed(0)
    supernet = TINY.supernet()
    arch = arch_of(("conv3x3", "conv1x1", "skip", "avgpool3x3", "conv1x1", "conv3x3"))
    supernet(torch.randn(4, 3, 8, 8), arch).square().sum().backward()
    reached = {id(p) for p in supernet.parameters() if p.grad is not None and p.grad.any()}
    assert reached == {id(p) for p in supernet.subnet_parameters(arch)}


def test_a_network_without_a_path_ignores_its_picture_and_can_be_recorded() -> None:
    arch = arch_of(("conv3x3", "none", "none", "none", "none", "conv1x1"))
    TINY.validate(arch)
    assert TINY.canonical(arch) == arch_of(("none",) * 6)
    torch.manual_seed(0)
    network = with_statistics(TINY.network(arch)).eval()
    with torch.no_grad():
        first, second = network(torch.randn(1, 3, 8, 8)), network(torch.randn(1, 3, 8, 8))
    assert torch.equal(first, second)
    graph = graph_of(TINY, arch)
    model = to_onnx(graph, graph_weights(graph, network)).model
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(session(model).run(None, {"input": x})[0], first, atol=1e-5)
    torch.manual_seed(0)
    supernet = TINY.supernet()
    supernet(torch.randn(4, 3, 8, 8), arch).sum().backward()
    assert all(p.grad is not None for p in supernet.subnet_parameters(arch))


# -- graphs --------------------------------------------------------------------------------------


def session(model: str | bytes, **options: object) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    for name, value in options.items():
        setattr(settings, name, value)
    return ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


def optimised(model: bytes, path: Path) -> Counter[str]:
    basic = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session(model, graph_optimization_level=basic, optimized_model_filepath=str(path))
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_a_recorded_graph_gives_torchs_output_and_equals_the_exported_network() -> None:
    x = torch.randn(1, 3, 8, 8)
    for arch in sampled(12, seed=1):
        torch.manual_seed(0)
        network, graph = with_statistics(TINY.network(arch)).eval(), graph_of(TINY, arch)
        model = to_onnx(graph, graph_weights(graph, network)).model
        onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
        with torch.no_grad():
            expected = network(x).numpy()
        got = session(model).run(["output"], {"input": x.numpy()})[0]
        np.testing.assert_allclose(got, expected, atol=1e-4, rtol=1e-4)
        exported = export_or_fallback(network, (1, *TINY.input_shape))
        assert not exported.fallback
        whole = onnx.load_from_string(exported.candidate.model).graph.node
        assert [n.op_type for n in whole] == [n.op for n in graph.nodes]


def test_a_runtime_finds_nothing_more_to_share_than_the_cell_shares(tmp_path: Path) -> None:
    torch.manual_seed(0)
    every = with_statistics(EveryOperator(4, affine=True)).eval()
    saved = 0
    for row in np.random.default_rng(2).integers(0, len(CELLS), size=30):
        live = live_operators(CELLS[row])
        cell, naive = every.cell(live), EdgeByEdge(live, every.edges)
        graphs = [record(module, (1, 4, 6, 6)) for module in (cell, naive.eval())]
        if not graphs[0].nodes or not any(op != "none" for op in live):
            continue
        kinds = []
        for graph, module in zip(graphs, (cell, naive), strict=True):
            placed = to_onnx(graph, graph_weights(graph, module)).model
            kinds.append(optimised(placed, tmp_path / "optimised.onnx"))
        ours = Counter(node.op for node in graphs[0].nodes)
        assert kinds[0] == kinds[1] == ours, live
        saved += graphs[1].operator_histogram()["Relu"] - ours["Relu"]
    assert saved > 0


@pytest.mark.parametrize("cell", [ALL_3X3, ("avgpool3x3",) * 6, ("skip",) * 6], ids="-".join)
def test_synthetic_weights_stay_finite_through_fifteen_cells(cell, tmp_path: Path) -> None:
    # sums of skips double what they get in every cell, whatever the weights: no bound for float16
    candidate = to_onnx(graph_of(SPACE, arch_of(cell)))
    assert candidate.weights_spec is not None
    (tmp_path / candidate.weights_spec.location).write_bytes(candidate.weights_spec.synthesise())
    model = onnx.load_from_string(candidate.model)
    for node in model.graph.node:
        model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in node.output if n != "output")
    onnx.save(model, tmp_path / "all.onnx")
    x = np.random.default_rng(0).standard_normal((1, *SPACE.input_shape)).astype(np.float32)
    off = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for value in session(str(tmp_path / "all.onnx"), graph_optimization_level=off).run(
        None, {"input": x}
    ):
        assert np.isfinite(value).all()
        nonzero = np.abs(value[value != 0])
        assert nonzero.size
        assert nonzero.min() >= np.finfo(np.float32).tiny


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "|nor_conv_3x3~0|",
        "|nor_conv_7x7~0|+|none~0|none~1|+|none~0|none~1|none~2|",
        "|none~0|+|none~1|none~0|+|none~0|none~1|none~2|",
        "",
    ],
)
def test_a_text_that_is_no_genome_is_refused(text: str) -> None:
    with pytest.raises(InvalidArchError):
        arch_of_string(text)


def test_pictures_that_cannot_be_halved_twice_are_refused_with_what_fits() -> None:
    with pytest.raises(SpaceError, match=r"multiples of 4, not 30x32"):
        nasbench201(preset="paper", input_shape=(3, 30, 32), n_classes=10)


def test_an_unknown_preset_is_refused_with_what_is_known() -> None:
    with pytest.raises(SpaceError, match=r"'huge'; known: paper, tiny"):
        nasbench201(preset="huge", input_shape=(3, 32, 32), n_classes=10)
