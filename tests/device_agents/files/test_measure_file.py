"""Any ONNX file, measured; files that need care are refused or explained."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from device_agents.devices import DeviceSpec
from device_agents.files.advice import trouble
from device_agents.files.file_runs import sweep_file
from device_agents.files.measure_file import Golden, measure_file
from device_agents.files.onnx_files import external_locations, read_model
from device_agents.files.passes import Operators
from device_agents.measuring.profiles import counted
from latency_tables.errors import HilnasError, MeasurementError, UsageError
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
    with pytest.raises(UsageError, match=r"input \(float Nx3x8x8\)") as refused:
        measure_file(model, device, profile=BRIEF)
    assert refused.value.hint == "--shape input=1x3x8x8"
    given = measure_file(
        model, device, profile=BRIEF, peak_memory=False, shapes={"input": (2, 3, 8, 8)}
    )
    assert given.measurement.error is None
    assert given.shapes == {"input": (2, 3, 8, 8)}


def test_outputs_are_those_of_this_machine_unless_a_sample_says_otherwise(
    model: Path, device: DeviceSpec
) -> None:
    found = measure_file(model, device, profile=BRIEF, peak_memory=False)
    assert found.outputs.right is True
    assert [(one.name, one.max_abs_error) for one in found.outputs.outputs] == [("output", 0.0)]
    wrong = measure_file(model, device, profile=BRIEF, peak_memory=False, golden=golden(0.2))
    assert wrong.outputs.right is False
    assert wrong.outputs.outputs[0].cosine == pytest.approx(1.0)
    unasked = measure_file(model, device, profile=BRIEF, peak_memory=False, check_outputs=False)
    assert (unasked.outputs.right, unasked.outputs.note) == (None, "not asked for")


def test_inputs_of_the_user_reach_the_device(model: Path, device: DeviceSpec) -> None:
    zeros = {"input": np.full((1, 3, 8, 8), np.nan, dtype=np.float32)}
    found = measure_file(model, device, profile=BRIEF, peak_memory=False, inputs=zeros)
    assert "NOT_FINITE" in {verdict.code for verdict in found.measurement.verdicts}
    assert found.outputs.right is True  # NaN is what this machine gives, too


def test_phases_and_operators_come_from_passes_of_their_own(
    model: Path, device: DeviceSpec
) -> None:
    found = measure_file(model, device, profile=BRIEF, peak_memory=False, per_op=True)
    assert [phase.name for phase in found.inspection.phases] == ["set inputs", "run", "get outputs"]
    assert all(phase.median_ns > 0 and phase.runs >= 10 for phase in found.inspection.phases)
    operators = found.operators
    assert isinstance(operators, Operators)
    conv = next(row for row in operators.by_type if row.op == "Conv")
    assert conv.provider == "CPUExecutionProvider"
    assert sum(row.share for row in operators.rows) == pytest.approx(1.0)
    assert operators.n_operators == len(operators.rows)
    assert found.measurement.statistics is not None
    assert found.measurement.statistics.n_samples == 4  # neither pass is among the runs
    assert device.workdir is not None
    assert list((device.workdir / "run").glob("*")) == []


def test_a_provider_that_the_board_lacks_is_refused_with_those_that_it_has(
    model: Path, device: DeviceSpec
) -> None:
    with pytest.raises(HilnasError, match="CPUExecutionProvider"):
        measure_file(model, replace(device, provider="NoSuchProvider"), profile=BRIEF)


def test_a_provider_that_the_board_has_can_be_named(model: Path, device: DeviceSpec) -> None:
    spec = replace(device, provider="CPUExecutionProvider")
    found = measure_file(model, spec, profile=BRIEF, peak_memory=False, phases=False)
    assert found.measurement.runtime["provider"] == "CPUExecutionProvider"


def test_thread_counts_are_compared_in_one_session(model: Path, device: DeviceSpec) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core only")
    rows = sweep_file(model, device, (1, 2), profile=BRIEF)
    assert [row.label for row in rows] == ["1", "2"]
    assert all(row.statistics is not None for row in rows)
    with pytest.raises(UsageError, match="threads"):
        sweep_file(model, device, (1, len(cores) + 1), profile=BRIEF)


def test_a_model_of_a_newer_ir_is_explained_with_the_limit_and_the_way_around(
    model: Path, device: DeviceSpec
) -> None:
    proto = ModelProto.FromString(model.read_bytes())
    proto.ir_version = 99
    model.write_bytes(proto.SerializeToString())
    found = measure_file(model, device, profile=BRIEF)
    assert found.measurement.error is not None
    why = trouble(found.measurement.error, found.model, "board-a")
    assert re.fullmatch(
        r"net\.onnx has IR version 99, the runtime of board-a reads at most \d+", why.reason
    )
    assert why.hint is not None
    assert "hilnas devices bootstrap board-a" in why.hint
    assert found.outputs.right is None


def test_a_model_of_a_newer_opset_is_explained(model: Path, device: DeviceSpec) -> None:
    proto = ModelProto.FromString(model.read_bytes())
    proto.opset_import[0].version = 60
    model.write_bytes(proto.SerializeToString())
    found = measure_file(model, device, profile=BRIEF)
    assert found.measurement.error is not None
    assert found.measurement.error["code"] == "UNSUPPORTED_MODEL"
    why = trouble(found.measurement.error, found.model, "board-a")
    assert "has opset 60 of ai.onnx" in why.reason
    assert "version_converter" in str(why.hint)


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


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../w.bin", "sub/w.bin", "..", "sub/../../w.bin", ""]
)
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


@pytest.mark.parametrize("location", ["model.onnx", "a b.bin", "-x", "./w.bin"])
def test_names_that_a_device_would_not_take_are_refused_here(
    tmp_path: Path, make_external: Callable[[str], bytes], location: str
) -> None:
    (tmp_path / "net.onnx").write_bytes(make_external(location))
    with pytest.raises(MeasurementError, match="on a device it may have only"):
        read_model(tmp_path / "net.onnx")


def test_weights_inside_sparse_attributes_are_found(make_onnx: Callable[..., bytes]) -> None:
    proto = ModelProto.FromString(make_onnx())
    sparse = proto.graph.node[0].attribute.add(name="extra").sparse_tensor
    sparse.values.data_location = TensorProto.EXTERNAL
    sparse.values.external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(MeasurementError, match="only files beside the model"):
        external_locations(proto.SerializeToString())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"hello, this is text", "is not an ONNX model"),
        (b"\x08\x08", "has no operators"),
    ],
)
def test_files_that_are_no_models_are_refused_by_name(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(MeasurementError, match=rf"net\.onnx.*{problem}"):
        read_model(tmp_path / "net.onnx")


def test_a_file_too_large_for_a_model_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "net.onnx").open("wb") as stream:
        stream.truncate(3 << 30)  # sparse: takes no room
    with pytest.raises(MeasurementError, match="holds at most"):
        read_model(tmp_path / "net.onnx")


def test_bytes_that_are_no_model_are_refused() -> None:
    with pytest.raises(MeasurementError, match="not an ONNX model"):
        external_locations(b"\xff\xffnot a model")


def test_a_size_below_one_is_refused(model: Path, device: DeviceSpec) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        measure_file(model, device, shapes={"input": (0, 3, 8, 8)})
