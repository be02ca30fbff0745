"""Operations that keep the work folder small, and what earlier sessions left in it."""

from __future__ import annotations

import os
from typing import Any, Dict, Iterable

from device_agents.board import clock_journal, workdir
from device_agents.board.lease import Lease

MIN_FREE_BYTES = 64 << 20
"""Room that is kept free, or a twentieth of a small disk."""

Json = Dict[str, Any]


def left_behind(folder: str, boot: str, lease: Lease) -> Json:
    """What earlier sessions left beside processes, as it is before anything is tidied."""
    parts = workdir.stale_parts(folder)
    return {
        "scratch_bytes": workdir.tree_bytes(os.path.join(folder, "run")),
        "stale_parts": len(parts),
        "stale_part_bytes": sum(part.size for part in parts),
        "clocks_journal": clock_journal.describe(folder, boot)["same_boot"],
        "other_boots_lease": lease.left_by_other_boot(boot),
    }


def tidy(folder: str, archive: str, request: Json) -> None:
    """Keep to the quota and leave some room, at the start of a session."""
    room = os.statvfs(folder)
    wanted = min(MIN_FREE_BYTES, room.f_blocks * room.f_frsize // 20)
    quota_bytes = _bytes(request, "quota_bytes", workdir.QUOTA_BYTES)
    workdir.trim(folder, quota_bytes, archive, min_free_bytes=wanted)


def clean(folder: str, archive: str, what: Iterable[object]) -> Json:
    """Remove kinds of content that is not in use. Raises ValueError naming the kinds."""
    freed = workdir.clean(folder, [str(kind) for kind in what], archive)
    workdir.make(folder)
    return {"freed_bytes": freed, "disk_free_bytes": workdir.free_bytes(folder)}


def make_room(folder: str, archive: str, request: Json) -> Json:
    """Remove old blobs until ``bytes`` are free; ``keep`` names blobs that must stay."""
    freed = workdir.trim(
        folder,
        1 << 62,
        archive,
        min_free_bytes=_bytes(request, "bytes", 0),
        also_keep=[str(name) for name in request.get("keep", [])],
    )
    return {"freed_bytes": freed, "disk_free_bytes": workdir.free_bytes(folder)}


def _bytes(request: Json, name: str, default: int) -> int:
    value = request.get(name, default)
    if type(value) is not int or value < 0:
        raise ValueError("{} {!r} is not a number of bytes".format(name, value))
    return value
