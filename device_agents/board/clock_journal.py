"""The file on the board that says which clocks were changed: ``<workdir>/restore.json``.

It lies in the work folder, which survives a crash of the agent, and names the boot that it
belongs to. It is written whole (temporary name, fsync, rename) and read as hostile data.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any, Dict, Optional

VERSION = 1
MAX_BYTES = 1 << 20

Json = Dict[str, Any]


def path(workdir: str) -> str:
    """Where the journal lies."""
    return os.path.join(workdir, "restore.json")


def load(workdir: str) -> Optional[Json]:
    """The journal: ``boot_id``, ``power`` and ``nodes`` (name → old value); None without one.

    A damaged file counts as none: it was damaged by somebody else, for writes here are whole.
    """
    try:
        # O_NOFOLLOW: a link in its place would make us read what somebody else chose
        handle = os.open(path(workdir), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as stream:
            found = json.loads(stream.read(MAX_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("v") != VERSION:
        return None
    nodes = found.get("nodes")
    if not isinstance(nodes, dict) or not isinstance(found.get("boot_id"), str):
        return None
    if not all(isinstance(value, str) for value in nodes.values()):
        return None
    power = found.get("power")
    return {
        "boot_id": found["boot_id"],
        "power": power if power in ("direct", "sudo") else "direct",
        "nodes": nodes,
    }


def save(workdir: str, journal: Json) -> None:
    """Replace the journal and wait for the disk. Raises OSError."""
    partial = path(workdir) + ".part"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(partial)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(partial, flags, 0o600), "wb") as stream:
        stream.write(json.dumps(dict(journal, v=VERSION), indent=1).encode())
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(partial, path(workdir))
    _sync(workdir)


def remove(workdir: str) -> None:
    """Forget the journal; everything is as it was."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path(workdir))
    _sync(workdir)


def describe(workdir: str, boot_id: str) -> Json:
    """Whether there is a journal, of this boot, and of how many nodes."""
    journal = load(workdir)
    if journal is None:
        return {"present": False, "same_boot": False, "nodes": {}}
    same = bool(journal["boot_id"] == boot_id)
    return {"present": True, "same_boot": same, "nodes": journal["nodes"]}


def _sync(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
