"""train.jsonl: one JSON line per log interval, in step with the checkpoints.

A line is appended when its interval ends. A resumed run first drops the lines beyond the step it
resumes from (and a half-written last one), so the file reads like that of an uninterrupted run.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latency_tables.errors import TrainingError
from latency_tables.files import write_text

if TYPE_CHECKING:
    from pipeline.training.board import Board


class TrainLog:
    """Appends to one file, and to one that TensorBoard reads where it is given."""

    def __init__(self, path: Path, board: Board | None = None) -> None:
        self.path, self.board = path, board

    def rewind(self, step: int) -> None:
        """Keep the whole lines up to ``step``."""
        if not self.path.exists():
            if self.board is not None:
                self.board.restart([])
            return
        kept, entries = [], []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                break  # the process was killed while writing it
            if not isinstance(entry, dict) or entry.get("step", step + 1) > step:
                break
            kept.append(line + "\n")
            entries.append(entry)
        write_text(self.path, "".join(kept))
        if self.board is not None:
            self.board.restart(entries)

    def append(self, entry: dict[str, Any]) -> None:
        """Add one line. Raises TrainingError where the disk is full."""
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry, allow_nan=False) + "\n")
        except OSError as error:
            raise TrainingError(
                f"{self.path} cannot be written: {error.strerror or error}",
                hint="free some disk space and start the same command again",
            ) from error
        if self.board is not None:
            self.board.add(entry)

    def close(self) -> None:
        """Finish what TensorBoard reads; the lines need no such thing."""
        if self.board is not None:
            self.board.close()

    def sync(self) -> None:
        """Make sure that the lines are on the disk; called before a checkpoint counts on them."""
        if self.path.exists():
            with self.path.open("rb") as stream:
                os.fsync(stream.fileno())
