"""The numbers of train.jsonl for TensorBoard: one scalar per number and line, nothing else.

The event file is written anew from the lines that are kept whenever a run starts or goes on, so it
never holds a step twice, however often the run was killed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latency_tables.errors import UsageError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

BOARD_FOLDER = "tensorboard"


class Board:
    """Writes one event file below ``folder``.

    Raises:
        UsageError: the package ``tensorboard`` is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError(
                f"tensorboard = true needs the package tensorboard ({error})",
                hint="pip install 'hilnas[tensorboard]', or train.tensorboard = false",
            ) from error
        self.folder = folder
        self._make = SummaryWriter
        self._writer: SummaryWriter | None = None

    def restart(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Begin a new file with these lines, in place of what is there."""
        self.close()
        for path in self.folder.glob("events.out.tfevents.*"):
            path.unlink()
        self._writer = self._make(str(self.folder))
        for entry in entries:
            self.add(entry)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add the numbers of one line, at its ``step``."""
        if self._writer is None:
            self.restart([])
        for name, value in entry.items():
            if name != "step" and isinstance(value, int | float) and self._writer is not None:
                self._writer.add_scalar(name, value, entry["step"])

    def close(self) -> None:
        """Write what is left, and end the thread that writes."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def open_board(folder: Path) -> Board:
    """The board of a run folder. Raises UsageError; see :class:`Board`."""
    return Board(folder / BOARD_FOLDER)
