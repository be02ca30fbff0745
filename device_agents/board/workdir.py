"""The agent's folder on the board: ``blobs/<sha256>``, ``run/`` (scratch) and ``lease``."""

from __future__ import annotations

import os
import shutil
from typing import Any, Dict, List


def make(workdir: str) -> None:
    """Create the folders, readable by their owner only. Raises OSError."""
    for folder in (workdir, os.path.join(workdir, "blobs"), os.path.join(workdir, "run")):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if os.path.islink(folder):
            raise OSError("{} is a symbolic link".format(folder))


def leftovers(workdir: str, archive: str) -> List[Dict[str, Any]]:
    """Children of earlier agents that still run, and scratch that they left (removed here).

    Called by the holder of the lease: whatever else works in this folder is an orphan. It is
    reported and not killed.
    """
    found = []
    mine = os.getpid()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == mine:
            continue
        try:
            with open("/proc/{}/cmdline".format(name), "rb") as stream:
                arguments = stream.read().split(b"\0")
        except OSError:
            continue
        blobs = os.path.join(workdir, "blobs").encode()
        if b"--child" in arguments and any(part.startswith(blobs) for part in arguments):
            found.append({"pid": int(name), "what": "child of an earlier agent"})
    if not found:
        shutil.rmtree(os.path.join(workdir, "run"), ignore_errors=True)
    return found


def trim(workdir: str, quota_bytes: int, keep: str) -> None:
    """Remove the blobs unused for longest until the rest fits ``quota_bytes``."""
    folder = os.path.join(workdir, "blobs")
    entries = []
    for entry in os.scandir(folder):
        status = entry.stat(follow_symlinks=False)
        entries.append((status.st_mtime, status.st_size, entry.path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= quota_bytes:
            break
        if os.path.abspath(path) != os.path.abspath(keep):
            os.unlink(path)
            total -= size
