"""One search by several processes of torchrun: the same result, and nothing lost with a process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.search.journal import read_journal
from tests.e2e.conftest import SMALL, Home

pytestmark = pytest.mark.long

PATIENCE_S = 400
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "pipeline")


def start(home: Home, *arguments: str, ranks: int = 1) -> subprocess.Popen[str]:
    """A command in a session of its own, by one process or under torchrun."""
    launcher = TORCHRUN if ranks > 1 else ("-m", "pipeline")
    own = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, *launcher, *arguments],
        cwd=home.path,
        env={**home.environment, **own, "PYTHONPATH": root},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    return out + err


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Where two ranks have trained and searched, in one command."""
    found = Home(path=tmp_path_factory.mktemp("ranks"))
    settings = [word for s in (*SMALL, "train.epochs=2") for word in ("--set", s)]
    said = finish(start(found, "run", "digits", "--out", "run", *settings, ranks=2))
    assert "(fp32, 2 processes)" in " ".join(said.split())
    assert said.count("searching under the limits") == 1
    assert (found.path / "run/subnet.onnx").exists()
    return found


def searched(home: Home, name: str, *settings: str, ranks: int) -> Path:
    """Search once more in a copy of the run; gives the copy."""
    copy = home.path / name
    shutil.copytree(home.path / "run", copy)
    words = [word for s in settings for word in ("--set", s)]
    finish(start(home, "search", name, *words, ranks=ranks))
    return copy


@pytest.mark.parametrize("halving", [None, 3])
def test_two_processes_end_with_the_archive_of_one(home: Home, halving: int | None) -> None:
    settings = ["search.images=90", *([] if halving is None else [f"search.halving={halving}"])]
    one, two = (
        searched(home, f"run-{halving}-{ranks}", *settings, ranks=ranks) for ranks in (1, 2)
    )
    journals = [read_journal(folder / "search.jsonl") for folder in (one, two)]
    assert sum(map(len, journals[0].scores)) == 48
    assert journals[0].generations == journals[1].generations
    assert journals[0].scores == journals[1].scores
    assert journals[0].rungs == journals[1].rungs
    assert bool(journals[0].rungs) == (halving is not None)


def rank_of(launcher: int, rank: int) -> int | None:
    """The child of a torchrun process that was told that it is this rank."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            environ = (entry / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue  # it has just ended
        if parent == launcher and f"RANK={rank}".encode() in environ:
            return int(entry.name)
    return None


def wait_for(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the moment to kill never came"
        time.sleep(0.005)  # polling with a deadline


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds ranks in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_search_and_the_same_command_goes_on(home: Home, rank: int) -> None:
    settings = ("search.images=91", "search.generations=6")
    words = [word for s in settings for word in ("--set", s)]
    name = f"killed-{rank}"
    shutil.copytree(home.path / "run", home.path / name)
    journal = home.path / name / "search.jsonl"
    before = journal.read_bytes()

    def in_the_middle() -> bool:
        data = journal.read_bytes() if journal.exists() else before
        return data != before and data.count(b'"kind":"score"') >= 10

    process = start(home, "search", name, *words, ranks=2)
    try:
        wait_for(in_the_middle, process)
        found = rank_of(process.pid, rank)
        assert found is not None
        os.kill(found, signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)
    finally:
        if process.poll() is None:
            process.terminate()  # torchrun ends its processes
            process.communicate()
    assert process.returncode != 0
    kept = read_journal(journal)
    n_kept = sum(map(len, kept.scores))
    assert 10 <= n_kept < 112

    finish(start(home, "search", name, *words, ranks=2))
    ended = read_journal(journal)
    assert ended.scores[: len(kept.scores) - 1] == kept.scores[:-1]
    whole = home.path / "whole"
    if not whole.exists():
        searched(home, "whole", *settings, ranks=1)
    expected = read_journal(whole / "search.jsonl")
    assert ended.scores == expected.scores
    assert ended.generations == expected.generations
