"""Everything that can be said about a table without a device: is it whole, can it be believed?

Integrity first (pages, schema, keys and hashes made again, lines and fields), then the gates of
:mod:`latency_tables.gates` for every device, space and setting, then numbers that contradict each
other within a session. Nothing is changed; acceptances are recorded by whoever calls.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from latency_tables import gates, remarks
from latency_tables.cost_table import CostTable
from latency_tables.drift import Second, compare
from latency_tables.errors import CorruptTableError, ForeignTableError, TableError
from latency_tables.fields import parse_json
from latency_tables.interchange import Header, remarks_of, scan
from latency_tables.keys import setting_text
from latency_tables.records import Measurement
from latency_tables.remarks import Remark
from latency_tables.sources import Contents, is_store, read_store
from latency_tables.store import Device, TableStore

MAX_PROBLEMS = 100


class TableName(NamedTuple):
    """What latencies of one table share."""

    device_fp: str
    space_id: str
    setting: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedTable:
    """One table: networks of one space on one device in one setting, and its gates.

    ``seconds`` are second numbers for a network in one session; ``accepted_before`` are gates whose
    refusal was accepted earlier, which is shown and does not count today.
    """

    name: TableName
    device_name: str
    space_name: str
    n_networks: int
    n_records: int
    n_sessions: int
    n_rejected: int
    report: gates.GateReport
    seconds: tuple[Second, ...] = ()
    accepted_before: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "device_name": self.device_name,
            "device_fp": self.name.device_fp,
            "space_name": self.space_name,
            "space_id": self.name.space_id,
            **parse_json(self.name.setting),
            "n_networks": self.n_networks,
            "n_records": self.n_records,
            "n_sessions": self.n_sessions,
            "n_rejected": self.n_rejected,
            "labels": list(self.labels),
            **self.report.to_dict(),
            "accepted_before": list(self.accepted_before),
            "seconds": [second.to_dict() for second in self.seconds],
            "refused": not self.report.passed,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What :func:`verify` found; ``problems`` are damages, at most 100 of them."""

    path: Path
    problems: tuple[str, ...] = ()
    tables: tuple[CheckedTable, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether anything about the file must not be used."""
        return bool(self.problems) or any(not table.report.passed for table in self.tables)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "file": str(self.path),
            "refused": self.refused,
            "problems": list(self.problems),
            "tables": [table.to_dict() for table in self.tables],
        }


@dataclass(slots=True, kw_only=True)
class _Found:
    """What reading a file gave, whole or not."""

    problems: list[str] = field(default_factory=list)
    records: dict[TableName, list[Measurement]] = field(default_factory=lambda: defaultdict(list))
    contents: Contents = field(default_factory=Contents)


def verify(
    path: Path,
    *,
    accept: Collection[str] = (),
    cost_tables: Mapping[str, CostTable] | None = None,
    device_fp: str | None = None,
) -> Verification:
    """Verify a store or a JSON-lines file.

    ``cost_tables`` by space id sharpen the gates; ``device_fp`` is the device that all records
    should be of. Raises TableError where the file cannot be read at all, UsageError where
    ``accept`` names no gate; damage is no error but a finding.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "table.jsonl"
    >>> _ = path.write_text('{"format": "other/1"}')
    >>> [problem.split(", ")[1] for problem in verify(path).problems]
    ["line 1: format is 'other/1'; this version reads 'hilnas-latency-table/1'"]
    """
    gates.check([], accept=accept)  # names of gates are checked before anything is read
    found = _read_store(path) if is_store(path) else _read_lines(path)
    tables = [
        _check_table(
            name, records, found.contents, accept, (cost_tables or {}).get(name.space_id), device_fp
        )
        for name, records in sorted(found.records.items())
    ]
    return Verification(path=path, problems=tuple(found.problems), tables=tuple(tables))


def accept_gates(store: TableStore, verification: Verification, utc: str) -> list[Remark]:
    """Record in the store which refusals were accepted, with the evidence; give the remarks."""
    said = [
        Remark(
            device_fp=table.name.device_fp,
            space_id=table.name.space_id,
            setting=table.name.setting,
            kind="accepted",
            name=gate.name,
            value=gate.evidence,
            utc=utc,
        )
        for table in verification.tables
        for gate in table.report.gates
        if gate.name in table.report.accepted
    ]
    with store.transaction():
        for remark in said:
            store.add_remark(remark)
    return said


def _read_store(path: Path) -> _Found:
    found = _Found()
    try:
        with TableStore(path, read_only=True) as store:
            found.problems += itertools.islice(store.audit(), MAX_PROBLEMS)
            for record in read_store(store, found.contents):
                found.records[_name(record)].append(record)
    except (CorruptTableError, ForeignTableError) as error:
        if not found.problems:
            found.problems.append(error.message)
    return found


def _read_lines(path: Path) -> _Found:
    found = _Found()
    headers: list[tuple[Header, set[str]]] = []
    for _, entry in scan(path):
        if isinstance(entry, TableError):
            if len(found.problems) < MAX_PROBLEMS:
                found.problems.append(entry.message)
        elif isinstance(entry, Header):
            headers.append((entry, set()))
            found.contents.spaces[entry.space.space_id] = entry.space
        elif isinstance(entry, Device):
            found.contents.devices.append(entry)
        else:
            headers[-1][1].add(entry.device_fp)
            found.records[_name(entry)].append(entry)
    for header, devices in headers:
        found.contents.remarks += remarks_of(header, devices)
    return found


def _name(record: Measurement) -> TableName:
    setting = setting_text(runtime=record.runtime, threads=record.threads, cores=record.cores)
    return TableName(record.device_fp, record.space_id, setting)


def _check_table(
    name: TableName,
    records: list[Measurement],
    contents: Contents,
    accept: Collection[str],
    cost_table: CostTable | None,
    device_fp: str | None,
) -> CheckedTable:
    said = remarks.about(contents.remarks, *name)
    usable, seconds = first_numbers(records)
    report = gates.check(
        usable or records,
        cost_table=cost_table,
        device_fp=device_fp,
        accept=accept,
        claims_measured=remarks.claims_measured(said),
    )
    space = contents.spaces.get(name.space_id)
    return CheckedTable(
        name=name,
        device_name=records[0].device_name,
        space_name=space.name if space else "",
        n_networks=len({m.net_id for m in usable}),
        n_records=len(usable),
        n_sessions=len({m.run_id for m in usable}),
        n_rejected=sum(not m.ok for m in records),
        report=report,
        seconds=seconds,
        accepted_before=remarks.accepted(said),
        labels=remarks.labels(said),
    )


def first_numbers(
    records: Iterable[Measurement],
) -> tuple[list[Measurement], tuple[Second, ...]]:
    """The first usable record of every key and session, and what later ones say against it."""
    first: dict[tuple[str, str], Measurement] = {}
    seconds = []
    for record in records:
        if not record.ok:
            continue
        known = first.setdefault((record.key, record.run_id), record)
        if known is not record and known != record:
            seconds.append(compare(known, record))
    return list(first.values()), tuple(seconds)
