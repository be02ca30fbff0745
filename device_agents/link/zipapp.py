"""Pack the board agent as one archive: the same sources give the same bytes, anywhere.

The archive runs as ``python3 <archive>`` and is named by its SHA-256. Modules keep their import
names; package ``__init__`` files are empty inside, so nothing of the host is pulled in.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip archive can hold


def sources() -> dict[str, bytes]:
    """Path inside the archive → content, of everything the agent needs."""
    board = files("device_agents.board")
    found = {
        f"device_agents/board/{item.name}": item.read_bytes()
        for item in board.iterdir()
        if item.name.endswith(".py")
    }
    found["__main__.py"] = found.pop("device_agents/board/entry.py")
    for package in ("device_agents", "device_agents/board", "latency_tables"):
        found[f"{package}/__init__.py"] = b""
    synthetic = files("latency_tables").joinpath("synthetic.py")
    found["latency_tables/synthetic.py"] = synthetic.read_bytes()
    return found


def pack(content: Mapping[str, bytes]) -> bytes:
    """Zip ``content`` with sorted names, fixed times and fixed modes, uncompressed.

    >>> pack({"a": b"1", "b": b"2"}) == pack({"b": b"2", "a": b"1"})
    True
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(content):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o100644 << 16
            entry.create_system = 3  # Unix, also when packed elsewhere
            archive.writestr(entry, content[name])
    return buffer.getvalue()


@cache
def agent_archive() -> bytes:
    """The agent as it is shipped.

    >>> agent_archive()[:2]
    b'PK'
    """
    return pack(sources())
