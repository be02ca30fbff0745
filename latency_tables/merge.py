"""Join tables: the union by key and measuring run, whatever the order of the inputs.

* Records are equal where their content is; equal ones count once, so sample counts add up exactly
  and merging again changes nothing.
* Of several numbers for one key and run the earliest counts (ties: the smaller hash); the others
  are reported, and flagged as drift where they differ by more than 3 times their noise.
* Sessions stay apart, as do devices: nothing is averaged here. Two devices of one name whose
  identities differ are refused unless the caller wants them side by side.

Every rule is a function of the set of records, so merging is commutative, associative and
idempotent. Records go through a scratch database on disk, so that size does not matter.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latency_tables.drift import Second, compare
from latency_tables.errors import ForeignTableError, TableError, UsageError
from latency_tables.fields import parse_json
from latency_tables.files import canonical_json, sha256_json
from latency_tables.interchange import Header, write_tables
from latency_tables.records import Measurement
from latency_tables.remarks import Remark, labels
from latency_tables.sources import Contents, is_store, read, read_store
from latency_tables.store import Device, SpaceInfo, TableStore

STORE_ENDINGS = (".sqlite", ".sqlite3", ".db")


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What a merge gave. ``n_copies`` records were in several inputs; ``seconds`` did not count."""

    n_read: int
    n_records: int
    n_networks: int
    n_sessions: int
    n_copies: int
    n_rejected: int
    devices: tuple[Device, ...]
    seconds: tuple[Second, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            **{name: getattr(self, name) for name in self.__slots__ if name.startswith("n_")},
            "devices": [{"name": d.name, "device_fp": d.device_fp} for d in self.devices],
            "seconds": [second.to_dict() for second in self.seconds],
        }


def merge_tables(
    out: Path, inputs: Sequence[Path], *, keep_apart: bool = False, tool_version: str = ""
) -> Merged:
    """Write the union of ``inputs`` to ``out``: a store (.sqlite, .db) or JSON lines.

    An ``out`` that is there already is one more input: nothing in it is lost. JSON lines leave out
    rejected records; a store keeps them. Raises ForeignTableError where devices of one name differ
    (unless ``keep_apart``) or one space has two cost tables, TableError for unreadable inputs;
    ``out`` then stays as it was.
    """
    if not inputs:
        raise UsageError("nothing to merge", hint="hilnas tables merge OUT IN...")
    into_store = is_store(out) if out.exists() else out.suffix in STORE_ENDINGS
    with tempfile.TemporaryDirectory(prefix="hilnas-merge-") as folder:
        union = _Union(Path(folder) / "union.sqlite")
        with closing(union.connection):
            others = [path for path in inputs if not (out.exists() and path.samefile(out))]
            for path in others:
                union.add(read(path, union.contents))
            if into_store:
                return _into_store(out, union, keep_apart)
            if out.exists():
                union.add(read(out, union.contents))
            return _into_lines(out, union, keep_apart, tool_version)


def _into_store(out: Path, union: _Union, keep_apart: bool) -> Merged:
    with TableStore(out) as store, store.transaction() as connection:
        union.add(read_store(store, union.contents))  # inside: nobody adds in between
        merged = union.settle(keep_apart)
        for table in ("latencies", "rejected", "devices", "spaces", "remarks"):
            connection.execute(f"DELETE FROM {table}")
        for space in union.spaces():
            store.add_space(space)
        for device in merged.devices:
            store.add_device(device.name, device.fingerprint)
        store.add_all(union.records())
        for remark in union.remarks():
            store.add_remark(remark)
    return merged


def _into_lines(out: Path, union: _Union, keep_apart: bool, tool_version: str) -> Merged:
    merged = union.settle(keep_apart)
    if not union.contents.spaces and not merged.n_records:
        raise TableError("the inputs hold no tables at all", hint="hilnas tables show --table IN")
    write_tables(out, union.sections(merged.devices, tool_version))
    return merged


