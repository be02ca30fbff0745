"""The live latency table: one SQLite file that many processes read and write.

Usable latencies and rejected records are kept apart from the moment they are written: nothing that
failed, or that a verdict condemned, can be read back as a latency. Latencies are unique by key and
run, so adding one again changes nothing and tables merge by union.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType

from latency_tables import database
from latency_tables.audit import audit_device, audit_record
from latency_tables.drift import compare
from latency_tables.errors import CorruptTableError, ForeignTableError, UsageError
from latency_tables.estimate import Estimate
from latency_tables.fields import parse_json
from latency_tables.files import canonical_json, sha256_json
from latency_tables.keys import setting_text
from latency_tables.pooling import pool
from latency_tables.records import DeviceFingerprint, Measurement
from latency_tables.remarks import Remark
from latency_tables.summaries import SUMMARY_SQL, Device, TableSummary, summary_of

__all__ = [
    "Device",
    "Rejected",
    "SpaceInfo",
    "TableStore",
    "TableSummary",
    "default_table_path",
]

SECOND_NUMBER = "a second number for this key in run"
"""How the reason of a rejected record begins that is usable, but not the first."""

_KEYS_PER_QUERY = 500
_ROWS_PER_FETCH = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceInfo:
    """The search space that the networks of a table come from."""

    space_id: str
    name: str
    cost_table_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A record that is no latency, and why."""

    measurement: Measurement
    reason: str


def default_table_path(environment: Mapping[str, str]) -> Path:
    """Where the live table lies unless a command says otherwise.

    >>> default_table_path({"XDG_DATA_HOME": "/data", "HOME": "/home/me"}).as_posix()
    '/data/hilnas/tables.sqlite'
    >>> default_table_path({"HOME": "/home/me"}).as_posix()
    '/home/me/.local/share/hilnas/tables.sqlite'
    """
    base = environment.get("XDG_DATA_HOME", "")
    if Path(base).is_absolute():  # the XDG specification: relative paths are ignored
        return Path(base) / "hilnas" / "tables.sqlite"
    if not environment.get("HOME"):
        raise UsageError(
            "neither XDG_DATA_HOME nor HOME is set, so the latency table has no place",
            hint="name a file with --table",
        )
    return Path(environment["HOME"]) / ".local" / "share" / "hilnas" / "tables.sqlite"


