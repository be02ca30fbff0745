"""Small JSON files in a folder that others may try to tamper with: links are never followed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
from typing import Any, Dict, Iterator

_MAX_BYTES = 16 * 1024

Json = Dict[str, Any]


class UnsafeFile(Exception):
    """The file is a link, has several names, is somebody else's or open to others."""


def open_own(path: str, flags: int) -> int:
    """Open ``path``, made with mode 600 where ``flags`` ask for it. Raises UnsafeFile, OSError."""
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        handle = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EACCES):
            what = {errno.ELOOP: "a link", errno.EISDIR: "a folder", errno.ENXIO: "a pipe"}
            found = what.get(error.errno, "not ours")
            raise UnsafeFile("{} is {}; remove it".format(path, found)) from None
        raise
    status = os.fstat(handle)
    wrong = ""
    if not stat.S_ISREG(status.st_mode):
        wrong = "is no regular file"
    elif status.st_uid != os.geteuid():
        wrong = "belongs to user {}".format(status.st_uid)
    elif status.st_mode & 0o077:
        wrong = "has mode {:o}, 600 is expected".format(stat.S_IMODE(status.st_mode))
    elif status.st_nlink > 1:
        wrong = "has {} names".format(status.st_nlink)
    if wrong:
        os.close(handle)
        raise UnsafeFile("{} {}; remove it".format(path, wrong))
    return handle


@contextlib.contextmanager
def opened(path: str, flags: int) -> Iterator[int]:
    """The same for a ``with`` block."""
    handle = open_own(path, flags)
    try:
        yield handle
    finally:
        os.close(handle)


def try_lock(handle: int) -> bool:
    """Lock the whole file now; whether that was possible. Closing it unlocks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_text(handle: int) -> Json:
    """The JSON object in a file, {} where there is none."""
    try:
        text = json.loads(os.pread(handle, _MAX_BYTES, 0).decode())
    except (ValueError, RecursionError):
        return {}  # taken this instant, or damaged by a power cut
    return text if isinstance(text, dict) else {}


def write_text(handle: int, text: Json) -> None:
    """Replace the content of a file."""
    data = json.dumps(text).encode()
    os.pwrite(handle, data, 0)
    os.ftruncate(handle, len(data))
