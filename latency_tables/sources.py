"""Read a table wherever it lies: the store of a person, or a file that somebody sent.

Both are read in the same shape, so that verifying, comparing and merging need not know which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from latency_tables.errors import ForeignTableError, TableError
from latency_tables.interchange import Entry, Header, read_table, remarks_of
from latency_tables.records import Measurement
from latency_tables.remarks import Remark
from latency_tables.store import Device, SpaceInfo, TableStore

_MAGIC = b"SQLite format 3\x00"


def is_store(path: Path) -> bool:
    """Whether a file begins like SQLite. Raises TableError where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise TableError(
            f"cannot read {path}: {error.strerror or error}", hint="hilnas tables show"
        ) from error


@dataclass(slots=True, kw_only=True)
class Contents:
    """Everything that a source says, but for its records."""

    spaces: dict[str, SpaceInfo] = field(default_factory=dict)
    devices: list[Device] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)

    def add_space(self, space: SpaceInfo) -> None:
        """Add a space; what one source does not know of it another one may.

        Raises ForeignTableError where two sources know it with different cost tables.
        """
        known = self.spaces.setdefault(space.space_id, space)
        hashes = {known.cost_table_hash, space.cost_table_hash} - {""}
        if len(hashes) > 1:
            raise ForeignTableError(
                f"space {space.name!r} has cost table {known.cost_table_hash[:12]} in one source "
                f"and {space.cost_table_hash[:12]} in another: its names mean different networks",
                hint="keep the tables in separate files",
            )
        self.spaces[space.space_id] = SpaceInfo(
            space_id=space.space_id,
            name=min({known.name, space.name} - {""}, default=""),
            cost_table_hash=min(hashes, default=""),
        )


def read(path: Path, contents: Contents) -> Iterator[Measurement]:
    """Stream the records of a store or a file and fill ``contents`` on the way.

    Rejected records come as well: whoever reads asks :attr:`Measurement.ok`. Raises TableError.
    """
    if is_store(path):
        with TableStore(path, read_only=True) as store:
            yield from read_store(store, contents)
    else:
        yield from _read_file(read_table(path), contents)


def read_store(store: TableStore, contents: Contents) -> Iterator[Measurement]:
    """:func:`read` of an open store."""
    contents.devices += store.devices()
    for space in store.spaces():
        contents.add_space(space)
    contents.remarks += store.remarks()
    yield from store.measurements()
    for rejected in store.rejected():
        yield rejected.measurement


def _read_file(entries: Iterator[Entry], contents: Contents) -> Iterator[Measurement]:
    header: Header | None = None
    devices: set[str] = set()
    for entry in entries:
        if isinstance(entry, Header):
            _close(header, devices, contents)
            header, devices = entry, set()
            contents.add_space(entry.space)
        elif isinstance(entry, Device):
            contents.devices.append(entry)
        else:
            devices.add(entry.device_fp)
            yield entry
    _close(header, devices, contents)


def _close(header: Header | None, devices: set[str], contents: Contents) -> None:
    if header is not None:
        contents.remarks += remarks_of(header, devices)
