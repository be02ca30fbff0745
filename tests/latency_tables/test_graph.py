"""Graphs are checked, composed under names, and cost what the counting rules say."""

from __future__ import annotations

import numpy as np
import pytest

from latency_tables.costs import conv_macs, gemm_macs, graph_costs, peak_bytes
from latency_tables.errors import GraphError
from latency_tables.graph import Constant, Graph, Node, Parameter, Source, Value, compose


def node(op: str, inputs: str, output: str, **attributes) -> Node:
    return Node(
        op=op,
        name=output,
        inputs=tuple(inputs.split()),
        outputs=(output,),
        attributes=tuple(sorted(attributes.items())),
    )


def weight(name: str, *shape: int) -> Parameter:
    return Parameter(
        name=name, shape=shape, fan_in=3, source=Source(transform="copy", tensors=(name,))
    )


def block(channels: int = 4) -> Graph:
    """Depthwise 3x3 + ReLU + pointwise, added to the input; pictures of 5x5."""
    shape = (1, channels, 5, 5)
    names = ("depthwise", "relu", "pointwise", "sum")
    return Graph.of(
        input=Value(name="input", shape=shape),
        output="sum",
        nodes=[
            node("Conv", "input dw.weight", "depthwise", group=channels),
            node("Relu", "depthwise", "relu"),
            node("Conv", "relu pw.weight", "pointwise", group=1),
            node("Add", "pointwise input", "sum"),
        ],
        values=[Value(name=n, shape=shape) for n in names],
        parameters=[
            weight("dw.weight", channels, 1, 3, 3),
            weight("pw.weight", channels, channels, 1, 1),
        ],
    )


def identity() -> Graph:
    value = Value(name="input", shape=(1, 4, 5, 5))
    return Graph.of(input=value, output="input", nodes=[], values=[])


def test_convolution_macs_follow_the_closed_form() -> None:
    assert conv_macs((64, 32, 3, 3), (1, 64, 7, 7)) == 64 * 32 * 9 * 49
    assert gemm_macs((1, 5, 16), (1, 5, 8)) == 5 * 16 * 8


def test_macs_are_told_apart_by_kind() -> None:
    costs = graph_costs(block())
    assert costs["macs_depthwise"] == 4 * 9 * 25
    assert costs["macs_pointwise"] == 4 * 4 * 25
    assert costs["macs"] == block().macs() == 4 * 9 * 25 + 4 * 4 * 25
    assert costs["macs_spatial"] == costs["macs_matmul"] == 0


def test_elements_are_told_apart_by_the_kind_of_convolution_that_writes_them() -> None:
    costs = graph_costs(block())
    assert costs["elements_depthwise"] == costs["elements_pointwise"] == 4 * 25
    assert costs["elements_gated"] == costs["elements_pooled"] == 0


def scaled(operands: str) -> dict[str, int]:
    """Costs of a window of 2x2, then one product; ``b`` is global, ``w`` a weight."""
    picture, pooled = (1, 4, 6, 6), (1, 4, 3, 3)
    graph = Graph.of(
        input=Value(name="input", shape=picture),
        output="y",
        nodes=[
            node("MaxPool", "input", "a", kernel_shape=(2, 2), strides=(2, 2)),
            node("GlobalAveragePool", "a", "b"),
            node("Mul", operands, "y"),
        ],
        values=[Value(name=n, shape=s) for n, s in {"a": pooled, "b": (1, 4, 1, 1)}.items()]
        + [Value(name="y", shape=pooled)],
        parameters=[weight("w", 4, 1, 1)],
    )
    return graph_costs(graph)


def test_a_product_with_a_smaller_computed_tensor_is_a_gate() -> None:
    assert scaled("a b")["elements_gated"] == scaled("b a")["elements_gated"] == 4 * 9


def test_a_product_with_a_weight_or_with_a_tensor_of_its_size_is_no_gate() -> None:
    assert scaled("a w")["elements_gated"] == scaled("a a")["elements_gated"] == 0


def test_a_pool_over_a_window_is_counted_and_a_global_one_is_not() -> None:
    assert scaled("a b")["elements_pooled"] == 4 * 9