class TableStore:
    """A latency table on disk, safe for several processes and threads.

    Raises ForeignTableError for a file that is not a table store, CorruptTableError for a damaged
    one, TableError where it cannot be opened or the disk is full. ``read_only`` is for files of
    other people: such a file is checked page by page first.

    >>> import tempfile
    >>> with TableStore(Path(tempfile.mkdtemp()) / "tables.sqlite") as store:
    ...     store.pooled("nothing here"), store.summaries()
    (None, [])
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._connection = database.connect(path, read_only=read_only)

    def __enter__(self) -> TableStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a closed store cannot be used again."""
        with self._lock:
            self._connection.close()

    def check(self) -> None:
        """Read every page and every record. Raises CorruptTableError at the first damage."""
        database.quick_check(self.path, self._connection)
        for _ in self.measurements():
            pass
        for _ in self.rejected():
            pass

    def audit(self) -> Iterator[str]:
        """Check what every row says about itself against its record; give what is wrong."""
        devices = set()
        for row in self._stream("SELECT * FROM devices"):
            devices.add(row["device_fp"])
            yield from audit_device(dict(row))
        for table in ("latencies", "rejected"):
            for row in self._stream(f"SELECT * FROM {table} ORDER BY id"):
                yield from audit_record(table, dict(row), devices)

    # --- writing

    def add(self, measurement: Measurement) -> bool:
        """Store one record; tell whether it is a new latency.

        False means that it is kept among the rejected ones (failed, condemned by a verdict, or a
        second number for the same key and run) or that it was here already.
        """
        return self.add_all([measurement]) == 1

    def add_all(self, measurements: Iterable[Measurement]) -> int:
        """Store records, all or none; give the number of new latencies."""
        with self.transaction():
            return sum(self._add(measurement) for measurement in measurements)

    def add_device(self, name: str, fingerprint: DeviceFingerprint) -> str:
        """Store a device once and give its ``device_fp``; a known one stays as it is."""
        body = canonical_json(fingerprint.to_dict())
        with self.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO devices VALUES (?, ?, ?)",
                (fingerprint.fingerprint, name, body),
            )
        return fingerprint.fingerprint

    def add_space(self, space: SpaceInfo) -> None:
        """Remember the name and the cost table of a space.

        Raises ForeignTableError where the store knows the same space with other costs.
        """
        with self.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO spaces VALUES (?, ?, ?)",
                (space.space_id, space.name, space.cost_table_hash),
            )
            known = self.space(space.space_id)
        if known is not None and known.cost_table_hash != space.cost_table_hash:
            raise ForeignTableError(
                f"space {space.name!r} has cost table {space.cost_table_hash[:12]}, "
                f"but {self.path} knows it with {known.cost_table_hash[:12]}; "
                "latencies of differing networks must not be mixed",
                hint="name another file with --table",
            )

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Write together or not at all; nested ones belong to the outermost."""
        with self._lock, database.translated(self.path):
            if self._connection.in_transaction:
                yield self._connection
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise

    # --- reading

    def pooled(self, key: str) -> Estimate | None:
        """The latency under ``key`` over all sessions, or None."""
        return self.pooled_all([key]).get(key)

    def pooled_all(self, keys: Sequence[str]) -> dict[str, Estimate]:
        """The latencies under those of ``keys`` that the store has."""
        found: dict[str, list[Measurement]] = {}
        for start in range(0, len(keys), _KEYS_PER_QUERY):
            some = keys[start : start + _KEYS_PER_QUERY]
            marks = ", ".join("?" * len(some))
            for m in self._read(f"SELECT id, body FROM latencies WHERE key IN ({marks})", some):
                found.setdefault(m.key, []).append(m)
        return {key: pool(records) for key, records in found.items()}

    def records(self, key: str) -> list[Measurement]:
        """All sessions of ``key``, oldest first."""
        return list(
            self._read("SELECT id, body FROM latencies WHERE key = ? ORDER BY utc, id", (key,))
        )

    def latest(self, key: str) -> Measurement | None:
        """The newest session of ``key``, or None."""
        records = self.records(key)
        return records[-1] if records else None

    def measurements(
        self,
        *,
        device_fp: str | None = None,
        space_id: str | None = None,
        setting: str | None = None,
    ) -> Iterator[Measurement]:
        """Usable records in the order in which they were stored, streamed.

        ``setting`` is a :func:`latency_tables.keys.setting_text`.
        """
        where, values = _where({"device_fp": device_fp, "space_id": space_id, "setting": setting})
        return self._read(f"SELECT id, body FROM latencies{where} ORDER BY id", values)

    def count(self, *, device_fp: str | None = None, space_id: str | None = None) -> int:
        """Number of records that :meth:`measurements` gives."""
        where, values = _where({"device_fp": device_fp, "space_id": space_id})
        return int(self._rows(f"SELECT COUNT(*) FROM latencies{where}", values)[0][0])

    def rejected(
        self, *, device_fp: str | None = None, space_id: str | None = None
    ) -> Iterator[Rejected]:
        """Records that are no latencies, in the order in which they were stored."""
        where, values = _where({"device_fp": device_fp, "space_id": space_id})
        for row in self._rows(f"SELECT id, reason, body FROM rejected{where} ORDER BY id", values):
            yield Rejected(reason=row[1], measurement=self._measurement("rejected", row[0], row[2]))

    def device(self, device_fp: str) -> Device | None:
        """The device with that fingerprint, or None."""
        return next((d for d in self.devices() if d.device_fp == device_fp), None)

    def devices(self, name: str | None = None) -> list[Device]:
        """Known devices, or those called ``name`` (a reflashed board is another device)."""
        rows = self._rows("SELECT device_fp, name, body FROM devices ORDER BY name, device_fp", ())
        devices = [
            Device(name=row[1], fingerprint=DeviceFingerprint.from_dict(parse_json(row[2])))
            for row in rows
        ]
        return [device for device in devices if name in (None, device.name)]

    def space(self, space_id: str) -> SpaceInfo | None:
        """What is known about a space, or None."""
        rows = self._rows("SELECT * FROM spaces WHERE space_id = ?", (space_id,))
        return SpaceInfo(**dict(rows[0])) if rows else None

    def spaces(self) -> list[SpaceInfo]:
        """All spaces that the store knows."""
        rows = self._rows("SELECT * FROM spaces ORDER BY space_id", ())
        return [SpaceInfo(**dict(row)) for row in rows]

    def summaries(self) -> list[TableSummary]:
        """What lies in the store, one line per device, space, runtime, threads and cores."""
        devices = {device.device_fp: device for device in self.devices()}
        remarks = self.remarks()
        return [
            summary_of(dict(row), devices.get(row["device_fp"]), remarks)
            for row in self._rows(SUMMARY_SQL, ())
        ]

    # --- remarks

    def add_remark(self, remark: Remark) -> None:
        """Keep what somebody says about a table; a later remark of the same name replaces it."""
        with self.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO remarks VALUES (?, ?, ?, ?, ?, ?, ?)", astuple(remark)
            )

    def remarks(
        self,
        *,
        device_fp: str | None = None,
        space_id: str | None = None,
        kind: str | None = None,
    ) -> list[Remark]:
        """What was said about the tables, in a fixed order; nothing in a store of version 1."""
        if database.schema_version(self._connection) < 2:
            return []
        given = {"device_fp": device_fp, "space_id": space_id, "kind": kind}
        where, values = _where(given)
        order = "device_fp, space_id, setting, kind, name"
        rows = self._rows(f"SELECT * FROM remarks{where} ORDER BY {order}", values)
        return [Remark(**dict(row)) for row in rows]

    # --- inside

    def _roll_back(self) -> None:
        if self._connection.in_transaction:  # SQLite may have rolled back on its own
            self._connection.execute("ROLLBACK")

    def _add(self, measurement: Measurement) -> bool:
        utc = str(measurement.provenance.get("utc", ""))
        setting = setting_text(
            runtime=measurement.runtime, threads=measurement.threads, cores=measurement.cores
        )
        data = measurement.to_dict()
        Measurement.from_dict(data)  # what cannot be read back is not written
        body = json.dumps(data, separators=(",", ":"), allow_nan=False)
        table = (measurement.space_id, measurement.device_fp, setting)
        reason = "" if measurement.ok else measurement.why_not()
        if not reason:
            cursor = self._connection.execute(
                "INSERT OR IGNORE INTO latencies (key, run_id, space_id, device_fp, setting, utc,"
                " body) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (measurement.key, measurement.run_id, *table, utc, body),
            )
            if cursor.rowcount == 1:
                return True
            first = self._rows(
                "SELECT body FROM latencies WHERE key = ? AND run_id = ?",
                (measurement.key, measurement.run_id),
            )[0][0]
            if sha256_json(parse_json(first)) == sha256_json(data):
                return False
            gap = compare(Measurement.from_dict(parse_json(first)), measurement)
            reason = f"{SECOND_NUMBER} {measurement.run_id!r}; the first stays; {gap}"
        self._connection.execute(
            "INSERT OR IGNORE INTO rejected (content, space_id, device_fp, setting, reason, utc,"
            " body) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (sha256_json(data), *table, reason, utc, body),
        )
        return False

    def _rows(self, sql: str, values: Sequence[object]) -> list[sqlite3.Row]:
        with self._lock, database.translated(self.path):
            cursor = self._connection.cursor()
            cursor.row_factory = sqlite3.Row
            return cursor.execute(sql, values).fetchall()

    def _stream(self, sql: str, values: Sequence[object] = ()) -> Iterator[sqlite3.Row]:
        with self._lock, database.translated(self.path):
            cursor = self._connection.cursor()
            cursor.row_factory = sqlite3.Row
            cursor.execute(sql, values)
        while True:
            with self._lock, database.translated(self.path):
                rows = cursor.fetchmany(_ROWS_PER_FETCH)
            if not rows:
                return
            yield from rows

    def _read(self, sql: str, values: Sequence[object]) -> Iterator[Measurement]:
        for number, body in self._stream(sql, values):
            yield self._measurement("latencies", number, body)

    def _measurement(self, table: str, number: int, body: str) -> Measurement:
        try:
            return Measurement.from_dict(parse_json(body))
        except CorruptTableError as error:
            raise CorruptTableError(
                f"{self.path}, record {number} of {table}: {error.message}",
                hint="import your last export into a fresh file: hilnas tables import FILE "
                "--table NEW",
            ) from None


def _where(given: Mapping[str, str | None]) -> tuple[str, tuple[str, ...]]:
    chosen = {name: value for name, value in given.items() if value is not None}
    clause = " AND ".join(f"{name} = ?" for name in chosen)
    return (f" WHERE {clause}" if clause else ""), tuple(chosen.values())
