"""A user's home with boards in its devices.toml, which are real SSH servers on 127.0.0.1.

The boards' Python is that of the tests, so that onnxruntime is there.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from tests.e2e.conftest import Home
from tests.fakes.require import refuse
from tests.fakes.ssh_servers import Dropbear, OpenSsh

Server = OpenSsh | Dropbear

PATIENCE_S = 240.0

SMALL = (
    "train.epochs=1",
    "latency.samples=10",
    "latency.remeasure=2",
    "latency.accept=['signal']",
    "search.measure='all'",
    "search.population=8",
    "search.parents=3",
    "search.crossover=4",
    "search.mutation=4",
    "search.generations=1",
)
"""Settings of a run that measures 16 candidates and ends in seconds."""

ONE_GENERATION = (
    "search.population=16",
    "search.generations=0",
    "search.crossover=0",
    "search.mutation=0",
)
"""16 candidates that depend on the table alone, so that two searches ask for the same ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardHome(Home):
    """A working folder whose user has keys, settings and boards of his own."""

    devices: tuple[str, ...] = ("board",)
    limit: str = "latency_ms=1000"  # kept however busy the machine is

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a command that works here: nobody else's agent, keys or settings."""
        inherited = Home(path=self.path).environment
        inherited.pop("SSH_AUTH_SOCK", None)
        root = str(Path(__file__).parents[2])
        return {
            **inherited,
            "HOME": str(self.path / "home"),
            "XDG_CONFIG_HOME": str(self.path / "config"),
            "PYTHONPATH": f"{root}:{inherited.get('PYTHONPATH', '')}".rstrip(":"),
        }

    def write_devices(self, **entries: Mapping[str, Any]) -> None:
        """Write devices.toml of the project."""
        (self.path / "home" / ".ssh").mkdir(mode=0o700, parents=True, exist_ok=True)
        listed = [{"name": name, **entry} for name, entry in entries.items()]
        (self.path / "devices.toml").write_text(tomlkit.dumps({"device": listed}))

    def trust(self, server: Server, port: int | None = None) -> None:
        """Trust the server's host key, also where it is reached through ``port``."""
        file = self.path / "devices.known_hosts"
        line = server.known_hosts.read_text()
        if port is not None:
            line = line.replace(f":{server.port} ", f":{port} ")
        file.write_text((file.read_text() if file.exists() else "") + line)

    def words(self, *more: str, command: str = "run") -> list[str]:
        """A command about a small run on the boards, with more settings."""
        listed = ", ".join(f"{{name='{n}', limits={{{self.limit}}}}}" for n in self.devices)
        settings = (*SMALL, f"device=[{listed}]", *more)
        return [command, "digits", *(word for s in settings for word in ("--set", s))]

    def small_run(self, *more: str, code: int = 0, command: str = "run") -> str:
        """Do it to the end."""
        return self.hilnas(*self.words(*more, command=command), code=code)

    def copy_to(self, path: Path) -> BoardHome:
        """Everything that is here, so that a fault cannot spoil it for others."""
        shutil.copytree(self.path, path)
        return BoardHome(path=path, devices=self.devices, limit=self.limit)

    def file(self, name: str) -> Path:
        """A file of the run's folder."""
        return self.path / "runs" / "digits" / name

    def journalled(self) -> list[tuple[str, str, str]]:
        """Campaign, device and network of every line that a board finished."""
        path = self.file("boards.jsonl")
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        records = [json.loads(line)["record"] for line in lines]
        return [(r["campaign"], r["to"], r["measurement"]["net_id"]) for r in records]

    def searched(self) -> list[dict[str, Any]]:
        """What the search's journal says, line by line."""
        lines = self.file("search.jsonl").read_text().splitlines()
        return [json.loads(line)["record"] for line in lines]

    def assert_whole(self, n_candidates: int) -> None:
        """Every candidate was scored and measured, and nothing was done twice.

        Candidates that are the same network (an operator more or less that does nothing) share a
        measurement within their generation.
        """
        done, told = self.journalled(), self.searched()
        scores = [(r["generation"], r["index"]) for r in told if r["kind"] == "score"]
        found = [r for r in told if r["kind"] == "measurement" and r["phase"] == "search"]
        asked = [(r["device"], json.dumps(r["arch"], sort_keys=True)) for r in found]
        assert len(set(done)) == len(done), "measured twice"
        assert len(set(scores)) == len(scores) == n_candidates
        assert len(set(asked)) == len(asked) == n_candidates * len(self.devices)
        assert {r["estimate"]["source"] for r in found} == {"measured"}
        keys = {(r["device"], r["estimate"]["key"]) for r in found}
        assert len({(to, net) for _, to, net in done}) == len(keys)

    def table(self) -> set[tuple[str, str]]:
        """Key and session of everything in the live table."""
        file = self.path / "data/hilnas/tables.sqlite"
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            return set(connection.execute("SELECT key, run_id FROM latencies"))


def entry(server: Server, **more: Any) -> dict[str, Any]:
    """A device's entry for a server, as a person would write it."""
    return {
        "host": "127.0.0.1",
        "port": server.port,
        "user": server.user,
        "key": str(server.client_key),
        "workdir": server.workdir,
        "python": python_of(server),
        **more,
    }


def python_of(server: Server) -> str:
    """A Python on the board that has onnxruntime.

    Dropbear's sessions see an empty folder in place of the home. Where our interpreter lives there,
    the system's of the same version runs with our packages.
    """
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    packages = Path(sysconfig.get_paths()["platlib"]).resolve()
    hidden = Path(sys.executable).resolve().is_relative_to(home)
    if not hidden or not isinstance(server, Dropbear):
        return sys.executable
    name = "python{}.{}".format(*sys.version_info)
    program = shutil.which(name, path="/usr/local/bin:/usr/bin:/bin")
    if program is None or packages.is_relative_to(home):
        refuse("no Python with our packages outside of the home that Dropbear hides")
    script = server.folder / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec {program} "$@"\n')
    script.chmod(0o755)
    return str(script)


def wait_for(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    """Poll until ``reached``; fail where the process ends before."""
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        if process.poll() is not None:
            raise AssertionError(f"it ended with {process.returncode}: {process.communicate()}")
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.01)  # polling with a deadline


def is_idle(server: Server, within_s: float = 10.0) -> bool:
    """Whether no session and nothing that one started is left on a board."""
    deadline = time.monotonic() + within_s
    while server.session_pids():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)  # polling with a deadline
    return True
