"""Outputs computed on a device: those of this machine's onnxruntime, row by row, in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from device_agents.devices import DeviceSpec
from device_agents.measuring import inference
from device_agents.measuring.inference import infer
from device_agents.measuring.measurer import DeviceMeasurer
from device_agents.measuring.reference import reference_model
from device_agents.runtimes.artefacts import Artefact
from latency_tables.errors import MeasurementError

MODEL = reference_model("tiny")
IMAGES = np.random.default_rng(0).normal(size=(7, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def used(tmp_path: Path) -> Iterator[DeviceMeasurer]:
    measurer = DeviceMeasurer(DeviceSpec(name="local", workdir=tmp_path / "agent"))
    with measurer, measurer.connected():
        yield measurer


def test_outputs_are_those_of_this_machine_in_the_order_of_the_inputs(used) -> None:
    found = infer(used, Artefact(main=MODEL), IMAGES)
    host = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    expected = np.concatenate([host.run(None, {"input": IMAGES[i : i + 1]})[0] for i in range(7)])
    assert found.shape == (7, 10)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_many_inputs_travel_in_parts(used, monkeypatch) -> None:
    whole = infer(used, Artefact(main=MODEL), IMAGES)
    monkeypatch.setattr(inference, "MAX_CHUNK_BYTES", 2 * IMAGES[:1].nbytes)
    np.testing.assert_array_equal(infer(used, Artefact(main=MODEL), IMAGES), whole)


def test_a_model_that_does_not_load_is_the_models_fault(used) -> None:
    with pytest.raises(MeasurementError, match="failed on local") as raised:
        infer(used, Artefact(main=MODEL[: len(MODEL) // 2]), IMAGES)
    assert raised.value.blames == "candidate"


def test_inputs_of_the_wrong_shape_are_told_with_the_runtimes_words(used) -> None:
    with pytest.raises(MeasurementError, match=r"(?i)dimension|invalid"):
        infer(used, Artefact(main=MODEL), IMAGES[:, :2])
