"""A search that shifts its supernet, killed by SIGKILL again and again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("shifted_run.py")
MOMENTS = [("learn", 2), ("save", 1), ("saved", 1), ("score", 5), ("score", 6)]


def run(folder: Path, mode: str, moment: str = "never", count: int = 0) -> int:
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), str(folder), mode, moment, str(count)]
    return subprocess.run(command, env=environment, timeout=300).returncode


@pytest.mark.long
@pytest.mark.parametrize("mode", ["accumulate", "immediate"])
def test_a_search_killed_again_and_again_ends_with_the_same_bytes(
    tmp_path: Path, mode: str
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(whole, mode) == 0
    for moment, count in MOMENTS:
        assert run(killed, mode, moment, count) == -signal.SIGKILL
    assert run(killed, mode) == 0
    for name in ("search.jsonl", "shifted.safetensors", "shifting.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
