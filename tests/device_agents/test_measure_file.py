"""Any ONNX file, measured; files that need care are refused or explained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from device_agents.devices import DeviceSpec
from device_agents.measure_file import Golden, measure_file
from device_agents.onnx_files import external_locations
from device_agents.profiles import counted
from latency_tables.errors import MeasurementError, UsageError
from latency_tables.records import DeviceFingerprint, Measurement

BRIEF = counted(4, 1)


@pytest.fixture
def model(tmp_path: Path, make_onnx: Callable[..., bytes]) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(make_onnx(channels=2, blocks=1, weight=0.3))  # 0.1 per input channel
    return path


def test_the_result_is_json_that_its_readers_accept(model: Path, device: DeviceSpec) -> None:
    found = json.loads(
        json.dumps(measure_file(model, device, profile=BRIEF, peak_memory=False).to_dict())
    )
    measurement = Measurement.from_dict(found["measurement"])
    assert measurement.device_fp == DeviceFingerprint.from_dict(found["device"]).fingerprint
    assert measurement.statistics is not None
    assert measurement.statistics.n_samples == 4


def golden(value: float) -> Golden:
    """Ones in, and what a padded 3×3 convolution of 3 channels with that weight makes of them."""
    expected = np.zeros((1, 2, 8, 8), dtype=np.float32)
    for y in range(8):
        for x in range(8):
            covered = (3 - (y in (0, 7))) * (3 - (x in (0, 7)))
            expected[:, :, y, x] = covered * 3 * value
    ones = np.ones((1, 3, 8, 8), dtype=np.float32)
    return Golden(inputs={"input": ones}, outputs={"output": expected})


@pytest.mark.parametrize(("value", "failed"), [(0.1, []), (0.11, ["WRONG_ANSWER"])])
def test_outputs_are_compared_with_the_expected_ones(
    model: Path, device: DeviceSpec, value: float, failed: list[str]
) -> None:
    found = measure_file(
        model, device, profile=BRIEF, golden=golden(value), peak_memory=False
    ).measurement
    assert [v.code for v in found.verdicts if v.severity == "fail"] == failed
    assert found.ok is not bool(failed)


def test_an_open_shape_is_explained_and_can_be_given(
    model: Path, device: DeviceSpec, make_onnx: Callable[..., bytes]
) -> None:
    model.write_bytes(make_onnx(batch="N"))
    error = measure_file(model, device, profile=BRIEF, peak_memory=False).measurement.error
    assert error is not None
    assert error["code"] == "UNSUPPORTED_MODEL"
    assert "'input'" in error["message"]
    given = measure_file(
        model, device, profile=BRIEF, peak_memory=False, shapes={"input": (2, 3, 8, 8)}
    )
    assert given.measurement.error is None


def test_weights_beside_the_model_go_along(
    tmp_path: Path, device: DeviceSpec, make_external: Callable[[str], bytes]
) -> None:
    (tmp_path / "net.onnx").write_bytes(make_external("w.bin"))
    (tmp_path / "w.bin").write_bytes(np.ones(12, dtype=np.float32).tobytes())
    expected = Golden(
        inputs={"input": np.ones((1, 3), dtype=np.float32)},
        outputs={"output": np.full((1, 4), 3, dtype=np.float32)},
    )
    found = measure_file(
        tmp_path / "net.onnx", device, profile=BRIEF, peak_memory=False, golden=expected
    )
    assert found.measurement.error is None
    assert "WRONG_ANSWER" not in {v.code for v in found.measurement.verdicts}


@pytest.mark.parametrize("location", ["/etc/passwd", "../w.bin", "sub/w.bin", ".."])
def test_weights_outside_the_folder_of_the_model_are_refused(
    tmp_path: Path, device: DeviceSpec, make_external: Callable[[str], bytes], location: str
) -> None:
    (tmp_path / "net.onnx").write_bytes(make_external(location))
    with pytest.raises(MeasurementError, match="only files beside the model"):
        measure_file(tmp_path / "net.onnx", device)


def test_a_link_to_weights_elsewhere_is_refused(
    tmp_path: Path, device: DeviceSpec, make_external: Callable[[str], bytes]
) -> None:
    (tmp_path / "net.onnx").write_bytes(make_external("w.bin"))
    (tmp_path / "w.bin").symlink_to("/etc/passwd")
    with pytest.raises(MeasurementError, match="links elsewhere"):
        measure_file(tmp_path / "net.onnx", device)


def test_missing_weights_and_a_missing_file_are_named(
    tmp_path: Path, device: DeviceSpec, make_external: Callable[[str], bytes]
) -> None:
    (tmp_path / "net.onnx").write_bytes(make_external("w.bin"))
    with pytest.raises(UsageError, match=r"'w\.bin', which is not there"):
        measure_file(tmp_path / "net.onnx", device)
    with pytest.raises(UsageError, match=r"absent\.onnx cannot be read"):
        measure_file(tmp_path / "absent.onnx", device)


def test_bytes_that_are_no_model_are_refused() -> None:
    with pytest.raises(MeasurementError, match="not an ONNX model"):
        external_locations(b"\xff\xffnot a model")


def test_a_size_below_one_is_refused(model: Path, device: DeviceSpec) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        measure_file(model, device, shapes={"input": (0, 3, 8, 8)})
