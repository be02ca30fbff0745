"""Who measures on this board: an flock that the kernel frees on death and reboot."""

from __future__ import annotations

import fcntl
import json
import os
import time
from typing import Any


class Leased(Exception):
    """Somebody else holds the lease; ``holder`` is what they wrote about themselves."""

    def __init__(self, holder: dict[str, Any]) -> None:
        super().__init__("the board is leased")
        self.holder = holder


class Lease:
    """An exclusive lock on ``path``; the file's content says who holds it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._handle = -1

    def take(self, owner: str, boot_id: str) -> dict[str, Any]:
        """Take it now or raise Leased. Taking it twice renews the text."""
        if self._handle < 0:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                holder = _read(handle)
                os.close(handle)
                raise Leased(holder) from None
            self._handle = handle
        text = {
            "owner": owner[:200],
            "pid": os.getpid(),
            "boot_id": boot_id,
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, json.dumps(text).encode(), 0)
        return text

    def release(self) -> None:
        """Give it back; closing the file is what frees the lock."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _read(handle: int) -> dict[str, Any]:
    try:
        holder = json.loads(os.pread(handle, 4096, 0).decode())
    except ValueError:
        return {}  # taken this instant, the holder has not signed yet
    return holder if isinstance(holder, dict) else {}
