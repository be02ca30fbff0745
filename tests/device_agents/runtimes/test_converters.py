"""Converters run outside this process: they may be missing, crash, hang, print and lie."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto

from device_agents.board import runtime_rknn
from device_agents.runtimes import artefacts
from device_agents.runtimes.artefacts import board_options, prepare
from device_agents.runtimes.converters import pnnx, process
from device_agents.runtimes.converters.base import ConvertOptions, ports
from latency_tables.errors import BootstrapError, MeasurementError, UsageError
from latency_tables.weights_spec import WeightsSpec
from tests.device_agents.runtimes.nets import LOCATION, SHAPE, residual_net

Program = Callable[[str], Path]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """An executable shell script."""

    def make(text: str) -> Path:
        path = tmp_path / "program"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    return make


TOOLKIT = """
import os, sys, time, json
class RKNN:
    def __init__(self, verbose):
        print("I rknn-toolkit2 prints what it likes")
    def config(self, target_platform):
        self.target = target_platform
    def load_onnx(self, model):
        with open(model, "rb") as stream:
            self.model = stream.read()
    def build(self, do_quantization, dataset):
        {build}
        self.samples = open(dataset).read().split() if do_quantization else []
        return 0
    def export_rknn(self, path):
        with open(path, "w") as stream:
            json.dump([self.target, len(self.model), len(self.samples)], stream)
        return 0
    def release(self):
        pass
