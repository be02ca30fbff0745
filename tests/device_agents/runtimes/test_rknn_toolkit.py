"""The real rknn-toolkit2, where HILNAS_RKNN_PYTHON names an interpreter that has it."""

from __future__ import annotations

import json
import os

import pytest

from device_agents.measuring.reference import reference_model
from device_agents.runtimes.artefacts import prepare
from latency_tables.errors import MeasurementError
from tests.device_agents.runtimes.nets import LOCATION, residual_net

PYTHON = os.environ.get("HILNAS_RKNN_PYTHON", "")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not PYTHON, reason="HILNAS_RKNN_PYTHON names no interpreter"),
]


@pytest.mark.parametrize(("calib", "note"), [("", "float16"), ("random", "8 bits, random")])
def test_networks_are_converted(calib: str, note: str) -> None:
    options = {"rknn_python": PYTHON} | ({"calib": calib} if calib else {})
    model, data = residual_net(external=True)
    for found in (
        prepare("rknn", model, {LOCATION: data}, options=options),
        prepare("rknn", reference_model("tiny"), options=options),
    ):
        assert isinstance(found.main, bytes)
        assert found.main[:4] == b"RKNN"
        assert found.notes[1].startswith(note)
        names = json.loads(bytes(found.files["model.rknn.json"]))  # type: ignore[arg-type]
        assert names["toolkit"][0].isdigit()
        assert names["planned"]["by_count"] > 0.5
        assert "planned for the NPU" in found.notes[2]


def test_a_chip_that_does_not_exist_is_one_networks_failure() -> None:
    with pytest.raises(MeasurementError, match="config"):
        prepare("rknn", residual_net()[0], options={"rknn_python": PYTHON, "target": "rk0000"})
