"""Run as a program: train on synthetic batches and die by SIGKILL at a given moment.

usage: killed_run.py FOLDER SPACE MOMENT COUNT, where MOMENT is

    step        in the middle of step COUNT (counted from 0 over the whole run)
    tensors     while the tensors of the COUNT-th checkpoint of this process are written
    json        between the tensors and the JSON of the COUNT-th checkpoint of this process
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

from pipeline.strategies.spos import SPOS
from pipeline.training import checkpoint
from pipeline.training.step import Step, Update
from tests.pipeline.training.toys import toy_config, toy_space, toy_train


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DyingSPOS(SPOS):
    """Dies after the update of one step, before the step is counted."""

    def __init__(self, space: Any, at: int) -> None:
        super().__init__(space)
        self.at = at

    def updates(self, step: Step) -> Iterator[Update]:
        yield from super().updates(step)
        if step.index == self.at:
            die()


def die_at_write(name: str, count: int, *, half: bool) -> None:
    """Make the COUNT-th call of a writing function die, with half the data on the disk."""
    calls = iter(range(1, 1000))

    def write(path: Path, data: Any) -> None:
        if next(calls) == count:
            if half:
                path.with_name(f".{path.name}.x.part").write_bytes(data[: len(data) // 2])
            die()
        original(path, data)

    original = getattr(checkpoint, name)
    setattr(checkpoint, name, write)


def main(folder: str, space_name: str, moment: str, count: str) -> None:
    space = toy_space(space_name)
    at = int(count) if moment == "step" else -1
    if moment == "tensors":
        die_at_write("write_bytes", int(count), half=True)
    if moment == "json":
        die_at_write("write_json", int(count), half=False)
    toy_train(Path(folder), space=space, strategy=DyingSPOS(space, at), config=toy_config(steps=14))


if __name__ == "__main__":
    main(*sys.argv[1:])
