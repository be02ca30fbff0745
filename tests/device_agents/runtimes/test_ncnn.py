"""ncnn on the host's CPU, through pnnx; skipped where they are not installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_agents.board import runtime_ncnn
from device_agents.runtimes.artefacts import Artefact, prepare
from device_agents.runtimes.converters.base import with_weights_inside
from device_agents.runtimes.converters.pnnx import find_pnnx
from latency_tables.errors import BootstrapError, MeasurementError
from latency_tables.weights_spec import WeightsSpec, WeightTensor
from tests.device_agents.runtimes.nets import LOCATION, SHAPE, expected, image, residual_net


def why_not() -> str:
    try:
        runtime_ncnn.describe()
    except ImportError:
        return "ncnn is not installed: pip install --no-deps ncnn"
    try:
        find_pnnx(None)
    except BootstrapError as error:
        return str(error)
    return ""


installed = pytest.mark.skipif(bool(why_not()), reason=why_not() or "installed")


def lay_out(folder: Path, artefact: Artefact) -> Path:
    """As the agent does: the main file is always called model.onnx."""
    assert isinstance(artefact.main, bytes)
    (folder / "model.onnx").write_bytes(artefact.main)
    for name, data in artefact.files.items():
        assert isinstance(data, bytes)
        (folder / name).write_bytes(data)
    return folder / "model.onnx"


def test_a_missing_package_is_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", None)
    with pytest.raises(ImportError, match="ncnn"):
        runtime_ncnn.describe()


def test_every_16_bit_option_is_off_unless_asked_for() -> None:
    assert set(runtime_ncnn._storage({}).values()) == {False}
    on = {name for name, value in runtime_ncnn._storage({"fp16": True}).items() if value}
    assert on == {"use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"}
    with pytest.raises(ValueError, match="allowed: fp16, use_fp16_packed"):
        runtime_ncnn._storage({"fp8": True})


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"inputs": [{"name": "x", "blob": "in0", "shape": None}], "outputs": []},
        {"inputs": [], "outputs": [{"name": "x", "blob": 3, "shape": None}]},
        {"inputs": [], "outputs": [{"name": "x", "blob": "out0", "shape": [1, "N"]}]},
    ],
)
def test_damaged_names_are_refused(names: Any) -> None:
    with pytest.raises(ValueError, match=r"model\.ncnn\.json is not readable"):
        runtime_ncnn._checked(names)


@installed
@pytest.mark.parametrize("batch", [1, 2])
def test_outputs_equal_those_of_onnxruntime(
    tmp_path: Path, open_session: Callable[..., Any], batch: int
) -> None:
    model, _ = residual_net(batch)
    session = open_session(runtime_ncnn, lay_out(tmp_path, prepare("ncnn", model)))
    assert session.inputs == [("image", [batch, *SHAPE[1:]], "float")]
    assert session.output_names == ["logits"]
    feeds = {"image": image(batch)}
    call = session.prepare(feeds)
    for _ in range(2):
        np.testing.assert_allclose(call()[0], expected(model, feeds), atol=1e-5)


@installed
def test_weights_that_were_not_sent_are_made_before_the_conversion(
    tmp_path: Path, open_session: Callable[..., Any]
) -> None:
    model, raw = residual_net(external=True)
    tensor = WeightTensor(name="all", n_elements=len(raw) // 4, fan_in=9, offset_bytes=0)
    spec = WeightsSpec(seed=1, tensors=(tensor,), location=LOCATION)
    made = prepare("ncnn", model, weights=spec)
    sent = prepare("ncnn", model, {LOCATION: spec.synthesise()})
    assert made.weights is None
    assert made.sha256 != prepare("ncnn", model, {LOCATION: raw}).sha256
    assert made.sha256 == sent.sha256
    session = open_session(runtime_ncnn, lay_out(tmp_path, made))
    whole = with_weights_inside(model, {LOCATION: spec.synthesise()})
    feeds = {"image": image()}
    np.testing.assert_allclose(session.prepare(feeds)()[0], expected(whole, feeds), rtol=1e-4)


@installed
def test_an_open_shape_must_be_given(tmp_path: Path, open_session: Callable[..., Any]) -> None:
    model, _ = residual_net("N")
    with pytest.raises(MeasurementError, match="input 'image' has no fixed shape"):
        prepare("ncnn", model)
    made = prepare("ncnn", model, shapes={"image": SHAPE})
    session = open_session(runtime_ncnn, lay_out(tmp_path, made))
    feeds = {"image": image()}
    np.testing.assert_allclose(session.prepare(feeds)()[0], expected(model, feeds), atol=1e-5)


@installed
def test_evidence_tells_threads_and_storage(
    tmp_path: Path, open_session: Callable[..., Any]
) -> None:
    path = lay_out(tmp_path, prepare("ncnn", residual_net()[0]))
    found = open_session(runtime_ncnn, path, threads=1).evidence()
    assert found["num_threads"] == 1
    assert not any(found.get(name) for name in runtime_ncnn.STORAGE)
    asked = open_session(runtime_ncnn, path, options={"fp16": True}).evidence()
    assert asked["use_fp16_storage"] is True


@installed
def test_a_damaged_structure_is_an_error(tmp_path: Path, open_session: Callable[..., Any]) -> None:
    path = lay_out(tmp_path, prepare("ncnn", residual_net()[0]))
    path.write_text("7767517\n1 1\nTelepathy t 1 1 in0 out0\n")
    with pytest.raises(RuntimeError, match="ncnn refuses the network's structure"):
        open_session(runtime_ncnn, path)


@installed
def test_the_artefact_keeps_the_names_of_the_onnx_file() -> None:
    made = prepare("ncnn", residual_net()[0])
    names = json.loads(bytes(made.files["model.ncnn.json"]))  # type: ignore[arg-type]
    assert [entry["name"] for entry in names["inputs"]] == ["image"]
    assert names["outputs"][0]["shape"] == [1, 5]
    assert made.notes == ("converted by pnnx, float32 weights",)