def test_an_activation_works_in_place_and_costs_no_memory() -> None:
    picture = 4 * 25 * 4  # bytes
    costs = graph_costs(block())
    assert costs["activation_bytes"] == 3 * picture
    assert costs["activation_elements"] == 3 * 100
    # while the pointwise convolution runs: the input (for the sum), its operand, its output
    assert costs["activation_peak_bytes"] == 3 * picture


def test_an_activation_whose_operand_is_read_again_writes_new_memory() -> None:
    shape = (1, 4)
    graph = Graph.of(
        input=Value(name="input", shape=shape),
        output="c",
        nodes=[node("Neg", "input", "a"), node("Relu", "a", "b"), node("Add", "a b", "c")],
        values=[Value(name=n, shape=shape) for n in "abc"],
    )
    assert graph_costs(graph)["activation_bytes"] == 3 * 16
    assert peak_bytes(graph.sections[0]) == 3 * 16


def test_a_view_writes_nothing() -> None:
    graph = Graph.of(
        input=Value(name="input", shape=(1, 4, 2)),
        output="flat",
        nodes=[node("Reshape", "input shape", "flat")],
        values=[Value(name="flat", shape=(1, 8))],
        constants=[Constant.of("shape", np.array([1, 8]))],
    )
    costs = graph_costs(graph)
    assert costs["activation_bytes"] == 0
    assert costs["activation_peak_bytes"] == 32


def test_pieces_are_chained_under_their_names() -> None:
    graph = compose([("first", block()), ("second", block())])
    assert [p.name for p in graph.parameters] == [
        f"{name}.{kind}.weight" for name in ("first", "second") for kind in ("dw", "pw")
    ]
    assert graph.parameters[2].source.tensors == ("second.dw.weight",)
    assert (graph.input.name, graph.output.name) == ("input", "output")
    assert graph.nodes[4].inputs == ("first/out", "second.dw.weight")


def test_costs_of_a_chain_add_up_and_the_peak_is_the_largest() -> None:
    one, two = graph_costs(block()), graph_costs(compose([("a", block()), ("b", block())]))
    assert two.pop("activation_peak_bytes") == one.pop("activation_peak_bytes")
    assert two == {name: 2 * cost for name, cost in one.items()}


def test_a_piece_without_operators_passes_its_input_on() -> None:
    around = compose([("a", identity()), ("b", block()), ("c", identity())])
    assert around.output.name == "output"
    assert around.nodes[0].inputs[0] == "input"
    assert graph_costs(around)["macs"] == block().macs()


def test_composing_again_reuses_what_was_placed() -> None:
    piece = block()
    first, second = (compose([("a", piece), ("b", piece)]) for _ in range(2))
    assert all(x is y for x, y in zip(first.sections, second.sections, strict=True))


def test_pieces_that_do_not_fit_are_named() -> None:
    with pytest.raises(GraphError, match="'b' reads"):
        compose([("a", block(4)), ("b", block(8))])
    with pytest.raises(GraphError, match="share a name"):
        compose([("a", block()), ("a", block())])
    with pytest.raises(GraphError, match="at least one"):
        compose([])
    with pytest.raises(GraphError, match="composed already"):
        compose([("x", compose([("a", block()), ("b", block())]))])


def test_an_operand_that_nothing_gives_is_refused() -> None:
    value = Value(name="input", shape=(1,))
    with pytest.raises(GraphError, match="nothing gives"):
        Graph.of(
            input=value,
            output="y",
            nodes=[node("Add", "input ghost", "y")],
            values=[Value(name="y", shape=(1,))],
        )
    with pytest.raises(GraphError, match="no shape"):
        Graph.of(input=value, output="input", nodes=[node("Relu", "input", "y")], values=[])
    with pytest.raises(GraphError, match="no value"):
        Graph.of(input=value, output="y", nodes=[], values=[])


def test_a_constant_keeps_its_value_and_type() -> None:
    array = np.array([[1, -2], [3, 4]], dtype=np.int64)
    constant = Constant.of("c", array.T)
    assert np.array_equal(constant.array, array.T)
    assert constant.dtype == "int64"
