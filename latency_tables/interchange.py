"""Latency tables as text: JSON lines that can be read, compared, joined and sent.

The first line is a header, then come the devices, then one record per line::

    {"format": "hilnas-latency-table/1", "units": {"time": "ns", "memory": "bytes"}, "space": …}
    {"device": {"name": "local", "fingerprint": {…}}}
    {"measurement": {…}, "key": "…", "sha256": "…"}

``key`` and ``sha256`` (of the canonical JSON of the measurement) are written always and checked
where they are there, so that a flipped digit is noticed; a record that another program wrote may
leave them out.

Files of one format may be joined by ``cat`` and appended to: further header lines are read as such,
and ``n_measurements`` of a header is the least number of records that must follow it, so that a
file cut at the end of a line is noticed. Both directions stream; a file ends up whole or not at
all, and an import is one transaction: a damaged line leaves the store as it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from latency_tables.errors import CorruptTableError, ForeignTableError, TableError
from latency_tables.fields import MAX_TEXT, Fields, parse_json
from latency_tables.files import replacing, sha256_json
from latency_tables.records import DeviceFingerprint, Measurement
from latency_tables.remarks import Remark, labels
from latency_tables.store import Device, SpaceInfo, TableStore

FORMAT = "hilnas-latency-table/1"
UNITS = {"time": "ns", "memory": "bytes"}
MAX_LINE_BYTES = 2**20
_SEALS = ("key", "sha256")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first line of a table: what the records below are about.

    ``labels`` are claims about how the latencies came about, as
    :data:`latency_tables.remarks.MEASURED`; ``accepted`` are overridden gates.
    """

    space: SpaceInfo
    created: str
    tool_version: str
    n_measurements: int = 0
    labels: tuple[str, ...] = ()
    accepted: tuple[Remark, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The header line as a dictionary; what nobody said is left out."""
        said: dict[str, Any] = {"labels": list(self.labels)} if self.labels else {}
        if self.accepted:
            said["accepted"] = [remark.to_dict() for remark in self.accepted]
        return {
            "format": FORMAT,
            "units": UNITS,
            "space": {
                "id": self.space.space_id,
                "name": self.space.name,
                "cost_table_hash": self.space.cost_table_hash,
            },
            "created": self.created,
            "tool_version": self.tool_version,
            "n_measurements": self.n_measurements,
            **said,
        }

    @classmethod
    def from_dict(cls, data: object) -> Header:
        """Read a header line. Raises CorruptTableError or ForeignTableError."""
        fields = Fields(data, "header")
        found = fields.text("format")
        if found != FORMAT:
            raise ForeignTableError(f"format is {ascii(found)[:80]}; this version reads {FORMAT!r}")
        units = fields.object("units")
        if units != UNITS:
            fields.fail("units", f"are {ascii(units)[:80]}; must be {UNITS}")
        space = Fields(fields.object("space"), "header, space")
        header = cls(
            space=SpaceInfo(
                space_id=space.text("id"),
                name=space.text("name"),
                cost_table_hash=space.text("cost_table_hash"),
            ),
            created=fields.text("created"),
            tool_version=fields.text("tool_version"),
            n_measurements=fields.integer("n_measurements"),
            labels=_texts(fields, "labels"),
            accepted=_accepted(fields),
        )
        space.end()
        fields.end()
        return header


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import did: ``n_new`` of ``n_read`` records were not there before."""

    n_read: int
    n_new: int
    devices: tuple[Device, ...] = field(default=())
    spaces: tuple[SpaceInfo, ...] = field(default=())


Entry = Header | Device | Measurement


def export_table(
    store: TableStore,
    path: Path,
    *,
    device: str | None = None,
    space_id: str | None = None,
    created: str | None = None,
    tool_version: str = "",
) -> int:
    """Write the latencies of one device and one space to ``path``; give their number.

    A ``path`` that ends in .csv or .parquet becomes such a file, any other one JSON lines, the only
    form that can be imported again. ``device`` is a name or a fingerprint; it and ``space_id`` may
    be left out where the store has one of them. Rejected records stay where they are. Raises
    TableError where ``device`` and ``space_id`` do not name one table.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with TableStore(folder / "tables.sqlite") as store:
    ...     export_table(store, folder / "table.jsonl", device="rk3588-a")
    Traceback (most recent call last):
    latency_tables.errors.TableError: no latencies of a device 'rk3588-a'; try: hilnas tables show
    """
    device_fp, space_id = find_table(store, device, space_id)
    known = store.device(device_fp)
    if known is None:
        raise CorruptTableError(f"{store.path} holds latencies of unknown device {device_fp}")
    header = export_header(store, device_fp, space_id, created=created, tool_version=tool_version)

    def records() -> Iterator[Measurement]:
        return store.measurements(device_fp=device_fp, space_id=space_id)

    if path.suffix in (".csv", ".parquet"):
        from latency_tables import tabular  # writes a header of this module

        if path.suffix == ".csv":
            return tabular.write_csv(path, records)
        return tabular.write_parquet(path, records, header)
    return write_table(path, header, [known], records())


def find_table(
    store: TableStore, device: str | None = None, space_id: str | None = None
) -> tuple[str, str]:
    """The fingerprint and the space of the one table that is meant.

    ``device`` is a name or a fingerprint; both may be left out where there is one. Raises
    TableError naming what there is.
    """
    tables = [s for s in store.summaries() if device in (None, s.device_name, s.device_fp)]
    chosen = {(s.device_fp, s.space_id) for s in tables if s.n_records}
    if space_id is not None:
        chosen = {pair for pair in chosen if pair[1] == space_id}
    if not chosen:
        whose = "any device" if device is None else f"a device {device!r}"
        about = "" if space_id is None else f" in space {space_id}"
        raise TableError(f"no latencies of {whose}{about}", hint="hilnas tables show")
    if len(chosen) > 1:
        pairs = ", ".join(f"{fp[:12]} in space {space[:12]}" for fp, space in sorted(chosen))
        raise TableError(
            f"{len(chosen)} tables fit: {pairs}",
            hint="name the device by its fingerprint and give --space",
        )
    return chosen.pop()


def export_header(
    store: TableStore,
    device_fp: str,
    space_id: str,
    *,
    created: str | None = None,
    tool_version: str = "",
) -> Header:
    """The header of one table of the store."""
    said = store.remarks(device_fp=device_fp, space_id=space_id)
    return Header(
        space=store.space(space_id) or SpaceInfo(space_id=space_id, name="", cost_table_hash=""),
        created=created or datetime.now(UTC).isoformat(timespec="seconds"),
        tool_version=tool_version,
        n_measurements=store.count(device_fp=device_fp, space_id=space_id),
        labels=labels(said),
        accepted=tuple(remark for remark in said if remark.kind == "accepted"),
    )


def write_table(
    path: Path, header: Header, devices: Iterable[Device], measurements: Iterable[Measurement]
) -> int:
    """Write a table file, whole or not at all; give the number of records."""
    return write_tables(path, [(header, devices, measurements)])


def write_tables(
    path: Path, sections: Iterable[tuple[Header, Iterable[Device], Iterable[Measurement]]]
) -> int:
    """Write tables of several spaces to one file, whole or not at all; give the records' number."""
    count = 0
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as stream:
        for header, devices, measurements in sections:
            stream.write(_line(header.to_dict()))
            for device in devices:
                entry = {"name": device.name, "fingerprint": device.fingerprint.to_dict()}
                stream.write(_line({"device": entry}))
            for measurement in measurements:
                stream.write(_line(_record(measurement)))
                count += 1
    return count


def read_table(path: Path) -> Iterator[Entry]:
    """Stream the entries of a table file, checked.

    Raises CorruptTableError naming file, line and field, and ForeignTableError for another format.
    """
    for _, entry in scan(path):
        if isinstance(entry, TableError):
            raise entry
        yield entry


def scan(path: Path) -> Iterator[tuple[int, Entry | TableError]]:
    """Stream every line's number with its entry, or with the error that it is.

    An error of the whole file (empty, cut) comes last, with the number 0. Raises TableError where
    the file cannot be read at all.
    """
    header: Header | None = None
    devices: set[str] = set()
    count = expected = number = 0
    for number, raw in _lines(path):
        try:
            entry = _checked(raw, header, devices)
        except TableError as error:
            if isinstance(error, CorruptTableError):
                error.hint = "ask for the file again, or import what is whole with --salvage"
            yield number, type(error)(f"{path}, line {number}: {error.message}", hint=error.hint)
            continue
        if isinstance(entry, Header):
            header, expected = entry, expected + entry.n_measurements
        elif isinstance(entry, Device):
            devices.add(entry.device_fp)
        else:
            count += 1
        yield number, entry
    if number == 0:
        yield (
            0,
            CorruptTableError(f"{path} is empty; a latency table begins with a header line"),
        )
    elif count < expected:
        yield (
            0,
            CorruptTableError(
                f"{path} ends after line {number} with {count} records; "
                f"its header promises {expected}",
                hint="the file was cut; ask for it again, or import what is whole with --salvage",
            ),
        )


def read_measurements(path: Path) -> list[Measurement]:
    """The records of a table file. Raises like :func:`read_table`."""
    return [entry for entry in read_table(path) if isinstance(entry, Measurement)]


def import_table(
    store: TableStore,
    path: Path,
    *,
    space_id: str | None = None,
    device_fp: str | None = None,
) -> Imported:
    """Add a table file to the store: union by key and run, all or nothing.

    Latencies of another device are kept apart by its fingerprint. With ``space_id`` or
    ``device_fp`` a table of another space or device is refused (ForeignTableError).
    """
    with store.transaction():
        importer = Importer(store, path, space_id=space_id, device_fp=device_fp)
        for entry in read_table(path):
            importer.add(entry)
        return importer.done()


class Importer:
    """Put the entries of one file into a store; used inside of a transaction."""

    def __init__(
        self,
        store: TableStore,
        path: Path,
        *,
        space_id: str | None = None,
        device_fp: str | None = None,
    ) -> None:
        self._store, self._path = store, path
        self._space_id, self._device_fp = space_id, device_fp
        self._n_read = self._n_new = 0
        self._devices: dict[str, Device] = {}
        self._spaces: dict[str, SpaceInfo] = {}
        self._headers: list[tuple[Header, set[str]]] = []

    def add(self, entry: Entry) -> None:
        """Store one entry. Raises ForeignTableError."""
        if isinstance(entry, Header):
            _refuse_other(self._path, "space", entry.space.space_id, self._space_id)
            self._store.add_space(entry.space)
            self._spaces[entry.space.space_id] = entry.space
            self._headers.append((entry, set()))
        elif isinstance(entry, Device):
            _refuse_other(self._path, "device", entry.device_fp, self._device_fp)
            self._devices[entry.device_fp] = entry
            self._store.add_device(entry.name, entry.fingerprint)
        else:
            self._n_read += 1
            self._n_new += self._store.add(entry)
            self._headers[-1][1].add(entry.device_fp)

    def done(self) -> Imported:
        """Store what the headers say about the tables, and tell what was imported."""
        for header, devices in self._headers:
            for remark in remarks_of(header, devices):
                self._store.add_remark(remark)
        return Imported(
            n_read=self._n_read,
            n_new=self._n_new,
            devices=tuple(self._devices.values()),
            spaces=tuple(self._spaces.values()),
        )


def remarks_of(header: Header, devices: Iterable[str]) -> list[Remark]:
    """What a header says about the tables of ``devices``, whose records follow it."""
    said = [
        Remark(
            device_fp=device_fp,
            space_id=header.space.space_id,
            setting="",
            kind="labels",
            name=claim,
            value=claim,
            utc=header.created,
        )
        for device_fp in sorted(devices)
        for claim in header.labels
    ]
    known = set(devices)
    return said + [remark for remark in header.accepted if remark.device_fp in known]


def _record(measurement: Measurement) -> dict[str, Any]:
    data = measurement.to_dict()
    return {"measurement": data, "key": measurement.key, "sha256": sha256_json(data)}


def _texts(fields: Fields, name: str) -> tuple[str, ...]:
    if not fields.optional(name):
        return ()
    texts = fields.items(name)
    if not all(isinstance(text, str) and len(text) <= MAX_TEXT for text in texts):
        fields.fail(name, f"must be a list of texts of at most {MAX_TEXT} characters")
    return tuple(sorted(set(texts)))


def _accepted(fields: Fields) -> tuple[Remark, ...]:
    if not fields.optional("accepted"):
        return ()
    return tuple(Remark.from_dict(item) for item in fields.items("accepted"))


def _line(data: dict[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":"), allow_nan=False) + "\n"


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Non-empty lines with their numbers; an absurdly long one is not read to its end."""
    try:
        with path.open("rb") as stream:
            number = 0
            while raw := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                part = raw
                while len(part) > MAX_LINE_BYTES and not part.endswith(b"\n"):
                    part = stream.readline(MAX_LINE_BYTES + 1)  # thrown away: nothing is that long
                if raw.strip():
                    yield number, raw
    except OSError as error:
        raise TableError(f"cannot read {path}: {error}") from error


def _checked(raw: bytes, header: Header | None, devices: set[str]) -> Entry:
    """The entry of one line, which must fit what stands above. Raises TableError."""
    if len(raw) > MAX_LINE_BYTES:
        raise CorruptTableError(f"longer than {MAX_LINE_BYTES} bytes")
    entry, seals = _entry(raw)
    if header is None and not isinstance(entry, Header):
        raise ForeignTableError(
            "the first line is not the header of a latency table, so units and space are unknown"
        )
    if header is not None and isinstance(entry, Measurement):
        _check_belongs(entry, header, devices)
        _check_seals(entry, seals)
    return entry


def _entry(raw: bytes) -> tuple[Entry, dict[str, Any]]:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise CorruptTableError(f"not UTF-8: {error}") from None
    data = parse_json(text)
    if not isinstance(data, dict):
        raise CorruptTableError("not a JSON object")
    if "format" in data:
        return Header.from_dict(data), {}
    if set(data) == {"device"}:
        fields = Fields(data["device"], "device")
        device = Device(
            name=fields.text("name"),
            fingerprint=DeviceFingerprint.from_dict(fields.take("fingerprint")),
        )
        fields.end()
        return device, {}
    if "measurement" in data and set(data) <= {"measurement", *_SEALS}:
        return Measurement.from_dict(data.pop("measurement")), data
    raise CorruptTableError("neither a header, nor {'device': …}, nor {'measurement': …}")


def _check_belongs(measurement: Measurement, header: Header, devices: set[str]) -> None:
    if measurement.space_id != header.space.space_id:
        raise CorruptTableError(
            f"measurement: field 'space_id' is {ascii(measurement.space_id)[:80]}; "
            f"the header says {header.space.space_id!r}"
        )
    if measurement.device_fp not in devices:
        raise CorruptTableError(
            f"measurement: field 'device_fp' is {ascii(measurement.device_fp)[:80]}; "
            "no device line above has this fingerprint"
        )


def _check_seals(measurement: Measurement, seals: dict[str, Any]) -> None:
    """Refuse a record whose key or content are not those that were written."""
    if "key" in seals and seals["key"] != measurement.key:
        raise CorruptTableError(
            f"field 'key' is {ascii(seals['key'])[:80]}; "
            f"network, runtime, threads, cores and device give {measurement.key}"
        )
    if "sha256" in seals and seals["sha256"] != sha256_json(measurement.to_dict()):
        raise CorruptTableError(
            "field 'sha256' does not fit the measurement: it was changed after it was written "
            "(whoever changes one on purpose leaves 'sha256' out)"
        )


def _refuse_other(path: Path, what: str, found: str, expected: str | None) -> None:
    if expected is not None and found != expected:
        raise ForeignTableError(
            f"{path} is a table of {what} {found[:12]}, not of {expected[:12]}",
            hint=f"leave out --{what} to keep it beside yours",
        )
