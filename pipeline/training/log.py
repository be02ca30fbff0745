"""train.jsonl: one JSON line per log interval, in step with the checkpoints.

A line is appended when its interval ends. A resumed run first drops the lines beyond the step it
resumes from (and a half-written last one), so the file reads like that of an uninterrupted run.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from latency_tables.errors import TrainingError
from latency_tables.files import write_text


class TrainLog:
    """Appends to one file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> None:
        """Keep the whole lines up to ``step``."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                break  # the process was killed while writing it
            if not isinstance(entry, dict) or entry.get("step", step + 1) > step:
                break
            kept.append(line + "\n")
        write_text(self.path, "".join(kept))

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

    def sync(self) -> None:
        """Make sure that the lines are on the disk; called before a checkpoint counts on them."""
        if self.path.exists():
            with self.path.open("rb") as stream:
                os.fsync(stream.fileno())
