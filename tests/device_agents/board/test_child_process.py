"""The child of an agent: which folder it imports from, which tasks it knows, what it reports."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from device_agents.board.loading import use_site
from device_agents.board.profiling import MAX_OPERATORS, summarise, time_phases
from device_agents.board.runtime_onnxruntime import Session, _operators
from device_agents.board.supervise import Ending, Supervisor
from device_agents.board.system import Tree
from device_agents.devices import DeviceSpec
from device_agents.link.zipapp import pack, sources
from device_agents.measuring.measurer import DeviceMeasurer

EXTENSION = b"""
def child(task, emit):
    if task["fail"]:
        raise ValueError("a bug")
    emit("done", threads=task["threads"], site=__import__("os").environ["OMP_NUM_THREADS"])
"""


@pytest.fixture
def run_child(tmp_path: Path) -> Callable[..., tuple[Ending, list[tuple[str, Any]]]]:
    archive = tmp_path / "agent.zip"
    archive.write_bytes(pack({**sources(), "device_agents/board/extra_task.py": EXTENSION}))
    workdir = tmp_path / "work"
    workdir.mkdir()

    def run(**task: Any) -> tuple[Ending, list[tuple[str, Any]]]:
        heard: list[tuple[str, Any]] = []
        ending = Supervisor(str(archive), str(workdir), Tree("/")).run(
            task,
            lambda event, data: heard.append((event, data)),
            start_timeout_s=30,
            step_timeout_s=30,
        )
        return ending, heard

    return run


def test_a_module_of_the_agent_may_add_a_kind_of_task(run_child: Callable[..., Any]) -> None:
    ending, heard = run_child(kind="extra_task", fail=False, threads=3)
    assert ending.clean
    assert heard == [("done", {"threads": 3, "site": "3"})]


def test_a_bug_in_an_added_task_is_told_and_not_a_crash(run_child: Callable[..., Any]) -> None:
    ending, _ = run_child(kind="extra_task", fail=True, threads=1)
    assert ending.fatal == {"code": "DEVICE", "message": "ValueError: a bug"}


@pytest.mark.parametrize("kind", ["no_such_task", "frames", "../evil", "os.path", "", "A"])
def test_other_kinds_are_refused(run_child: Callable[..., Any], kind: str) -> None:
    ending, _ = run_child(kind=kind)
    assert ending.fatal is not None
    assert ending.fatal["code"] == "DEVICE"


def test_cores_that_do_not_exist_are_told(run_child: Callable[..., Any]) -> None:
    ending, _ = run_child(kind="extra_task", fail=False, cores=[4000], threads=1)
    assert ending.fatal is not None
    assert "cores [4000]" in ending.fatal["message"]


def test_an_installed_runtime_comes_before_that_of_the_board(device: DeviceSpec) -> None:
    assert device.workdir is not None
    package = device.workdir / "site" / "lock-1" / "onnxruntime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "__version__ = '9.9.9'\ndef get_available_providers(): return ['CPUExecutionProvider']\n"
    )
    (device.workdir / "site" / "current").write_text("lock-1\n")
    (runtime,) = DeviceMeasurer(device).probe()["runtimes"]
    assert runtime["version"] == "9.9.9"


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "", "absent", "..", "a/b"])
def test_a_site_outside_its_folder_or_absent_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(sys, "path", before := list(sys.path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "site" / "a" / "b").mkdir(parents=True)
    (tmp_path / "site" / "current").write_text(name)
    assert use_site(str(tmp_path)) == ""
    assert sys.path == before


def test_the_site_is_first_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "site" / "0123abc").mkdir(parents=True)
    (tmp_path / "site" / "current").write_text("0123abc")
    assert use_site(str(tmp_path)) == str(tmp_path / "site" / "0123abc") == sys.path[0]
    assert use_site(str(tmp_path / "none")) == ""


def test_many_operators_are_cut_and_the_rest_is_summed_up() -> None:
    calls = [
        {"name": f"n{i}", "op": "Conv" if i % 2 else "Add", "provider": "CPU", "ns": 1000 * (i + 1)}
        for i in range(MAX_OPERATORS + 10)
    ]
    found = summarise(calls)
    assert len(found["rows"]) == MAX_OPERATORS
    assert found["n_operators"] == MAX_OPERATORS + 10
    assert found["rows"][0]["name"] == f"n{MAX_OPERATORS + 9}"  # the slowest first
    assert found["rest_us"] == sum(range(1, 11))
    assert sum(row["calls"] for row in found["by_type"]) == MAX_OPERATORS + 10
    assert len(json.dumps(found)) < 1 << 19  # fits into a frame


def test_every_phase_is_timed_equally_often_and_in_order() -> None:
    seen: list[str] = []
    steps = [(name, lambda name=name: seen.append(name)) for name in ("in", "run", "out")]
    found = time_phases(steps)
    assert [(one["name"], one["runs"]) for one in found] == [
        (name, found[0]["runs"]) for name in ("in", "run", "out")
    ]
    assert seen[:6] == ["in", "run", "out"] * 2
    assert all(one["min_ns"] <= one["median_ns"] <= one["max_ns"] for one in found)


def test_the_first_call_of_each_operator_is_left_out_of_a_profile(tmp_path: Path) -> None:
    def event(name: str, us: int, category: str = "Node") -> str:
        about = {"op_name": "Conv", "provider": "CPUExecutionProvider"}
        return json.dumps({"cat": category, "name": name, "dur": us, "args": about})

    path = tmp_path / "trace.json"
    lines = [
        event("model_run", 90, "Session"),
        *(event("a_kernel_time", us) for us in (50, 4, 5)),
        event("a_fence_before", 1),
    ]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    assert [(call["name"], call["ns"]) for call in _operators(str(path))] == [
        ("a", 4000),
        ("a", 5000),
    ]


def test_a_provider_that_is_not_built_in_is_refused(
    tmp_path: Path, make_onnx: Callable[..., bytes]
) -> None:
    (tmp_path / "net.onnx").write_bytes(make_onnx())
    with pytest.raises(ValueError, match="no provider 'NoSuchProvider'; it has"):
        Session(
            str(tmp_path / "net.onnx"),
            threads=1,
            spinning=False,
            optimization="all",
            provider="NoSuchProvider",
        )
