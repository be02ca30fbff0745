"""Latency tables as CSV and Parquet, for spreadsheets and data frames; they are not read back.

One row per record: what ran where, its statistics, and one column ``arch.LABEL`` per decision.
Times are integer nanoseconds as in the interchange file, plus ``latency_ms``. In CSV a text that a
spreadsheet would run as a formula (it begins with ``=``, ``+``, ``-``, ``@``, a tab or the end of a
line) gets an apostrophe in front.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from latency_tables.errors import UsageError
from latency_tables.files import canonical_json, replacing
from latency_tables.interchange import Header
from latency_tables.keys import RUNTIME_FIELDS
from latency_tables.records import Measurement

Records = Callable[[], Iterable[Measurement]]
"""Gives the records anew each time it is called: columns are collected first."""

ROWS_PER_GROUP = 20_000
_TEXTS = ("key", "net_id", "space_id", "onnx_sha256", "artefact_sha256", "device_name", "device_fp")
_STATISTICS = (
    *("n_samples", "n_rounds", "median_ns", "min_ns", "p10_ns", "mean_ns", "std_ns", "mad_ns"),
    *("p90_ns", "p95_ns", "p99_ns", "ci_low_ns", "ci_high_ns", "first_ns", "load_ns"),
    "warmup_runs",
)
_RISKY = ("=", "+", "-", "@", "\t", "\r", "\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Column names, and which of them hold text, whole numbers or numbers."""

    text: tuple[str, ...]
    whole: tuple[str, ...]
    number: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All names in the order of the file."""
        return self.text + self.whole + self.number


def write_csv(path: Path, records: Records) -> int:
    """Write UTF-8 CSV with a header line, whole or not at all; give the number of rows."""
    columns = columns_of(records())
    count = 0
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)  # RFC 4180: lines end in CRLF, breaks inside are quoted
        writer.writerow([_safe(name) for name in columns.names])
        for record in records():
            values = row(record)
            writer.writerow([_safe(values.get(name)) for name in columns.names])
            count += 1
    return count


def write_parquet(path: Path, records: Records, header: Header) -> int:
    """Write Parquet with the header as metadata ``hilnas``; give the number of rows.

    Raises UsageError where pyarrow is not installed.
    """
    try:
        pa, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise UsageError(
            "Parquet needs pyarrow, which is not installed",
            hint="pip install 'hilnas[parquet]', or a file that ends in .csv",
        ) from None
    columns = columns_of(records())
    kinds = {
        **dict.fromkeys(columns.text, pa.string()),
        **dict.fromkeys(columns.whole, pa.int64()),
        **dict.fromkeys(columns.number, pa.float64()),
    }
    about = {"hilnas": canonical_json(header.to_dict())}
    schema = pa.schema([(name, kinds[name]) for name in columns.names], metadata=about)
    count = 0
    with replacing(path) as partial, parquet.ParquetWriter(partial, schema) as writer:
        for rows in _groups(records()):
            texts = set(columns.text)
            values = {
                name: [_cell(r.get(name), name in texts) for r in rows] for name in columns.names
            }
            writer.write_table(pa.table(values, schema=schema))
            count += len(rows)
    return count


def columns_of(records: Iterable[Measurement]) -> Columns:
    """The columns that these records need; a decision with a text among its choices is text."""
    kinds: dict[str, int] = {}  # 0 whole, 1 number, 2 text
    for record in records:
        for label, choice in (record.arch or {}).items():
            kind = 2 if isinstance(choice, str) else 1 if isinstance(choice, float) else 0
            name = f"arch.{label}"
            kinds[name] = max(kind, kinds.get(name, 0))
    whole, number, text = (tuple(n for n, k in kinds.items() if k == kind) for kind in (0, 1, 2))
    runtime = tuple(f"runtime_{name}" for name in RUNTIME_FIELDS)
    return Columns(
        text=(*_TEXTS, *runtime, "cores", "session_id", "utc", "verdicts", *text),
        whole=("threads", *_STATISTICS, "peak_memory_bytes", *whole),
        number=("latency_ms", "ratio_to_reference", *number),
    )


def row(record: Measurement) -> dict[str, Any]:
    """One record as flat values."""
    stats = record.statistics
    return {
        **{name: getattr(record, name) for name in _TEXTS},
        **{f"runtime_{name}": str(record.runtime.get(name, "")) for name in RUNTIME_FIELDS},
        "cores": " ".join(map(str, record.cores)),
        "session_id": record.run_id,
        "utc": str(record.provenance.get("utc", "")),
        "verdicts": " ".join(verdict.code for verdict in record.verdicts),
        "threads": record.threads,
        **{name: getattr(stats, name, None) for name in _STATISTICS},
        "peak_memory_bytes": record.peak_memory_bytes,
        "latency_ms": None if stats is None else stats.median_ms,
        "ratio_to_reference": None if stats is None else stats.ratio_to_reference,
        **{f"arch.{label}": choice for label, choice in (record.arch or {}).items()},
    }


def _safe(value: object) -> object:
    """A cell that no spreadsheet runs."""
    if isinstance(value, str) and value.startswith(_RISKY):
        return f"'{value}"
    return "" if value is None else value


def _cell(value: Any, text: bool) -> Any:
    return str(value) if text and value is not None else value


def _groups(records: Iterable[Measurement]) -> Iterator[list[dict[str, Any]]]:
    rows = (row(record) for record in records)
    while group := list(itertools.islice(rows, ROWS_PER_GROUP)):
        yield group
