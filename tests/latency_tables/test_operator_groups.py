"""Lines of a profile find the operators that they hold."""

from __future__ import annotations

import pytest

from latency_tables.graph import Graph, Node, Value
from latency_tables.operator_groups import Fusion, ProfileLine, expected, match
from tests.latency_tables.blocks import fused_lines, inverted, network, relu

PICTURE = 36


def line(name: str, op: str = "Conv", ns: float = 1000.0) -> ProfileLine:
    return ProfileLine(name=name, op=op, ns=ns)


def operators(found) -> list[list[str]]:
    return [[op for op, *_ in group.costs.config] for group in found.groups]


def test_lines_named_after_operators_are_theirs() -> None:
    graph = network(16)
    lines = [line(node.name, node.op, ns=100.0 * i) for i, node in enumerate(graph.nodes, 1)]
    found = match(graph, lines)
    assert operators(found) == [["Conv"], ["Relu"], ["Conv"], ["Relu"], ["Conv"], ["Add"]]
    assert [group.ns for group in found.groups] == [100, 200, 300, 400, 500, 600]
    assert (found.unmatched_ns, found.total_ns) == (0.0, 2100.0)


def test_a_fused_line_holds_the_activation_before_and_the_addition_after_its_tensor() -> None:
    graph = network(16, 24)
    found = match(graph, fused_lines(graph))
    assert operators(found) == [["Conv", "Relu"], ["Conv", "Relu"], ["Conv", "Add"]] * 2
    assert found.unmatched == ()


def test_a_fused_group_reads_and_writes_what_crosses_its_border() -> None:
    graph = network(16)
    expand, depthwise, project = (g.costs for g in match(graph, fused_lines(graph)).groups)
    assert (expand.kind, depthwise.kind, project.kind) == (
        "Conv pointwise", "Conv depthwise", "Conv pointwise",
    )  # fmt: skip
    assert (expand.read, expand.written) == (8 * PICTURE, 16 * PICTURE)
    assert (project.read, project.written) == ((16 + 8) * PICTURE, 8 * PICTURE)
    assert depthwise.macs == 16 * 9 * PICTURE
    assert depthwise.weight_bytes == 4 * 16 * 9


def test_lines_of_other_runtimes_are_named_after_operators_with_something_appended() -> None:
    graph = network(16)
    lines = [
        line("b0/conv1/WithoutBiases", "Convolution", 5000.0),
        line("b0/conv2/WithoutBiases", "GroupConvolution", 3000.0),
        line("b0/conv2", "Add", 500.0),
        line("output", "Convolution", 2000.0),
    ]
    found = match(graph, lines)
    assert [group.ns for group in found.groups] == [5000.0, 3500.0, 2000.0]
    assert operators(found) == [["Conv", "Relu"], ["Conv", "Relu"], ["Conv", "Add"]]


def test_time_that_names_nothing_of_the_network_is_told_and_not_attributed() -> None:
    graph = network(16)
    odd = [line("ReorderOutput_token_30", "ReorderOutput", 700.0), line("", "others", 50.0)]
    found = match(graph, [*fused_lines(graph), *odd])
    assert found.unmatched == ("ReorderOutput_token_30", "")
    assert found.unmatched_ns == 750.0
    assert sum(group.ns for group in found.groups) == 3000.0 == found.total_ns - 750.0


def test_the_input_of_the_network_is_nobodys_line() -> None:
    found = match(network(16), [line("input_abcd", "Reorder")])
    assert (found.groups, found.unmatched) == ((), ("input_abcd",))


def test_equal_operators_have_equal_configurations_wherever_they_stand() -> None:
    graph = network(16, 16, 24)
    configs = [group.costs.config for group in match(graph, fused_lines(graph)).groups]
    assert configs[:3] == configs[3:6]
    assert not set(configs[:3]) & set(configs[6:])


def test_a_section_that_was_never_profiled_is_fused_as_the_others_were() -> None:
    fusion, graph = Fusion(), network(16, 24)
    match(graph, fused_lines(graph), fusion)
    (unseen,) = inverted(8, 40, 6).sections
    kinds = [costs.kind for costs in expected(unseen, fusion)]
    assert kinds == ["Conv pointwise", "Conv depthwise", "Conv pointwise"]
    assert len(expected(unseen, Fusion())) == 6


@pytest.mark.parametrize("fused", [True, False])
def test_pairs_are_fused_when_most_of_them_were(fused: bool) -> None:
    fusion, graph = Fusion(), network(16)
    alone = [line(node.name, node.op) for node in graph.nodes]
    for lines in (fused_lines(graph), alone, fused_lines(graph) if fused else alone):
        match(graph, lines, fusion)
    assert fusion.fuses("Conv", "Relu") == fused


def test_an_operator_without_a_line_and_without_a_neighbour_costs_nothing() -> None:
    values = [Value(name=n, shape=(1, 4)) for n in "ab"]
    first = Node(op="Identity", name="first", inputs=("input",), outputs=("a",))
    graph = Graph.of(
        input=Value(name="input", shape=(1, 4)),
        output="b",
        nodes=[first, relu("second", "a", "b")],
        values=values,
    )
    found = match(graph, [line("second", "Relu")])
    assert operators(found) == [["Relu"]]
