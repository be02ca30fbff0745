"""Hash-locked lists of wheels, one per runtime, Python ABI, processor and C library.

A lock holds names and hashes, nothing that says where a file came from. Locks of what was resolved
here are shipped; others are made at the first download and kept in the user's cache. Once a file
name is locked, another content under that name is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from device_agents.bootstrap.choose import Plan
from latency_tables.errors import BootstrapError
from latency_tables.files import sha256_json, write_json

SCHEMA = 1
_FILENAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,250}\.whl\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """One wheel."""

    name: str
    version: str
    filename: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LockFile:
    """The wheels of one plan, in the order of its packages."""

    key: str
    wheels: tuple[Locked, ...]

    @property
    def hash(self) -> str:
        """A name that follows from the files' contents: equal wheels give an equal name.

        >>> LockFile(key="a", wheels=()).hash == LockFile(key="b", wheels=()).hash
        True
        """
        return sha256_json(sorted((w.filename, w.sha256) for w in self.wheels))[:16]

    def serves(self, plan: Plan) -> bool:
        """Whether these are the packages and versions of ``plan``."""
        mine = {(wheel.name, wheel.version) for wheel in self.wheels}
        return mine == {(pin.name, pin.version) for pin in plan.packages}


def lock_path(cache: Path, key: str) -> Path:
    """Where the cache keeps a lock."""
    return cache / "locks" / f"{key}.json"


def shipped_locks() -> tuple[LockFile, ...]:
    """Every lock that comes with this package."""
    folder = files("device_agents.bootstrap") / "locks"
    found = (item for item in folder.iterdir() if item.name.endswith(".json"))
    return tuple(
        _parse(item.read_text(), item.name) for item in sorted(found, key=lambda i: i.name)
    )


def find_lock(cache: Path, plan: Plan) -> LockFile | None:
    """The lock to install ``plan`` by: the shipped one, else the one in the cache, else None.

    Where no lock has just these packages (the numpy is held back by another runtime, say), they
    are put together from the shipped ones of the same Python, processor and C library.
    Raises BootstrapError where the cached one is damaged.
    """
    shipped = shipped_locks()
    path = lock_path(cache, plan.key)
    cached = [read_lock(path)] if path.exists() else []
    for lock in [*shipped, *cached]:
        if lock.key == plan.key and lock.serves(plan):
            return lock
    family = plan.key.removeprefix(plan.runtime).rpartition("-")[0]
    known = {
        (wheel.name, wheel.version): wheel
        for lock in shipped
        if lock.key.rpartition("-")[0].endswith(family) and _runs(lock, plan)
        for wheel in lock.wheels
    }
    found = [known.get((pin.name, pin.version)) for pin in plan.packages]
    wheels = tuple(wheel for wheel in found if wheel is not None)
    return LockFile(key=plan.key, wheels=wheels) if len(wheels) == len(found) else None


def _runs(lock: LockFile, plan: Plan) -> bool:
    """Whether the lock's C library is not newer than the plan's."""
    match = re.search(r"-(glibc|musl)([0-9]+)\.([0-9]+)\Z", lock.key)
    return match is not None and (match[1], (int(match[2]), int(match[3]))) <= plan.libc


def known_hashes(cache: Path) -> dict[str, str]:
    """File name → SHA-256 of every wheel that any lock names; shipped locks win."""
    found: dict[str, str] = {}
    cached = (read_lock(path) for path in sorted((cache / "locks").glob("*.json")))
    for lock in (*cached, *shipped_locks()):
        found.update({wheel.filename: wheel.sha256 for wheel in lock.wheels})
    return found


def refuse_changed(wheels: Iterable[Locked], known: Mapping[str, str]) -> None:
    """Raise BootstrapError where a locked file name comes with another content."""
    for wheel in wheels:
        locked = known.get(wheel.filename, wheel.sha256)
        if locked != wheel.sha256:
            raise BootstrapError(
                f"{wheel.filename} has the SHA-256 {wheel.sha256}, it is locked to {locked}",
                hint="fetch the file again; a build of your own needs a version of its own",
            )


def read_lock(path: Path) -> LockFile:
    """Read a lock. Raises BootstrapError."""
    try:
        return _parse(path.read_text(), str(path))
    except OSError as error:
        raise BootstrapError(f"the lock {path} cannot be read: {error.strerror}") from None


def write_lock(path: Path, lock: LockFile) -> None:
    """Write a lock, whole or not at all."""
    wheels = [asdict(wheel) for wheel in lock.wheels]
    write_json(path, {"schema": SCHEMA, "key": lock.key, "wheels": wheels})


def _parse(text: str, where: str) -> LockFile:
    try:
        data: dict[str, Any] = json.loads(text)
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']!r}, known is {SCHEMA}")
        lock = LockFile(
            key=str(data["key"]), wheels=tuple(Locked(**wheel) for wheel in data["wheels"])
        )
        for wheel in lock.wheels:
            if not (
                _FILENAME.match(wheel.filename)
                and _SHA256.match(wheel.sha256)
                and type(wheel.size) is int
                and wheel.size > 0
            ):
                raise ValueError(f"wheel {wheel.filename[:80]!r}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BootstrapError(
            f"the lock {where} is damaged: {error}", hint="remove it; it is made again"
        ) from None
    return lock
