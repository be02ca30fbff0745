"""hilnas as somebody at a desk runs it: in a folder of its own, in processes of its own."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.emulated_board.boot import EmulatedBoard

PATIENCE_S = 900.0


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    words: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float

    def __str__(self) -> str:
        return f"hilnas {' '.join(self.words)}: exit code {self.code}\n{self.out}\n{self.err}"

    @property
    def json(self) -> Any:
        """What it printed, read as JSON."""
        return json.loads(self.out)


class Desk:
    """A working folder whose user has no ssh configuration and keeps wheels in ``downloads``."""

    def __init__(self, folder: Path, downloads: Path) -> None:
        self.folder = folder
        downloads.mkdir(parents=True, exist_ok=True)
        (folder / "cache" / "hilnas").mkdir(parents=True)
        (folder / "cache" / "hilnas" / "bootstrap").symlink_to(downloads)

    def hilnas(self, *words: str) -> Said:
        """Run one command to its end."""
        own = {"HOME": self.folder, "NO_COLOR": "1", "COLUMNS": "150"}
        own |= {f"XDG_{kind.upper()}_HOME": self.folder / kind for kind in ("cache", "config")}
        own |= {"XDG_DATA_HOME": self.folder / "data"}
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", "from pipeline.cli.main import main; main()", *words],
            cwd=self.folder,
            env={**os.environ, **{name: str(value) for name, value in own.items()}},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return Said(words, done.returncode, done.stdout, done.stderr, time.monotonic() - start)

    def add(self, board: EmulatedBoard, name: str) -> Said:
        """``devices add`` by address, key and the fingerprint that was read on the board."""
        address = board.address
        assert address.user is not None
        return self.hilnas(
            *("devices", "add", name, "--host", address.host, "--port", str(board.port)),
            *("--user", address.user, "--key", str(address.key)),
            *("--fingerprint", fingerprint(board)),
        )


def fingerprint(board: EmulatedBoard) -> str:
    """The host key's, as ``ssh-keygen -l`` on the board prints it."""
    digest = hashlib.sha256(base64.b64decode(board.image.host_public_key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
