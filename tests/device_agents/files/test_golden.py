"""Expected outputs from this machine: exact where they can be, absent with a reason otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from device_agents.board.inputs import compare, compare_each
from device_agents.files import golden as golden_module
from device_agents.files.golden import HostAnswer, host_answer, relative_tolerance
from device_agents.files.onnx_files import describe, fixed_shapes, read_model


def answer(path: Path) -> HostAnswer:
    model, files = read_model(path)
    facts = describe(path.name, model, files)
    return host_answer(path, facts, fixed_shapes(facts, {}))


def one_operator(path: Path, operator: str, **attributes: object) -> Path:
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
    )
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, ir_version=8, opset_imports=opset)
    path.write_bytes(model.SerializeToString())
    return path


def test_this_machine_gives_inputs_and_outputs(tmp_path: Path) -> None:
    found = answer(one_operator(tmp_path / "net.onnx", "Abs")).golden
    assert found is not None
    np.testing.assert_array_equal(found.outputs["y"], np.abs(found.inputs["x"]))
    assert found.atols["y"] == pytest.approx(1e-3 * np.abs(found.inputs["x"]).max())


def test_weights_beside_the_model_are_found(
    tmp_path: Path, make_external: Callable[[str], bytes]
) -> None:
    (tmp_path / "net.onnx").write_bytes(make_external("w.bin"))
    (tmp_path / "w.bin").write_bytes(np.ones(12, dtype=np.float32).tobytes())
    assert answer(tmp_path / "net.onnx").golden is not None


def test_a_model_that_draws_random_numbers_cannot_be_compared(tmp_path: Path) -> None:
    found = answer(one_operator(tmp_path / "net.onnx", "RandomNormalLike"))
    assert found.golden is None
    assert "random numbers" in found.note


def test_a_model_that_this_machine_cannot_run_is_said_so(tmp_path: Path) -> None:
    found = answer(one_operator(tmp_path / "net.onnx", "NoSuchOperator"))
    assert found.golden is None
    assert "this machine cannot run the model" in found.note
    assert str(tmp_path) not in found.note


def test_outputs_over_the_bound_are_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = one_operator(tmp_path / "net.onnx", "Abs")
    monkeypatch.setattr(golden_module, "MAX_BYTES", 24)  # just the six numbers
    assert answer(path).golden is not None
    monkeypatch.setattr(golden_module, "_bounded", lambda outputs: ({}, list(outputs)))
    left = answer(path)
    assert left.golden is None
    assert left.note.endswith(": y")
    monkeypatch.setattr(golden_module, "MAX_BYTES", 23)
    assert "the inputs have over" in answer(path).note


def test_half_precision_runtimes_may_be_further_off() -> None:
    exact = relative_tolerance("onnxruntime", "")
    assert exact == relative_tolerance("onnxruntime", "CPUExecutionProvider")
    assert relative_tolerance("ncnn", "") > exact
    assert relative_tolerance("onnxruntime", "XnnpackExecutionProvider") > exact


@pytest.mark.parametrize(
    ("got", "right", "error"),
    [
        ([1.0, 2.0], True, 0.0),
        ([1.0005, 2.0], True, 0.0005),
        ([1.0, 2.5], False, 0.5),
        ([1.0, np.nan], False, None),
        ([1.0, np.inf], False, None),
    ],
)
def test_outputs_are_compared_within_a_tolerance(
    got: list[float], right: bool, error: float | None
) -> None:
    found = compare({"y": np.array(got)}, {"y": np.array([1.0, 2.0])}, {"atols": {"y": 1e-3}})
    assert found["right"] is right
    assert found["max_abs_error"] == (error if error is None else pytest.approx(error))


def test_a_missing_output_and_one_of_another_shape_are_wrong() -> None:
    want = {"a": np.ones(3), "b": np.ones((2, 2))}
    found = compare_each({"b": np.ones(4)}, want, {})
    assert found["a"]["problem"] == "the output is missing"
    assert "[4]" in found["b"]["problem"]
    assert not found["a"]["right"]
    assert not found["b"]["right"]
    assert compare({}, want, {}) == {"right": False, "max_abs_error": None, "output": "a"}


def test_equal_nans_are_equal_and_cosine_needs_a_length() -> None:
    nan = np.array([np.nan, 1.0])
    found = compare_each({"y": nan, "z": np.zeros(2)}, {"y": nan, "z": np.zeros(2)}, {})
    assert found["y"]["right"]
    assert found["z"] == {
        "right": True, "max_abs_error": 0.0, "max_rel_error": 0.0, "cosine": None, "problem": ""
    }  # fmt: skip