"""


@pytest.fixture
def toolkit(tmp_path: Path, program: Program) -> Callable[[str], Path]:
    """An interpreter that has a made-up rknn-toolkit2, whose build runs the given statement."""

    def make(build: str = "pass") -> Path:
        package = tmp_path / "fake" / "rknn"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "api.py").write_text(TOOLKIT.replace("{build}", build))
        return program(f'PYTHONPATH="{package.parent}" exec "{sys.executable}" "$@"')

    return make


# ---- what needs no conversion -------------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "of a plug-in"])
def test_runtimes_that_read_onnx_get_the_file_and_the_specification_of_weights(
    runtime: str,
) -> None:
    spec = WeightsSpec(seed=0, tensors=())
    found = prepare(runtime, b"onnx", {"w.bin": b"data"}, weights=spec)
    assert (found.main, found.files, found.weights) == (b"onnx", {"w.bin": b"data"}, spec)
    assert prepare(runtime, b"onnx").sha256 == artefacts.Artefact(main=b"onnx").sha256


def test_the_hash_of_an_artefact_covers_the_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"data")
    one = artefacts.Artefact(main=b"m", files={"w": b"data"})
    same = artefacts.Artefact(main=b"m", files={"w": tmp_path / "w"})
    other = artefacts.Artefact(main=b"m", files={"w": b"date"})
    assert one.sha256 == same.sha256
    assert len({one.sha256, other.sha256, artefacts.Artefact(main=b"m").sha256}) == 3


def test_options_are_split_between_host_and_board() -> None:
    options = {"rknn_python": "/opt/rknn/bin/python", "calib": "random", "core_mask": "0_1"}
    assert board_options(options) == {"core_mask": "0_1"}
    assert ConvertOptions.from_mapping(options).rknn_python == Path("/opt/rknn/bin/python")


@pytest.mark.parametrize("options", [{"timeout_s": 0}, {"timeout_s": True}, {"calib": 3}])
def test_options_of_the_wrong_kind_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="runtime option"):
        prepare("ncnn", b"", options=options)


def test_constants_among_the_inputs_are_not_fed() -> None:
    model = ModelProto.FromString(residual_net()[0])
    weight = model.graph.initializer[0]
    extra = model.graph.input.add()
    extra.CopyFrom(model.graph.input[0])
    extra.name = weight.name
    inputs, outputs, opset = ports(model.SerializeToString(), {})
    assert [(p.name, p.shape, p.kind) for p in inputs] == [("image", SHAPE, "float")]
    assert [p.name for p in outputs] == ["logits"]
    assert opset == 17


# ---- processes ----------------------------------------------------------------------------------


def test_a_program_that_hangs_is_killed_with_its_children(tmp_path: Path, program: Program) -> None:
    started = time.monotonic()
    done = process.run(
        [program("sleep 600 & echo $! > child; sleep 600")], folder=tmp_path, timeout_s=0.5
    )
    assert done.late
    assert "did not end in time" in done.problem()
    assert time.monotonic() - started < 30
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_crash_is_told_by_its_signal_with_the_end_of_the_log(
    tmp_path: Path, program: Program
) -> None:
    done = process.run(
        [program("echo last words >&2; kill -SEGV $$")], folder=tmp_path, timeout_s=9
    )
    assert done.problem() == "was ended by SIGSEGV: last words"


def test_programs_get_an_environment_of_their_own(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    done = process.run([program("env")], folder=tmp_path, timeout_s=9)
    names = {line.partition("=")[0] for line in done.output.splitlines()}
    assert "SECRET_TOKEN" not in names
    assert f"HOME={tmp_path}" in done.output


def test_programs_have_no_network_where_the_kernel_lets_us(
    tmp_path: Path, program: Program
) -> None:
    if not process.isolation():
        pytest.skip("unshare -n is not permitted here")
    done = process.run([program("cat /proc/net/dev")], folder=tmp_path, timeout_s=9)
    interfaces = [line.split(":")[0].strip() for line in done.output.splitlines() if ":" in line]
    assert interfaces == ["lo"]


# ---- pnnx ---------------------------------------------------------------------------------------


def test_a_missing_pnnx_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BootstrapError) as caught:
        prepare("ncnn", residual_net()[0])
    assert caught.value.hint == "pip install --no-deps pnnx"
    with pytest.raises(BootstrapError, match="/nowhere/pnnx is no file"):
        pnnx.find_pnnx(Path("/nowhere/pnnx"))


@pytest.mark.parametrize(
    ("script", "message", "blames"),
    [
        ("kill -SEGV $$", "ended by SIGSEGV", "candidate"),
        ("echo no such operator; exit 0", "wrote no network: no such operator", "candidate"),
        ("sleep 60", "did not end in time", "host"),
    ],
)
def test_a_failed_conversion_blames_the_network_unless_the_host_was_slow(
    program: Program, script: str, message: str, blames: str
) -> None:
    options = {"pnnx": program(script), "timeout_s": 1.0}
    with pytest.raises(MeasurementError, match=message) as caught:
        prepare("ncnn", residual_net()[0], options=options)
    assert caught.value.code == "CONVERT_FAILED"
    assert caught.value.blames == blames


def fake_pnnx(layers: str, script: str = "ncnn.Mat(in0.numpy()).clone() out0.numpy()") -> str:
    return (
        f"printf '7767517\\n1 1\\n{layers}\\n' > model.ncnn.param; : > model.ncnn.bin; "
        f"echo '{script}' > model_ncnn.py"
    )


def test_a_layer_that_ncnn_lacks_makes_the_network_unsupported(program: Program) -> None:
    options = {"pnnx": program(fake_pnnx("aten::einsum e 1 1 in0 out0"))}
    with pytest.raises(MeasurementError, match="no layer for aten::einsum") as caught:
        prepare("ncnn", residual_net()[0], options=options)
    assert caught.value.code == "UNSUPPORTED_MODEL"


def test_an_output_that_vanished_is_not_accepted(program: Program) -> None:
    options = {"pnnx": program(fake_pnnx("Noop n 1 1 in0 1"))}
    with pytest.raises(MeasurementError, match="dropped out0"):
        prepare("ncnn", residual_net()[0], options=options)


def test_a_layout_that_is_not_understood_is_not_guessed(program: Program) -> None:
    options = {"pnnx": program(fake_pnnx("Noop n 1 1 in0 out0", script="something new"))}
    with pytest.raises(MeasurementError, match="does not say how in0 is laid out"):
        prepare("ncnn", residual_net()[0], options=options)


# ---- rknn ---------------------------------------------------------------------------------------


def test_a_missing_interpreter_says_how_to_make_one() -> None:
    with pytest.raises(BootstrapError, match="rknn_python is not set") as caught:
        prepare("rknn", residual_net()[0])
    assert "pip install rknn-toolkit2" in str(caught.value.hint)


def test_an_interpreter_without_the_toolkit_is_told_from_a_bad_network() -> None:
    with pytest.raises(BootstrapError, match=r"cannot be imported: .*rknn"):
        prepare("rknn", residual_net()[0], options={"rknn_python": sys.executable})


def test_a_conversion_gives_file_names_and_notes(
    toolkit: Callable[[str], Path], tmp_path: Path
) -> None:
    model, _ = residual_net()
    options = {"rknn_python": toolkit("pass"), "target": "rk3576"}
    plain = prepare("rknn", model, options=options)
    assert isinstance(plain.main, bytes)
    assert json.loads(plain.main) == ["rk3576", len(model), 0]
    assert plain.notes[1:] == ("float16",)
    random = prepare("rknn", model, options={**options, "calib": "random"})
    assert isinstance(random.main, bytes)
    assert json.loads(random.main)[2] == 8
    assert random.notes[1] == "8 bits, random calibration; accuracy: not evaluated"
    (tmp_path / "model.rknn.json").write_bytes(bytes(random.files["model.rknn.json"]))  # type: ignore[arg-type]
    names = runtime_rknn.read_names(str(tmp_path / "model.onnx"))
    assert names["inputs"] == [{"name": "image", "shape": list(SHAPE), "type": "float"}]
    assert names["outputs"][0]["name"] == "logits"


def test_the_notes_say_how_much_of_the_network_is_planned_for_the_npu(
    toolkit: Callable[[str], Path],
) -> None:
    rows = ("ID OpType DataType Target FullName", "1 Conv INT8 NPU a", "2 Softmax INT8 CPU b")
    python = toolkit("; ".join(f"print('D RKNN: [1:2] {row}')" for row in rows))
    found = prepare("rknn", residual_net()[0], options={"rknn_python": python})
    assert found.notes[2] == "50% of 2 operators planned for the NPU; elsewhere: Softmax"


def test_real_samples_are_taken_from_a_folder(
    toolkit: Callable[[str], Path], tmp_path: Path
) -> None:
    samples = tmp_path / "samples"
    samples.mkdir()
    options = {"rknn_python": toolkit("pass"), "calib": str(samples)}
    with pytest.raises(UsageError, match=r"one \.npy file per sample"):
        prepare("rknn", residual_net()[0], options=options)
    for index in range(3):
        np.save(samples / f"{index}.npy", np.zeros(SHAPE, dtype=np.float32))
    made = prepare("rknn", residual_net()[0], options=options)
    assert isinstance(made.main, bytes)
    assert json.loads(made.main)[2] == 3


def test_candidates_get_their_weights_before_they_are_converted(
    toolkit: Callable[[str], Path],
) -> None:
    model, data = residual_net(external=True)
    python = toolkit(f"assert os.path.getsize('{LOCATION}') == {len(data)}")
    made = prepare("rknn", model, {LOCATION: data}, options={"rknn_python": python})
    assert made.weights is None


@pytest.mark.parametrize(
    ("build", "message", "blames"),
    [
        ("raise ValueError('unsupported op')", "failed in build: ValueError: unsupp", "candidate"),
        ("return -1", "failed in build: returned -1", "candidate"),
        ("os.abort()", "was ended by SIGABRT", "candidate"),
        ("time.sleep(60)", "did not end in time", "host"),
    ],
)
def test_what_goes_wrong_in_the_toolkit_is_one_networks_failure(
    toolkit: Callable[[str], Path], build: str, message: str, blames: str
) -> None:
    options = {"rknn_python": toolkit(build), "timeout_s": 3.0}
    with pytest.raises(MeasurementError, match=message) as caught:
        prepare("rknn", residual_net()[0], options=options)
    assert (caught.value.code, caught.value.blames) == ("CONVERT_FAILED", blames)


def test_an_opset_that_the_toolkit_cannot_read_is_refused_before_it_is_started(
    toolkit: Callable[[str], Path],
) -> None:
    model = ModelProto.FromString(residual_net()[0])
    model.opset_import[0].version = 21
    options = {"rknn_python": toolkit("os.abort()")}
    with pytest.raises(MeasurementError, match="opset 21; rknn-toolkit2 reads up to 19"):
        prepare("rknn", model.SerializeToString(), options=options)
