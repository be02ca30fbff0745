"""With the real packages, from the network: run by hand."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from device_agents.bootstrap import bootstrap
from device_agents.bootstrap.choose import choose
from device_agents.bootstrap.lock import find_lock
from device_agents.bootstrap.target import Target
from device_agents.bootstrap.wheels import download
from device_agents.devices import DeviceSpec
from device_agents.link.local import LocalTransport

pytestmark = pytest.mark.long


def test_two_runtimes_run_side_by_side_on_this_machine(board: LocalTransport, cache: Path) -> None:
    spec = DeviceSpec(name="board", python=sys.executable)
    first = bootstrap(board, spec, cache=cache)
    assert first.imported["onnxruntime"] == first.packages["onnxruntime"]
    both = bootstrap(board, spec, runtime="ncnn", cache=cache)
    assert set(both.imported) == {"numpy", "onnxruntime", "ncnn"}
    assert not bootstrap(board, spec, cache=cache).fresh


@pytest.mark.parametrize(("abi", "glibc"), [("cp38", 31), ("cp311", 36)])
def test_the_wheels_of_an_arm_board_are_those_of_the_shipped_lock(
    tmp_path: Path, cache: Path, abi: str, glibc: int
) -> None:
    target = Target(python=(3, 11), abi=abi, libc=("glibc", (2, glibc)), machine="aarch64")
    plan = choose(replace(target, python=(3, int(abi[3:]))), "onnxruntime")
    lock = find_lock(cache, plan)
    assert lock is not None
    found = download(plan, lock, tmp_path / "wheels", print)
    assert tuple(wheel.locked for wheel in found) == lock.wheels
