"""The whole job: ask the board, choose, fetch, push, install, test. Doing it again changes nothing.

>>> from device_agents.bootstrap.job import bootstrap   # doctest: +SKIP
>>> with_board = bootstrap(transport, device, cache=Path("cache"), on_note=print)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from device_agents.bootstrap.choose import OTHER_PYTHON, Plan, choose
from device_agents.bootstrap.install import check, install, read_site, wanted
from device_agents.bootstrap.lock import (
    LockFile,
    find_lock,
    known_hashes,
    lock_path,
    refuse_changed,
    write_lock,
)
from device_agents.bootstrap.python_tar import install_python
from device_agents.bootstrap.target import Board, Target, probe
from device_agents.bootstrap.wheels import Note, Wheel, download, from_wheelhouse
from device_agents.devices import DeviceSpec
from device_agents.link.transport import Transport
from latency_tables.errors import BootstrapError


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What a board has now: ``packages`` are all wheels, ``imported`` the versions it said.

    A runtime that was there before stays beside the new one.
    ``python`` belongs into the device's entry where ``python_changed``. ``site`` is the folder on
    the board. ``fresh`` is False where everything was there already.
    """

    python: str
    python_changed: bool
    packages: Mapping[str, str]
    imported: Mapping[str, str]
    site: str
    lock_hash: str
    target: Target
    fresh: bool
    notes: tuple[str, ...] = field(default=())


def bootstrap(
    transport: Transport,
    device: DeviceSpec,
    *,
    runtime: str = "onnxruntime",
    wheelhouse: Path | None = None,
    python_tar: Path | None = None,
    cache: Path,
    on_note: Note = lambda note: None,
) -> Installed:
    """Bring ``runtime`` to the board behind ``transport``, which is open.

    ``wheelhouse`` is a folder of wheels to use instead of the network; ``python_tar`` a Python for
    a board without a fitting one; ``cache`` keeps wheels and locks on the host. Nobody may measure
    on the board meanwhile: the session of an agent must be closed.

    Raises BootstrapError (says what is allowed), DeviceDiskFullError, LeasedError, LinkLostError;
    whatever happens, the packages that were in use stay in use.
    """
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        on_note(text)

    def fits(target: Target) -> bool:
        try:
            choose(target, runtime)
        except BootstrapError:
            return False
        return True

    board = probe(transport, device.python, enough=fits)
    if python_tar is not None:
        python = install_python(transport, board, python_tar, cache, note)
        board = probe(transport, python, enough=lambda target: True)
    target, plan = select(board, runtime, exact=python_tar is not None)
    python = target.executable
    site = read_site(transport, python)
    if beside := site.beside(target.abi, runtime):
        plan = choose(target, runtime, beside=beside)
    note(f"{target}: {', '.join(f'{pin.name} {pin.version}' for pin in plan.packages)}")
    lock, wheels = _resolve(plan, wheelhouse, cache, note)
    want = wanted(site, runtime, target.abi, lock)
    checked = check(transport, python, want)
    fresh = site.current != want.lock.hash or checked.versions is None
    if fresh:
        wheels = wheels or download(plan, lock, cache / "wheels", note)
        versions = install(
            transport,
            python,
            want,
            wheels,
            site,
            checked,
            free_bytes=board.free_bytes,
            on_note=note,
        )
    else:
        versions = checked.versions or {}
        note(f"{runtime} is already there")
    return Installed(
        python=python,
        python_changed=not _same_python(board, device.python, python),
        packages={w.name: w.version for w in want.lock.wheels},
        site=f"{transport.workdir}/site/{want.lock.hash}",
        lock_hash=want.lock.hash,
        imported=versions,
        target=target,
        fresh=fresh,
        notes=tuple(notes),
    )


def select(board: Board, runtime: str, *, exact: bool = False) -> tuple[Target, Plan]:
    """The Python to use: the first one for which there are wheels; ``exact``: only the first.

    Raises BootstrapError: without any Python, or the reason why the preferred one will not do.
    """
    if not board.targets:
        libc = f"{board.libc[0]} {'.'.join(map(str, board.libc[1]))}"
        raise BootstrapError(
            f"the board ({board.machine}, {libc}) has no Python 3 that runs",
            hint=f"install the board's python3 package, or {OTHER_PYTHON}",
        )
    reason: BootstrapError | None = None
    for target in board.targets[:1] if exact else board.targets:
        try:
            return target, choose(target, runtime)
        except BootstrapError as error:
            reason = reason or error
    assert reason is not None  # at least one target was refused
    raise reason


def _same_python(board: Board, wanted: str, python: str) -> bool:
    """Whether the inventory's interpreter is the one that was used."""
    return wanted == python or (board.targets[0].executable == python and "/" not in wanted)


def _resolve(
    plan: Plan, wheelhouse: Path | None, cache: Path, note: Note
) -> tuple[LockFile, list[Wheel]]:
    """The lock of this job, and its wheels where they had to be looked at to know it."""
    if wheelhouse is not None:
        wheels = from_wheelhouse(wheelhouse, plan, note)
        key = f"{plan.key}-wheelhouse"
    else:
        found = find_lock(cache, plan)
        if found is not None:
            return found, []
        note(f"no lock for {plan.key} yet: the hashes of this download are kept")
        wheels, key = download(plan, None, cache / "wheels", note), plan.key
    lock = LockFile(key=key, wheels=tuple(wheel.locked for wheel in wheels))
    refuse_changed(lock.wheels, known_hashes(cache))
    write_lock(lock_path(cache, key), lock)
    return lock, wheels
