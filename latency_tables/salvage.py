"""Import what is whole of a damaged table file, and put the rest aside with reasons.

A plain import is all or nothing. Salvaging is asked for: whole lines before and after a damaged one
are imported, and every damaged line is written to ``FILE.rejected`` as JSON lines of its number,
the reason and the line itself. Without a readable header nothing is imported: units and space are
then unknown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from latency_tables.errors import CorruptTableError, TableError
from latency_tables.files import write_text
from latency_tables.interchange import MAX_LINE_BYTES, Imported, Importer, scan
from latency_tables.store import TableStore

MAX_KEPT = 4096
"""How many characters of a damaged line are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLine:
    """One line that was not imported; number 0 stands for the file as a whole."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvaged:
    """What was imported and what was not; ``rejected_file`` is None where nothing was damaged."""

    imported: Imported
    bad_lines: tuple[BadLine, ...]
    rejected_file: Path | None


def salvage_table(store: TableStore, path: Path) -> Salvaged:
    """Import the whole lines of a damaged file; write the others to ``FILE.rejected``.

    Raises CorruptTableError where not one record is whole, TableError where the file cannot be
    read; nothing is then imported.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "table.jsonl").write_text("not a table")
    >>> with TableStore(folder / "tables.sqlite") as store:
    ...     salvage_table(store, folder / "table.jsonl")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    latency_tables.errors.CorruptTableError: ... holds no whole record; line 1: not JSON...
    """
    bad: list[BadLine] = []
    with store.transaction():
        importer = Importer(store, path)
        for number, entry in scan(path):
            if isinstance(entry, TableError):
                reason = entry.message.removeprefix(f"{path}, ")
                bad.append(BadLine(number=number, reason=reason))
            else:
                importer.add(entry)
        imported = importer.done()
        if imported.n_read == 0 and bad:
            raise CorruptTableError(
                f"{path} holds no whole record; {bad[0].reason}",
                hint="ask for the file again",
            )
    rejected = _write_rejected(path, bad) if bad else None
    return Salvaged(imported=imported, bad_lines=tuple(bad), rejected_file=rejected)


def _write_rejected(path: Path, bad: list[BadLine]) -> Path:
    """Write the damaged lines with their reasons, escaped, beside the file."""
    reasons = {line.number: line.reason for line in bad}
    target = path.with_name(f"{path.name}.rejected")
    lines = [
        json.dumps({"line": number, "reason": reasons[number], "text": text})
        for number, text in _texts(path, set(reasons))
    ]
    if 0 in reasons:
        lines.append(json.dumps({"line": 0, "reason": reasons[0], "text": ""}))
    write_text(target, "".join(line + "\n" for line in lines))
    return target


def _texts(path: Path, numbers: set[int]) -> Iterator[tuple[int, str]]:
    """The lines of those numbers, cut to a readable length."""
    with path.open("rb") as stream:
        number = 0
        while raw := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            part = raw
            while len(part) > MAX_LINE_BYTES and not part.endswith(b"\n"):
                part = stream.readline(MAX_LINE_BYTES + 1)
            if number in numbers:
                yield number, raw.decode(errors="replace").rstrip("\r\n")[:MAX_KEPT]
