"""Rows of a CSV, JSON-lines or JSON file, packed or not, each with the place where it stands."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from latency_tables.errors import DataError, UsageError

KEY = "genome"
"""Column that the keys of a JSON object become."""

Row = Mapping[str, Any]


def read_rows(path: Path) -> list[tuple[str, Row]]:
    """Every row of a table with the words that say where it stands.

    Raises:
        UsageError: no such file, or one of another form.
        DataError: the file cannot be read, or holds no rows.
    """
    suffix = Path(path.name.removesuffix(".gz")).suffix
    readers: dict[str, Callable[[TextIO], Iterator[tuple[str, Row]]]] = {
        ".csv": _csv_rows,
        ".jsonl": _json_line_rows,
        ".ndjson": _json_line_rows,
        ".json": _json_rows,
    }
    if suffix not in readers:
        raise UsageError(
            f"{path}: tables end in {', '.join(readers)}, or one of these and .gz",
            hint="a folder with retrained networks is also allowed",
        )
    try:
        with _text(path) as stream:
            rows = list(readers[suffix](stream))
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if not rows:
        raise DataError(f"{path} holds no rows")
    return rows


def _text(path: Path) -> TextIO:
    """The file as text, unpacked; spreadsheets write a byte order mark before it."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _csv_rows(stream: TextIO) -> Iterator[tuple[str, Row]]:
    reader = csv.DictReader(stream)
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"line {reader.line_num} has other columns than the first line")
        yield f"line {reader.line_num}", row


def _json_line_rows(stream: TextIO) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            yield f"line {number}", _flat(json.loads(line), f"line {number}")


def _json_rows(stream: TextIO) -> Iterator[tuple[str, Row]]:
    data = json.load(stream)
    if isinstance(data, list):
        for number, entry in enumerate(data, start=1):
            yield f"entry {number}", _flat(entry, f"entry {number}")
    elif isinstance(data, dict):
        for genome, entry in data.items():
            entry = entry if isinstance(entry, dict) else {"accuracy": entry}
            yield f"entry {genome!r}", {KEY: genome, **entry}
    else:
        raise ValueError("neither a list nor an object")


def _flat(entry: Any, place: str) -> Row:
    if not isinstance(entry, dict):
        raise ValueError(f"{place} is no JSON object")
    return entry
