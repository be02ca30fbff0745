"""Runs of the whole job in processes of their own, outside the repository."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.board_home import BoardHome
    from tests.fakes.ssh_servers import OpenSsh

SMALL = (
    "train.epochs=12",
    "train.checkpoint.steps=20",
    "latency.samples=16",
    "latency.remeasure=3",
    "search.population=16",
    "search.parents=4",
    "search.crossover=8",
    "search.mutation=8",
    "search.generations=2",
)
"""Settings that finish in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """A working folder with tables and caches of its own."""

    path: Path

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a command that works here."""
        own = {
            "XDG_DATA_HOME": str(self.path / "data"),
            "XDG_CACHE_HOME": str(self.path / "cache"),
            "NO_COLOR": "1",
            "COLUMNS": "120",
        }
        return {**os.environ, **own}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start hilnas in a session of its own, so that it can be killed whole."""
        return subprocess.Popen(
            [sys.executable, "-c", "from pipeline.cli.main import main; main()", *arguments],
            cwd=self.path,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def hilnas(self, *arguments: str, code: int = 0) -> str:
        """Run a command to its end; gives stdout, fails on another exit code."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=600)
        assert process.returncode == code, f"{arguments}: {process.returncode}\n{out}\n{err}"
        return out if code == 0 else out + err

    def small_run(self, *more: str, code: int = 0) -> str:
        """``hilnas run digits`` with small settings."""
        overrides = [word for setting in (*SMALL, *more) for word in ("--set", setting)]
        return self.hilnas("run", "digits", *overrides, code=code)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An empty home."""
    return Home(path=tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home in which the README's first command has been run, as written.

    Of several processes that share the tests the first one runs it, and the others copy.
    """
    home = Home(path=tmp_path_factory.mktemp("readme") / "home")
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if session is None:
        home.path.mkdir()
        home.hilnas("run", "digits")
        return home
    whole = tmp_path_factory.getbasetemp().parent / f"first-command-{session}"
    with open(f"{whole}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if not whole.exists():
            whole.mkdir()
            Home(path=whole).hilnas("run", "digits")
    shutil.copytree(whole, home.path)
    return home


@pytest.fixture(scope="session")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSsh]:
    """A board that tests leave as it is."""
    from tests.fakes.ssh_servers import OpenSsh

    with OpenSsh(tmp_path_factory.mktemp("board")) as server:
        yield server


@pytest.fixture(scope="session")
def trained_on_board(tmp_path_factory: pytest.TempPathFactory, board: OpenSsh) -> BoardHome:
    """A run up to its trained supernet, its table measured on the board; to be copied."""
    from tests.e2e.board_home import BoardHome, entry, is_idle

    home = BoardHome(path=tmp_path_factory.mktemp("trained"))
    home.write_devices(board=entry(board))
    home.trust(board)
    home.small_run(command="train")
    assert is_idle(board), "processes were left on the board"
    return home


@pytest.fixture(scope="session")
def finished_on_board(
    trained_on_board: BoardHome, board: OpenSsh, tmp_path_factory: pytest.TempPathFactory
) -> BoardHome:
    """The whole run of one generation, undisturbed."""
    from tests.e2e.board_home import ONE_GENERATION, is_idle

    home = trained_on_board.copy_to(tmp_path_factory.mktemp("finished") / "home")
    home.small_run(*ONE_GENERATION)
    assert is_idle(board), "processes were left on the board"
    return home
