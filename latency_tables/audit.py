"""Whether the rows of a store say what their records say: keys, hashes and columns made again.

A row that was changed by hand, or by a disk, still reads well; only what can be computed again
shows it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from latency_tables.errors import CorruptTableError
from latency_tables.fields import parse_json
from latency_tables.files import sha256_json
from latency_tables.keys import setting_text
from latency_tables.records import DeviceFingerprint, Measurement


def audit_device(row: dict[str, Any]) -> Iterator[str]:
    """What is wrong with one row of ``devices``."""
    where = f"device {row['name']!r}"
    try:
        found = DeviceFingerprint.from_dict(parse_json(row["body"])).fingerprint
    except CorruptTableError as error:
        yield f"{where}: {error.message}"
        return
    if found != row["device_fp"]:
        yield f"{where}: stored as {row['device_fp'][:12]}, its identity gives {found[:12]}"


def audit_record(table: str, row: dict[str, Any], devices: Collection[str]) -> Iterator[str]:
    """What is wrong with one row of ``latencies`` or ``rejected``."""
    where = f"record {row['id']} of {table}"
    try:
        record = Measurement.from_dict(parse_json(row["body"]))
    except CorruptTableError as error:
        yield f"{where}: {error.message}"
        return
    for column, value in _columns(table, record).items():
        if row[column] != value:
            yield f"{where}: column {column!r} is {row[column][:80]!r}; the record gives {value!r}"
    if record.device_fp not in devices:
        yield f"{where}: device {record.device_fp[:12]} is not known"
    if table == "latencies" and not record.ok:
        yield f"{where}: no usable latency ({record.why_not()})"


def _columns(table: str, record: Measurement) -> dict[str, str]:
    common = {
        "space_id": record.space_id,
        "device_fp": record.device_fp,
        "setting": setting_text(runtime=record.runtime, threads=record.threads, cores=record.cores),
        "utc": str(record.provenance.get("utc", "")),
    }
    if table == "rejected":
        return {"content": sha256_json(record.to_dict()), **common}
    return {"key": record.key, "run_id": record.run_id, **common}
