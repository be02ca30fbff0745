"""Latency tables as text: JSON lines that can be read, compared, joined and sent.

The first line is a header, then come the devices, then one record per line::

    {"format": "hilnas-latency-table/1", "units": {"time": "ns", "memory": "bytes"}, "space": …}
    {"device": {"name": "local", "fingerprint": {…}}}
    {"measurement": {…}}

Files of one format may be joined by ``cat`` and appended to: further header lines are read as
such, and ``n_measurements`` of a header is the least number of records that must follow it, so that
a file cut at the end of a line is noticed. Both directions stream; a file ends up whole or not at
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
from latency_tables.fields import Fields, parse_json
from latency_tables.files import replacing
from latency_tables.records import DeviceFingerprint, Measurement
from latency_tables.store import Device, SpaceInfo, TableStore

FORMAT = "hilnas-latency-table/1"
UNITS = {"time": "ns", "memory": "bytes"}
MAX_LINE_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first line of a table: what the records below are about."""

    space: SpaceInfo
    created: str
    tool_version: str
    n_measurements: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The header line as a dictionary."""
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

    ``device`` is a name or a fingerprint; it and ``space_id`` may be left out where the store has
    one of them. Rejected records stay where they are. Raises TableError where ``device`` and
    ``space_id`` do not name one table.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with TableStore(folder / "tables.sqlite") as store:
    ...     export_table(store, folder / "table.jsonl", device="rk3588-a")
    Traceback (most recent call last):
    latency_tables.errors.TableError: no latencies of a device 'rk3588-a'; try: hilnas tables show
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
    device_fp, space_id = chosen.pop()
    known = store.device(device_fp)
    if known is None:
        raise CorruptTableError(f"{store.path} holds latencies of unknown device {device_fp}")
    header = Header(
        space=store.space(space_id) or SpaceInfo(space_id=space_id, name="", cost_table_hash=""),
        created=created or datetime.now(UTC).isoformat(timespec="seconds"),
        tool_version=tool_version,
        n_measurements=store.count(device_fp=device_fp, space_id=space_id),
    )
    return write_table(
        path, header, [known], store.measurements(device_fp=device_fp, space_id=space_id)
    )


def write_table(
    path: Path, header: Header, devices: Iterable[Device], measurements: Iterable[Measurement]
) -> int:
    """Write a table file, whole or not at all; give the number of records."""
    count = 0
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(_line(header.to_dict()))
        for device in devices:
            entry = {"name": device.name, "fingerprint": device.fingerprint.to_dict()}
            stream.write(_line({"device": entry}))
        for measurement in measurements:
            stream.write(_line({"measurement": measurement.to_dict()}))
            count += 1
    return count


def read_table(path: Path) -> Iterator[Entry]:
    """Stream the entries of a table file, checked.

    Raises CorruptTableError naming file, line and field, and ForeignTableError for another format.
    """
    header: Header | None = None
    devices: set[str] = set()
    count = expected = number = 0
    for number, raw in _lines(path):
        try:
            entry = _entry(raw)
            if isinstance(entry, Header):
                header, expected = entry, expected + entry.n_measurements
            elif header is None:
                raise ForeignTableError("the first line is not the header of a latency table")
            elif isinstance(entry, Device):
                devices.add(entry.device_fp)
            else:
                count += 1
                _check_belongs(entry, header, devices)
        except ForeignTableError as error:
            raise ForeignTableError(f"{path}, line {number}: {error.message}") from None
        except CorruptTableError as error:
            raise CorruptTableError(
                f"{path}, line {number}: {error.message}",
                hint="ask for the file again, or delete the line and import the rest",
            ) from None
        yield entry
    if header is None:
        raise CorruptTableError(f"{path} is empty; a latency table begins with a header line")
    if count < expected:
        raise CorruptTableError(
            f"{path} ends after line {number} with {count} records; its header promises {expected}",
            hint="the file was cut; ask for it again",
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
    n_read = n_new = 0
    devices: dict[str, Device] = {}
    spaces: dict[str, SpaceInfo] = {}
    with store.transaction():
        for entry in read_table(path):
            if isinstance(entry, Header):
                _refuse_other(path, "space", entry.space.space_id, space_id)
                spaces[entry.space.space_id] = entry.space
                store.add_space(entry.space)
            elif isinstance(entry, Device):
                _refuse_other(path, "device", entry.device_fp, device_fp)
                devices[entry.device_fp] = entry
                store.add_device(entry.name, entry.fingerprint)
            else:
                n_read += 1
                n_new += store.add(entry)
    return Imported(
        n_read=n_read,
        n_new=n_new,
        devices=tuple(devices.values()),
        spaces=tuple(spaces.values()),
    )


def _line(data: dict[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":"), allow_nan=False) + "\n"


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Non-empty lines with their numbers; an absurdly long one is not read to its end."""
    try:
        with path.open("rb") as stream:
            number = 0
            while raw := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(raw) > MAX_LINE_BYTES:
                    raise CorruptTableError(
                        f"{path}, line {number}: longer than {MAX_LINE_BYTES} bytes"
                    )
                if raw.strip():
                    yield number, raw
    except OSError as error:
        raise TableError(f"cannot read {path}: {error}") from error


def _entry(raw: bytes) -> Entry:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise CorruptTableError(f"not UTF-8: {error}") from None
    data = parse_json(text)
    if not isinstance(data, dict):
        raise CorruptTableError("not a JSON object")
    if "format" in data:
        return Header.from_dict(data)
    if set(data) == {"device"}:
        fields = Fields(data["device"], "device")
        device = Device(
            name=fields.text("name"),
            fingerprint=DeviceFingerprint.from_dict(fields.take("fingerprint")),
        )
        fields.end()
        return device
    if set(data) == {"measurement"}:
        return Measurement.from_dict(data["measurement"])
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


def _refuse_other(path: Path, what: str, found: str, expected: str | None) -> None:
    if expected is not None and found != expected:
        raise ForeignTableError(
            f"{path} is a table of {what} {found[:12]}, not of {expected[:12]}",
            hint=f"leave out --{what} to keep it beside yours",
        )
