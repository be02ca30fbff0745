"""OpenVINO on the host's CPU; skipped where it is not installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_agents.board import runtime_openvino
from tests.device_agents.runtimes.nets import LOCATION, SHAPE, expected, image, residual_net

try:
    runtime_openvino.describe()
except ImportError:
    MISSING = True
else:
    MISSING = False

installed = pytest.mark.skipif(MISSING, reason="openvino is not installed: pip install openvino")


def test_a_missing_package_is_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match="openvino"):
        runtime_openvino.describe()


@pytest.mark.parametrize("precision", ["f8", "", None, 32])
def test_a_wrong_precision_names_those_that_exist(precision: Any) -> None:
    with pytest.raises(ValueError, match="allowed: f32, f16, bf16"):
        runtime_openvino._settings("CPU", 1, {"precision": precision})


def test_a_level_of_optimisation_that_it_does_not_have_is_refused(
    tmp_path: Path, open_session: Callable[..., Any]
) -> None:
    with pytest.raises(ValueError, match="no graph optimization 'basic'"):
        open_session(runtime_openvino, tmp_path / "model.onnx", optimization="basic")


@installed
def test_outputs_equal_those_of_onnxruntime(
    tmp_path: Path, open_session: Callable[..., Any]
) -> None:
    model, _ = residual_net()
    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    session = open_session(runtime_openvino, path)
    path.unlink()  # the agent removes the folder at once
    assert session.inputs == [("image", list(SHAPE), "float")]
    assert session.output_names == ["logits"]
    [output] = session.prepare({"image": image()})()
    np.testing.assert_allclose(output, expected(model, {"image": image()}), atol=1e-5)


@installed
def test_weights_beside_the_model_are_read(
    tmp_path: Path, open_session: Callable[..., Any]
) -> None:
    model, weights = residual_net(external=True)
    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    (tmp_path / LOCATION).write_bytes(weights)
    [output] = open_session(runtime_openvino, path).prepare({"image": image()})()
    whole, _ = residual_net()
    np.testing.assert_allclose(output, expected(whole, {"image": image()}), atol=1e-5)


@installed
def test_an_open_batch_runs_at_the_size_that_is_fed(
    tmp_path: Path, open_session: Callable[..., Any]
) -> None:
    model, _ = residual_net("N")
    (tmp_path / "model.onnx").write_bytes(model)
    session = open_session(runtime_openvino, tmp_path / "model.onnx")
    [(_, shape, _)] = session.inputs
    assert not isinstance(shape[0], int)
    [output] = session.prepare({"image": image(3)})()
    np.testing.assert_allclose(output, expected(model, {"image": image(3)}), atol=1e-5)


@installed
def test_threads_and_precision_are_as_asked_and_pinning_is_left_to_the_agent(
    tmp_path: Path, open_session: Callable[..., Any]
) -> None:
    (tmp_path / "model.onnx").write_bytes(residual_net()[0])
    session = open_session(runtime_openvino, tmp_path / "model.onnx", threads=1)
    found = session.evidence()
    assert found["inference_num_threads"] == 1
    assert found["num_streams"] in (1, "1")
    assert found["enable_cpu_pinning"] is False
    assert (
        "float32" in found["inference_precision_hint"] or found["inference_precision_hint"] == "f32"
    )


@installed
def test_the_profile_names_operators_and_times(
    tmp_path: Path, open_session: Callable[..., Any]
) -> None:
    (tmp_path / "model.onnx").write_bytes(residual_net()[0])
    session = open_session(runtime_openvino, tmp_path / "model.onnx")
    rows = session.profile({"image": image()})
    assert "Convolution" in {row["op"] for row in rows}
    assert all(row["ns"] >= 0 and row["provider"] == "CPU" for row in rows)
    assert sum(row["ns"] for row in rows) > 0


@installed
def test_a_device_that_does_not_exist_is_refused(
    tmp_path: Path, open_session: Callable[..., Any]
) -> None:
    (tmp_path / "model.onnx").write_bytes(residual_net()[0])
    with pytest.raises(ValueError, match=r"device 'TPU' does not exist; there are: .*CPU"):
        open_session(runtime_openvino, tmp_path / "model.onnx", provider="TPU")


@installed
def test_its_telemetry_is_never_loaded_and_no_consent_file_is_written(tmp_path: Path) -> None:
    import subprocess

    code = (
        "from device_agents.board import runtime_openvino as r; import sys; "
        "found = r.describe(); "
        "print(found['provider'], sys.modules['openvino_telemetry'], "
        "[m for m in sys.modules if m.startswith('openvino_telemetry.')])"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["CPU", "None", "[]"]
    assert not (tmp_path / "intel").exists()
