"""A board that is this machine, and packages small enough to make in a test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from device_agents.bootstrap import Installed, bootstrap
from device_agents.devices import DeviceSpec
from device_agents.link.local import LocalTransport
from tests.device_agents.bootstrap.boards import make_runtime


@pytest.fixture
def board(tmp_path: Path) -> LocalTransport:
    transport = LocalTransport(tmp_path / "agent")
    transport.open()
    return transport


@pytest.fixture
def wheelhouse(tmp_path: Path) -> Path:
    return make_runtime(tmp_path / "wheelhouse")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ship no locks: hand-made wheels bear the versions of real ones."""
    monkeypatch.setattr("device_agents.bootstrap.lock.shipped_locks", lambda: ())


@pytest.fixture
def install(board: LocalTransport, cache: Path) -> Callable[..., Installed]:
    """Bootstrap the board from a wheelhouse."""
    spec = DeviceSpec(name="board", python=sys.executable)

    def run(wheelhouse: Path | None, transport: Any = board, **more: Any) -> Installed:
        return bootstrap(transport, spec, wheelhouse=wheelhouse, cache=cache, **more)

    return run
