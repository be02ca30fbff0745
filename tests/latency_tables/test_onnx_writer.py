"""ONNX files of graphs: valid, deterministic, with weights beside or inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from latency_tables.errors import GraphError
from latency_tables.graph import Constant, Graph, Node, Parameter, Source, Value, compose
from latency_tables.onnx_writer import header_bytes, to_onnx


def linear(n_in: int, n_out: int, op: str = "Gemm") -> Graph:
    def parameter(name: str, *shape: int) -> Parameter:
        source = Source(transform="copy", tensors=(name,))
        return Parameter(name=name, shape=shape, fan_in=n_in, source=source)

    return Graph.of(
        input=Value(name="input", shape=(1, n_in)),
        output="y",
        nodes=[
            Node(
                op=op,
                name="y",
                inputs=("input", "weight", "bias"),
                outputs=("y",),
                attributes=(("alpha", 1.0), ("transB", 1)),
            )
        ],
        values=[Value(name="y", shape=(1, n_out))],
        parameters=[parameter("weight", n_out, n_in), parameter("bias", n_out)],
    )


def network() -> Graph:
    return compose([("first", linear(20, 30)), ("second", linear(30, 5))])


def weights_of(graph: Graph) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {p.name: rng.standard_normal(p.shape).astype(np.float32) for p in graph.parameters}


def session(model: str | bytes) -> ort.InferenceSession:
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"])


def test_embedded_weights_compute_the_network() -> None:
    graph = network()
    weights = weights_of(graph)
    x = np.random.default_rng(1).standard_normal((1, 20)).astype(np.float32)
    hidden = x @ weights["first.weight"].T + weights["first.bias"]
    expected = hidden @ weights["second.weight"].T + weights["second.bias"]
    got = session(to_onnx(graph, weights).model).run(["output"], {"input": x})[0]
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_a_model_without_weights_runs_beside_its_synthetic_file(tmp_path: Path) -> None:
    candidate = to_onnx(network())
    assert candidate.weights_spec is not None
    (tmp_path / "model.onnx").write_bytes(candidate.model)
    (tmp_path / candidate.weights_spec.location).write_bytes(candidate.weights_spec.synthesise())
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    x = np.ones((1, 20), dtype=np.float32)
    data = np.frombuffer(candidate.weights_spec.synthesise(), dtype="<f4")
    model = onnx.load(tmp_path / "model.onnx")
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    assert np.array_equal(weights["first.weight"].ravel(), data[:600])
    hidden = x @ weights["first.weight"].T + weights["first.bias"]
    expected = hidden @ weights["second.weight"].T + weights["second.bias"]
    got = session(str(tmp_path / "model.onnx")).run(None, {"input": x})[0]
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_tiny_weights_are_inline_and_large_ones_are_not() -> None:
    candidate = to_onnx(network())
    assert candidate.weights_spec is not None
    names = {t.name for t in candidate.weights_spec.tensors}
    assert names == {"first.weight", "first.bias", "second.weight"}
    model = onnx.load_from_string(candidate.model)
    inline = {t.name for t in model.graph.initializer if not t.external_data}
    assert inline == {"second.bias"}


def test_weights_in_the_file_do_not_overlap_and_are_aligned() -> None:
    candidate = to_onnx(network())
    assert candidate.weights_spec is not None
    end = 0
    for tensor in candidate.weights_spec.tensors:
        assert tensor.offset_bytes >= end
        assert tensor.offset_bytes % 64 == 0
        end = tensor.offset_bytes + 4 * tensor.n_elements


def test_equal_graphs_give_equal_bytes() -> None:
    first, second = to_onnx(network()), to_onnx(network())
    assert first == second
    assert to_onnx(network(), seed=1) != first
    again = onnx.load_from_string(first.model)
    assert onnx.load_from_string(again.SerializeToString()) == again


def test_the_model_names_its_versions() -> None:
    model = onnx.load_from_string(to_onnx(network(), opset=15, ir_version=7).model)
    assert (model.ir_version, model.opset_import[0].version) == (7, 15)


def test_the_size_of_a_file_is_known_from_its_headers() -> None:
    graph = network()
    embedded = len(to_onnx(graph, weights_of(graph)).model)
    estimate = header_bytes(graph) + 4 * graph.n_weights()
    assert estimate == pytest.approx(embedded, abs=200)


def test_wrong_weights_are_named() -> None:
    graph = network()
    with pytest.raises(GraphError, match=r"first\.weight"):
        to_onnx(graph, {})
    wrong = {**weights_of(graph), "second.bias": np.zeros(4, dtype=np.float32)}
    with pytest.raises(GraphError, match=r"second\.bias.*\(4,\)"):
        to_onnx(graph, wrong)


def test_an_opset_that_does_not_fit_is_refused() -> None:
    with pytest.raises(GraphError, match="13 to 21"):
        to_onnx(network(), opset=11)
    with pytest.raises(GraphError, match="HardSwish needs opset 14"):
        to_onnx(linear(3, 4, op="HardSwish"), opset=13)


def test_a_graph_without_operators_is_refused() -> None:
    empty = Graph.of(input=Value(name="input", shape=(1,)), output="input", nodes=[], values=[])
    with pytest.raises(GraphError, match="without operators"):
        to_onnx(empty)


def test_the_size_of_a_weight_may_need_several_bytes_in_the_header() -> None:
    graph = compose([(f"layer{i}", linear(300, 300)) for i in range(40)])
    onnx.load_from_string(to_onnx(graph).model)
    spec = to_onnx(graph).weights_spec
    assert spec is not None
    assert spec.tensors[-1].offset_bytes > 2**23


def test_constants_are_inline() -> None:
    graph = Graph.of(
        input=Value(name="input", shape=(1, 4)),
        output="y",
        nodes=[Node(op="Reshape", name="y", inputs=("input", "shape"), outputs=("y",))],
        values=[Value(name="y", shape=(2, 2))],
        constants=[Constant.of("shape", np.array([2, 2]))],
    )
    candidate = to_onnx(graph)
    assert candidate.weights_spec is not None
    assert candidate.weights_spec.tensors == ()
    got = session(candidate.model).run(None, {"input": np.ones((1, 4), dtype=np.float32)})[0]
    assert got.shape == (2, 2)
