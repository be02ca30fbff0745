"""RKNN through ctypes, against a C library with the same symbols. No NPU is involved."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_agents.board import rknn_api, runtime_rknn
from device_agents.board.rknn_detail import npu_share, parse_detail

Install = Callable[..., Path]
SHAPE = (1, 3, 4, 5)


def image() -> np.ndarray[Any, Any]:
    return np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE) / 7


@pytest.mark.parametrize("attr_bytes", [372, 376])
@pytest.mark.parametrize("exact", [0, 1])
@pytest.mark.parametrize("mem_bytes", [8, 64])
def test_both_sizes_of_a_tensor_description_work_with_strict_and_lenient_libraries(
    install_stub: Install,
    make_rknn: Install,
    open_session: Callable[..., Any],
    attr_bytes: int,
    exact: int,
    mem_bytes: int,
) -> None:
    install_stub(ATTR_BYTES=attr_bytes, EXACT=exact, MEM_BYTES=mem_bytes)
    session = open_session(runtime_rknn, make_rknn())
    assert session.inputs == [("input", list(SHAPE), "float")]
    call = session.prepare({"input": image()})
    [output] = call()
    np.testing.assert_allclose(output, 2 * image() - 0.5, rtol=1e-6)
    found = session.evidence()
    assert found["attr_bytes"] == (attr_bytes if exact else 376)
    assert found["memory"]["weight_bytes"] == 1000
    assert found["memory"]["dma_bytes"] == (3000 if mem_bytes == 64 else 0)


def test_a_later_release_with_a_larger_strict_description_is_found(
    install_stub: Install, make_rknn: Install, open_session: Callable[..., Any]
) -> None:
    install_stub(ATTR_BYTES=376, EXACT=1)
    sizes = list(rknn_api._sizes((376, 372)))
    assert sizes[:3] == [376, 372, 1024]
    assert {380, 400, 512} < set(sizes)
    assert len(sizes) == len(set(sizes))


def test_each_frame_is_set_anew(
    install_stub: Install, make_rknn: Install, open_session: Callable[..., Any]
) -> None:
    install_stub()
    session = open_session(runtime_rknn, make_rknn(a=3.0, b=0.0))
    first = session.prepare({"input": image()})
    second = session.prepare({"input": image() + 1})
    np.testing.assert_allclose(first()[0], 3 * image(), rtol=1e-6)
    np.testing.assert_allclose(second()[0], 3 * (image() + 1), rtol=1e-6)
    np.testing.assert_allclose(first()[0], 3 * image(), rtol=1e-6)


def test_the_four_times_are_kept_apart(
    install_stub: Install, make_rknn: Install, open_session: Callable[..., Any]
) -> None:
    install_stub()
    session = open_session(runtime_rknn, make_rknn(base_us=1000, jitter_us=100))
    session.prepare({"input": image()})()
    found = session.evidence()
    times = found["times"]
    assert found["headline"] == "call_wall_us"
    assert times["device_run_us"] == {"median": 1200, "min": 1000, "max": 1400}
    assert sorted(set(found["npu_ns"])) == [1e6, 1.1e6, 1.2e6, 1.3e6, 1.4e6]
    assert len(found["npu_ns"]) == len(found["run_ns"]) == found["n_frames"]
    assert 0 < times["run_wall_us"]["median"] < times["call_wall_us"]["median"] < 1000
    assert found["versions"] == ("9.8.7 (stub)", "0.9.1")


def test_layers_come_from_a_pass_of_their_own(
    install_stub: Install, make_rknn: Install, open_session: Callable[..., Any]
) -> None:
    install_stub()
    session = open_session(runtime_rknn, make_rknn())
    session.prepare({"input": image()})()
    rows = session.profile({"input": image()})
    # the time of Mul counts frames: 91, 92 and 90 µs in a context of three frames
    assert [(r["name"], r["op"], r["ns"], r["provider"]) for r in rows[1:3]] == [
        ("Mul:scale", "Mul", 91_000, "NPU"),
        ("Add:shift", "Add", 30_000, "CPU"),
    ]
    share = session.evidence()["npu_share"]
    assert (share["by_count"], share["n_operators"], share["elsewhere"]) == (0.5, 2, ["Add"])
    assert share["by_time"] == pytest.approx(91 / 121)
    assert share["edges_ns"] == 6000


def test_the_timed_context_does_not_collect_layers(
    install_stub: Install, make_rknn: Install, open_session: Callable[..., Any]
) -> None:
    install_stub()
    session = open_session(runtime_rknn, make_rknn(), options={"detail": False})
    session.prepare({"input": image()})()
    assert session._context.detail() == ""
    assert "npu_share" not in session.evidence()


def test_a_sweep_tries_every_mask_and_tells_the_one_that_fails(
    install_stub: Install, make_rknn: Install, open_session: Callable[..., Any]
) -> None:
    install_stub()
    session = open_session(runtime_rknn, make_rknn(failing_mask=4), options={"sweep": True})
    session.prepare({"input": image()})()
    found = session.evidence()["core_masks"]
    assert list(found) == ["auto", "0", "1", "2", "0_1", "0_1_2", "all"]
    assert {name for name, times in found.items() if "error" in times} == {"2"}
    assert "rknn_run returned -1" in found["2"]["error"]
    session.prepare({"input": image()})()  # back on the mask that works


def test_a_run_on_a_dead_core_is_an_error_of_that_call(
    install_stub: Install, make_rknn: Install, open_session: Callable[..., Any]
) -> None:
    install_stub()
    session = open_session(runtime_rknn, make_rknn(failing_mask=2), options={"core_mask": "1"})
    with pytest.raises(rknn_api.RknnError, match="rknn_run returned -1"):
        session.prepare({"input": image()})()


def test_a_chip_with_one_core_needs_no_mask_but_refuses_one_that_is_asked_for(
    install_stub: Install, make_rknn: Install, open_session: Callable[..., Any]
) -> None:
    install_stub(N_CORES=1)
    assert open_session(runtime_rknn, make_rknn()).core_mask == "none"
    with pytest.raises(rknn_api.RknnError, match="rknn_set_core_mask"):
        open_session(runtime_rknn, make_rknn(), options={"core_mask": "0"})


def test_a_model_of_a_newer_toolkit_is_refused_with_the_remedy(
    install_stub: Install, make_rknn: Install, open_session: Callable[..., Any]
) -> None:
    folder = install_stub()
    path = make_rknn(version=6)
    names = {"toolkit": "2.5.0", "inputs": [], "outputs": []}
    (path.parent / "model.rknn.json").write_text(json.dumps(names))
    with pytest.raises(RuntimeError) as caught:
        open_session(runtime_rknn, path)
    message = str(caught.value)
    assert "Invalid RKNN model version 6" in message
    assert "install the library of the toolkit's release" in message
    assert "rknn-toolkit2 2.5.0" in message
    assert str(folder) in message


def test_what_native_code_prints_while_loading_does_not_reach_the_protocol(
    install_stub: Install,
    make_rknn: Install,
    open_session: Callable[..., Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    install_stub()
    with pytest.raises(rknn_api.RknnError):
        open_session(runtime_rknn, make_rknn(version=6))
    os.write(1, b"after\n")
    assert capfd.readouterr().out == "after\n"


def test_the_names_of_the_onnx_file_win_over_those_of_the_toolkit(
    install_stub: Install, make_rknn: Install, open_session: Callable[..., Any]
) -> None:
    install_stub()
    path = make_rknn()
    assert open_session(runtime_rknn, path).output_names == ["output-rs"]
    names = {"inputs": [{"name": "x"}], "outputs": [{"name": "y"}]}
    (path.parent / "model.rknn.json").write_text(json.dumps(names))
    session = open_session(runtime_rknn, path)
    assert [name for name, _, _ in session.inputs] == ["x"]
    assert session.output_names == ["y"]


def test_the_library_is_described_by_path_hash_and_versions(
    install_stub: Install, tmp_path: Path
) -> None:
    folder = install_stub()
    found = runtime_rknn.describe()
    path = folder / "librknnrt.so"
    assert found["name"] == "rknn"
    assert found["version"] == "9.8.7"
    assert found["library"]["path"] == str(path)
    assert found["library"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "version").write_text("RKNPU driver: v0.9.2\n")
    assert rknn_api.driver_version([str(tmp_path / "version")]) == "0.9.2"
    assert rknn_api.driver_version([str(tmp_path / "none")]) == ""


def test_a_second_library_on_the_board_is_told(install_stub: Install) -> None:
    install_stub(N_CORES=1)
    second = install_stub()
    found = runtime_rknn.describe()
    assert found["library"]["path"] == str(second / "librknnrt.so")
    assert len(found["other_libraries"]) == 1


def test_a_missing_library_is_an_import_error_that_says_where_was_looked() -> None:
    if rknn_api.find_libraries():
        pytest.skip("this machine has a librknnrt.so")
    with pytest.raises(ImportError, match=r"librknnrt\.so in /usr/lib, .*rknnlite"):
        runtime_rknn.describe()


def test_a_file_that_is_no_library_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "librknnrt.so").write_bytes(b"not an ELF file")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(rknn_api, "FOLDERS", ())
    with pytest.raises(ImportError, match=r"invalid ELF header|file too short"):
        runtime_rknn.describe()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"core_mask": "5"}, "core mask '5'; allowed: auto, 0, 1"),
        ({"cores": "0"}, "option 'cores' does not exist; allowed: api, core_mask"),
        ({"api": "grpc"}, "api 'grpc'; allowed"),
    ],
)
def test_wrong_options_name_those_that_exist(
    make_rknn: Install, open_session: Callable[..., Any], options: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        open_session(runtime_rknn, make_rknn(), options=options)


def test_lite2_is_used_where_no_library_can_be_loaded(
    make_rknn: Install, open_session: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    class Lite:
        def load_rknn(self, path: str) -> int:
            calls.append(("load", Path(path).name))
            return 0

        def init_runtime(self, core_mask: int) -> int:
            calls.append(("init", core_mask))
            return 0

        def inference(self, inputs: list[Any], data_format: list[Any]) -> list[Any]:
            calls.append(("run", data_format))
            return [inputs[0] * 2]

    module = types.ModuleType("rknnlite.api")
    module.RKNNLite = Lite  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rknnlite", types.ModuleType("rknnlite"))
    monkeypatch.setitem(sys.modules, "rknnlite.api", module)
    path = make_rknn()
    entry = {"name": "x", "shape": list(SHAPE), "type": "float"}
    (path.parent / "model.rknn.json").write_text(
        json.dumps({"inputs": [entry], "outputs": [{"name": "y"}]})
    )
    session = open_session(runtime_rknn, path, options={"api": "lite", "core_mask": "0_1"})
    np.testing.assert_array_equal(session.prepare({"x": image()})()[0], image() * 2)
    assert calls == [("load", "model.onnx"), ("init", 3), ("run", ["nchw"])]
    assert session.evidence()["api"] == "lite2"


def test_a_table_with_separate_columns_of_cycles_is_read() -> None:
    text = (
        "ID   OpType  DataType Target InputShape  OutputShape DDR Cycles  NPU Cycles  Total Cycles"
        "  Time(us)  MacUsage(%)  RW(KB)  FullName\n"
        "1  InputOperator UINT8 CPU \\ (1,3,8,8) 0 0 0 7 \\ 147.00 InputOperator:data\n"
        "2  ConvRelu UINT8 NPU (1,3,8,8),(32,3,3,3),(32) (1,32,8,8) 9 10 94 428 2.4 543 c1\n"
        "Total Operator Elapsed Time(us): 435\n"
        "Operator Time-Consuming Ranking:\n"
        "OpType  CallNumber CPUTime(us) NPUTime(us) TotalTime(us)\n"
        "ConvRelu 1 0 428 428\n"
    )
    rows = parse_detail(text)
    assert [(r["op"], r["name"], r["ns"]) for r in rows] == [
        ("InputOperator", "InputOperator:data", 7_000),
        ("ConvRelu", "c1", 428_000),
    ]
    assert npu_share(rows)["by_time"] == 1.0


def test_a_table_without_times_still_tells_where_operators_run() -> None:
    text = (
        "D RKNN: [10:00:00.000] ID OpType DataType Target InputShape OutputShape "
        "Cycles(DDR/NPU/Total) RW(KB) FullName\n"
        "D RKNN: [10:00:00.000] 0 InputOperator FLOAT16 CPU \\ (1,3,8,8) 0/0/0 0 InputOperator:x\n"
        "D RKNN: [10:00:00.000] 1 Conv FLOAT16 NPU (1,3,8,8),(8,3,3,3) (1,8,8,8) 1/2/2 1 Conv:a\n"
        "D RKNN: [10:00:00.000] 2 Reshape FLOAT16 CPU (1,8,8,8),(2) (1,512) 0/0/0 0 Reshape:b\n"
    )
    share = npu_share(parse_detail(text))
    assert (share["by_count"], share["by_time"], share["elsewhere"]) == (0.5, None, ["Reshape"])


def test_text_without_a_table_gives_no_shares() -> None:
    assert parse_detail("nothing here\n1 Conv INT8 NPU 3\n") == []
    assert npu_share([])["by_count"] is None


def test_the_steps_of_a_frame_keep_their_inputs_alive(
    install_stub: Install, make_rknn: Install, open_session: Callable[..., Any]
) -> None:
    install_stub()
    session = open_session(runtime_rknn, make_rknn())
    phases = session.phases({"input": image()})
    assert [name for name, _ in phases] == ["set inputs", "run", "get outputs"]
    held = [np.full(SHAPE, np.nan, dtype=np.float32) for _ in range(50)]  # where freed ones were
    for _, step in phases:
        step()
    [output] = session.prepare({"input": image()})()
    assert np.isfinite(output).all()
    assert len(held) == 50
