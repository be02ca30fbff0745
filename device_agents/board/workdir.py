"""The agent's folder on the board.

``blobs/<sha256>``  files that were sent; the ones unused for longest are removed first
``run/``            scratch of the children
``incoming/``       files that are on their way
``site/``           Python packages for the board; ``site/current`` names the folder in use
``python-*/``       an interpreter that ``hilnas devices bootstrap --python-tar`` brought
``lease``, ``guard``, ``reservation``: see :mod:`device_agents.board.lease`
``restore.json``    the clocks as they were before they were set, while they are
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Set, Tuple

QUOTA_BYTES = 1 << 30
STALE_PART_S = 3600.0
"""An upload that nothing was added to for so long will not be finished."""

_BLOB = re.compile(r"[0-9a-f]{64}\Z")
_IDLE_AGENT_S = 60.0

Json = Dict[str, Any]


class _File(NamedTuple):
    used: float
    size: int
    path: str


def make(workdir: str) -> None:
    """Create the folders, readable by their owner only.

    Raises OSError also where one is a link, somebody else's, or open to be written by others.
    """
    for folder in (workdir, os.path.join(workdir, "blobs"), os.path.join(workdir, "run")):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        status = os.lstat(folder)
        if stat.S_ISLNK(status.st_mode):
            raise OSError("{} is a symbolic link".format(folder))
        if status.st_uid != os.geteuid():
            raise OSError("{} belongs to user {}".format(folder, status.st_uid))
        if status.st_mode & 0o022:
            if folder == workdir:  # which may be a folder that others do need
                raise OSError("{} can be written by others; chmod go-w it".format(folder))
            os.chmod(folder, 0o700)


def free_bytes(workdir: str) -> int:
    """Room on the file system of the work folder for a plain user."""
    room = os.statvfs(workdir)
    return room.f_bavail * room.f_frsize


def site(workdir: str) -> str:
    """Name of the folder of packages in use, or ''."""
    try:
        with open(os.path.join(workdir, "site", "current"), "rb") as stream:
            name = stream.read(200).decode("utf-8", "replace").strip()
    except OSError:
        return ""
    return name if re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z", name) else ""


def leftovers(workdir: str, archive: str) -> List[Json]:
    """Processes that earlier agents left: children, and agents that are no longer spoken to.

    Called by the holder of the lease: whatever else works in this folder is an orphan. It is
    reported and not killed. Scratch is removed unless a child may still use it.
    """
    found: List[Json] = []
    blobs = os.path.join(workdir, "blobs").encode()
    for pid, arguments in _processes():
        if pid == os.getpid() or not any(part.startswith(blobs) for part in arguments):
            continue
        if b"--child" in arguments:
            found.append({"pid": pid, "what": "child of an earlier agent"})
        elif b"--workdir" in arguments and _age_s(pid) > _IDLE_AGENT_S:
            found.append({"pid": pid, "what": "another agent"})  # a younger one may just wait
    if not any("child" in left["what"] for left in found):
        remove_scratch(workdir)
    return found


def remove_scratch(workdir: str) -> int:
    """Empty ``run/``; gives the bytes that it held."""
    folder = os.path.join(workdir, "run")
    freed = tree_bytes(folder)
    if not os.path.islink(folder):
        shutil.rmtree(folder, ignore_errors=True)
    return freed


def stale_parts(workdir: str) -> List[_File]:
    """Uploads in ``blobs/`` that were begun and given up."""
    now = time.time()
    return [
        file
        for file in _files(os.path.join(workdir, "blobs"))
        if not _BLOB.match(os.path.basename(file.path)) and now - file.used > STALE_PART_S
    ]


def tree_bytes(folder: str) -> int:
    """Size of all regular files below ``folder``, which may be missing."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.lstat(os.path.join(path, name))
            except OSError:
                continue  # gone meanwhile
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def trim(
    workdir: str,
    quota_bytes: int,
    keep: str,
    *,
    min_free_bytes: int = 0,
    also_keep: Iterable[str] = (),
) -> int:
    """Remove the blobs unused for longest until the rest fits and enough is free; bytes freed.

    ``keep`` is a path and ``also_keep`` are names of blobs that stay in any case, as do archives
    that a running agent was started from.
    """
    keeping = _in_use(workdir) | {os.path.abspath(keep)}
    keeping |= {os.path.join(os.path.abspath(workdir), "blobs", name) for name in also_keep}
    files = _files(os.path.join(workdir, "blobs"))
    total = sum(file.size for file in files)
    missing = min_free_bytes - free_bytes(workdir)
    freed = 0
    for file in sorted(files):
        if total - freed <= quota_bytes and freed >= missing:
            break
        if os.path.abspath(file.path) not in keeping:
            freed += _unlink(file)
    return freed


def clean(workdir: str, what: Iterable[str], keep: str) -> Dict[str, int]:
    """Remove kinds of content; bytes freed by kind. Called by the holder of the lease.

    Raises ValueError for a kind that does not exist.
    """
    kinds = {
        "blobs": lambda: trim(workdir, 0, keep),
        "parts": lambda: sum(_unlink(file) for file in stale_parts(workdir)),
        "scratch": lambda: remove_scratch(workdir),
        "site": lambda: _clean_site(workdir),
    }
    wrong = [kind for kind in what if kind not in kinds]
    if wrong:
        raise ValueError("{!r} is not one of {}".format(wrong[0], ", ".join(sorted(kinds))))
    return {kind: kinds[kind]() for kind in what}


def _clean_site(workdir: str) -> int:
    """Remove every folder of packages but the one in use."""
    folder, current = os.path.join(workdir, "site"), site(workdir)
    freed = 0
    if os.path.islink(folder) or not os.path.isdir(folder):
        return 0
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if name not in ("current", current) and os.path.isdir(path) and not os.path.islink(path):
            freed += tree_bytes(path)
            shutil.rmtree(path, ignore_errors=True)
    return freed


def _files(folder: str) -> List[_File]:
    found = []
    for entry in os.scandir(folder):
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:
            continue  # renamed or removed by an upload that runs
        if not stat.S_ISDIR(status.st_mode):
            found.append(_File(status.st_mtime, status.st_size, entry.path))
    return found


def _unlink(file: _File) -> int:
    try:
        os.unlink(file.path)
    except OSError:
        return 0
    return file.size


def _in_use(workdir: str) -> Set[str]:
    """Paths of archives that running agents read, and of parts that are being written."""
    blobs = os.path.join(os.path.abspath(workdir), "blobs") + os.sep
    used = set()
    for _, arguments in _processes():
        for part in arguments:
            path = os.fsdecode(part)
            if path.startswith(blobs):
                used.add(path)
    stale = {file.path for file in stale_parts(workdir)}
    for file in _files(blobs):
        if not _BLOB.match(os.path.basename(file.path)) and file.path not in stale:
            used.add(os.path.abspath(file.path))
    return used


def _processes() -> Iterator[Tuple[int, List[bytes]]]:
    """Process ids with their command lines, as far as they may be read."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/{}/cmdline".format(name), "rb") as stream:
                    yield int(name), stream.read().split(b"\0")
            except OSError:
                continue


def _age_s(pid: int) -> float:
    try:
        with open("/proc/{}/stat".format(pid)) as stream:
            started = int(stream.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
