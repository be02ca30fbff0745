"""Helpers for tests that look at agents as processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from device_agents.link.local import LocalTransport
from device_agents.link.session import Session
from device_agents.measuring.profiles import counted
from device_agents.measuring.reference import reference_model

WAIT_S = 10.0


def wait_until(what: Callable[[], bool], within_s: float = WAIT_S) -> bool:
    """Poll ``what`` until it holds; whether it did in time."""
    deadline = time.monotonic() + within_s
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def hangs(pid: int) -> bool:
    """Whether a child of the fake runtime arrived in its endless run."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == "hanging"
    except OSError:
        return False


def measure_request(workdir: Path, onnx: bytes, **changes: Any) -> dict[str, Any]:
    put = LocalTransport(workdir).put
    request = {
        "runtime": "fake",
        "threads": 1,
        "cores": [max(os.sched_getaffinity(0))],
        "spinning": False,
        "optimization": "all",
        "plan": counted(4, 1).board_plan(),
        "input_seed": 0,
        "seed": 0,
        "reference": {"blob": put(reference_model("tiny"))},
        "reference_every": 4,
        "start_timeout_s": 30,
        "net_timeout_s": 30,
        "nets": [{"name": "0", "blob": put(onnx)}],
    }
    return {**request, **changes}


def processes_in(workdir: Path) -> list[int]:
    """Living processes that name something below ``workdir`` on their command line."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                arguments = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if str(workdir).encode() in arguments and alive(int(folder.name)):
                found.append(int(folder.name))
    return found


def kill_agent(session: Session) -> None:
    """SIGKILL, which leaves it no time for anything."""
    client: Any = session._client
    os.kill(client.channel.pid, signal.SIGKILL)