class _Union:
    """A set of records on disk, ordered by space, device, setting and time."""

    def __init__(self, path: Path) -> None:
        self.contents = Contents()
        self.n_read = 0
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = OFF")
        self.connection.execute("PRAGMA synchronous = OFF")
        self.connection.execute(
            "CREATE TABLE records (content TEXT PRIMARY KEY, space TEXT, device TEXT, key TEXT,"
            " run TEXT, utc TEXT, state INTEGER, body TEXT) WITHOUT ROWID"
        )

    def add(self, records: Iterable[Measurement]) -> None:
        """Add what is not there yet; usable records have state 0, others 2."""
        self.connection.execute("BEGIN")
        for record in records:
            self.n_read += 1
            data = record.to_dict()
            row = (
                *(sha256_json(data), record.space_id, record.device_fp, record.key, record.run_id),
                *(str(record.provenance.get("utc", "")), 0 if record.ok else 2, json.dumps(data)),
            )
            self.connection.execute("INSERT OR IGNORE INTO records VALUES (?,?,?,?,?,?,?,?)", row)
        self.connection.execute("COMMIT")

    def settle(self, keep_apart: bool) -> Merged:
        """Find the first number of every key and run (the others get state 1), and count."""
        devices = self.devices()
        if not keep_apart:
            _refuse_two_of_a_name(devices)
        seconds = [compare(first, second) for first, second in self._seconds()]
        counted = (
            "COUNT(*), SUM(state = 0), SUM(state = 2), COUNT(DISTINCT iif(state = 0, key, NULL)),"
            " COUNT(DISTINCT iif(state = 0, run, NULL))"
        )
        n, n_usable, n_rejected, n_networks, n_sessions = self.connection.execute(
            f"SELECT {counted} FROM records"
        ).fetchone()
        return Merged(
            n_read=self.n_read,
            n_records=n_usable or 0,
            n_networks=n_networks,
            n_sessions=n_sessions,
            n_copies=self.n_read - n,
            n_rejected=n_rejected or 0,
            devices=tuple(devices),
            seconds=tuple(seconds),
        )

    def _seconds(self) -> list[tuple[Measurement, Measurement]]:
        pairs = []
        repeated = self.connection.execute(
            "SELECT key, run FROM records WHERE state = 0 GROUP BY key, run HAVING COUNT(*) > 1"
            " ORDER BY key, run"
        ).fetchall()
        for key, run in repeated:
            rows = self.connection.execute(
                "SELECT content, body FROM records WHERE key = ? AND run = ? AND state = 0"
                " ORDER BY utc, content",
                (key, run),
            ).fetchall()
            first, *others = [(content, _measurement(body)) for content, body in rows]
            for content, second in others:
                self.connection.execute("UPDATE records SET state = 1 WHERE content = ?", [content])
                pairs.append((first[1], second))
        return pairs

    def records(self, space_id: str | None = None) -> Iterator[Measurement]:
        """All records; of one space only those that count."""
        where = "" if space_id is None else "WHERE space = ? AND state = 0"
        values = () if space_id is None else (space_id,)
        cursor = self.connection.cursor()
        order = "ORDER BY space, device, utc, key, content"
        for (body,) in cursor.execute(f"SELECT body FROM records {where} {order}", values):
            yield _measurement(body)

    def devices(self) -> list[Device]:
        """One entry per identity: of several names and states always the same one."""
        chosen: dict[str, Device] = {}
        for device in sorted(self.contents.devices, key=_device_order):
            chosen.setdefault(device.device_fp, device)
        return sorted(chosen.values(), key=_device_order)

    def spaces(self) -> list[SpaceInfo]:
        """One entry per space. Raises ForeignTableError where its cost tables differ."""
        return [self.contents.spaces[space_id] for space_id in sorted(self.contents.spaces)]

    def remarks(self) -> list[Remark]:
        """The newest remark of every name."""
        newest: dict[tuple[str, ...], Remark] = {}
        for r in sorted(self.contents.remarks, key=lambda r: (r.utc, r.value)):
            newest[r.device_fp, r.space_id, r.setting, r.kind, r.name] = r
        return [newest[name] for name in sorted(newest)]

    def sections(
        self, devices: Sequence[Device], tool_version: str
    ) -> Iterator[tuple[Header, list[Device], Iterator[Measurement]]]:
        """Header, devices and records of every space."""
        of_space: dict[str, set[str]] = defaultdict(set)
        count: dict[str, int] = defaultdict(int)
        last: dict[str, str] = {}
        for space, device, n, utc in self.connection.execute(
            "SELECT space, device, COUNT(*), MAX(utc) FROM records WHERE state = 0"
            " GROUP BY space, device"
        ).fetchall():
            of_space[space].add(device)
            count[space] += n
            last[space] = max(utc, last.get(space, ""))
        said = self.remarks()
        for space in sorted(of_space.keys() | self.contents.spaces.keys()):
            about = [r for r in said if r.space_id == space and r.device_fp in of_space[space]]
            unknown = SpaceInfo(space_id=space, name="", cost_table_hash="")
            header = Header(
                space=self.contents.spaces.get(space, unknown),
                created=last.get(space, ""),
                tool_version=tool_version,
                n_measurements=count[space],
                labels=labels(about),
                accepted=tuple(r for r in about if r.kind == "accepted"),
            )
            known = [d for d in devices if d.device_fp in of_space[space]]
            yield header, known, self.records(space)


def _measurement(body: str) -> Measurement:
    return Measurement.from_dict(parse_json(body))


def _device_order(device: Device) -> tuple[str, str]:
    return device.name, canonical_json(device.fingerprint.to_dict())


def _refuse_two_of_a_name(devices: Sequence[Device]) -> None:
    by_name: dict[str, Device] = {}
    for device in devices:
        other = by_name.setdefault(device.name, device)
        if other is not device:
            raise ForeignTableError(
                f"two devices are called {device.name!r} and differ in "
                f"{', '.join(differing(other, device)) or 'nothing that they say'}; "
                "their latencies cannot be pooled",
                hint="--keep-apart, which keeps both under their fingerprints",
            )


def differing(one: Device, two: Device) -> list[str]:
    """Fields of the identity that differ, with both values."""
    first, second = one.fingerprint.identity, two.fingerprint.identity
    return [
        f"{name} ({_shown(first.get(name))} and {_shown(second.get(name))})"
        for name in sorted(set(first) | set(second))
        if first.get(name) != second.get(name)
    ]


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
