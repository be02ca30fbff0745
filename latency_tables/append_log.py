"""A file of checked lines that only grows: what was appended survives a kill of its writer.

One JSON object per line, each with a checksum. A torn last line (the process died while writing)
is dropped when the file is opened again; any other damage is refused with the number of the line.
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from latency_tables.errors import RunError
from latency_tables.files import canonical_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line that was read; ``number`` counts from 1."""

    number: int
    record: dict[str, Any]


class AppendLog:
    """An open log; :meth:`open` reads what is there and goes on behind it.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "log.jsonl"
    >>> with AppendLog.open(path) as log:
    ...     log.append({"n": 1})
    >>> with AppendLog.open(path) as log:
    ...     [line.record for line in log.lines]
    [{'n': 1}]
    """

    def __init__(self, path: Path, stream: BinaryIO, lines: tuple[Line, ...]) -> None:
        self.path, self._stream = path, stream
        self.lines = lines
        """What the file held when it was opened."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or create a log. Raises RunError where a line before the last is damaged."""
        raw = path.read_bytes() if path.exists() else b""
        lines, whole = _parse(path, raw)
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("ab")
        stream.truncate(whole)
        log = cls(path, stream, tuple(lines))
        if not lines:
            log.sync()
            _sync_folder(path.parent)
        return log

    def append(self, record: dict[str, Any]) -> None:
        """Write a line: safe from a dying process at once, from a power cut after :meth:`sync`."""
        self._stream.write(encode(record))
        self._stream.flush()

    def sync(self) -> None:
        """Return when everything written is on the disk."""
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Sync and close; may be called twice."""
        if not self._stream.closed:
            self.sync()
            self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_log(path: Path) -> tuple[Line, ...]:
    """The lines of a log, without continuing it. Raises RunError: absent, unreadable, damaged."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}", hint="hilnas run") from None
    return tuple(_parse(path, raw)[0])


def encode(record: dict[str, Any]) -> bytes:
    """One line with its checksum."""
    text = canonical_json(record)
    return f'{{"crc32":{zlib.crc32(text.encode())},"record":{text}}}\n'.encode()


def decode(line: bytes) -> dict[str, Any]:
    """Read what :func:`encode` wrote. Raises ValueError."""
    data = json.loads(line)
    record = data["record"] if isinstance(data, dict) and "record" in data else None
    if not isinstance(record, dict):
        raise ValueError("not a line of a log")
    if zlib.crc32(canonical_json(record).encode()) != data.get("crc32"):
        raise ValueError("the checksum is wrong")
    return record


def damaged(path: Path, number: int, why: str) -> RunError:
    """The error that a line is not what it must be."""
    return RunError(
        f"{path}, line {number} is damaged: {why}",
        hint="restore the file, or move it away to start again",
    )


def _parse(path: Path, raw: bytes) -> tuple[list[Line], int]:
    """The readable lines, and how many bytes they take; only the last may be unreadable."""
    parts = raw.split(b"\n")
    complete, tail = parts[:-1], parts[-1]
    lines: list[Line] = []
    whole = 0
    for number, part in enumerate(complete, start=1):
        try:
            lines.append(Line(number=number, record=decode(part)))
        except ValueError as error:
            if number == len(complete) and not tail:
                break
            raise damaged(path, number, str(error)) from None
        whole += len(part) + 1
    return lines, whole


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
