"""Choose the newest runtime that a board can run: a pure function of what the board is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from device_agents.bootstrap.releases import RELEASES, RUNTIMES, Libc, Release, Version
from device_agents.bootstrap.target import Target
from latency_tables.errors import BootstrapError, UsageError

OTHER_PYTHON = "hilnas devices bootstrap NAME --python-tar FILE with a Python that is allowed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One package at one version."""

    name: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to install for ``runtime``; ``platform_tags`` are all that run there, best first.

    ``libc`` is the oldest C library that all packages accept: boards that differ only above it
    share one plan, and one lock of the name ``key``.
    """

    runtime: str
    packages: tuple[Pin, ...]
    platform_tags: tuple[str, ...]
    python: tuple[int, int]
    abi: str
    machine: str
    libc: Libc

    @property
    def key(self) -> str:
        """Name of the lock, such as ``onnxruntime-cp311-aarch64-glibc2.28``."""
        name, version = self.libc
        return f"{self.runtime}-{self.abi}-{self.machine}-{name}{_text(version)}"

    @property
    def common_tags(self) -> tuple[str, ...]:
        """The platform tags that every board of this plan accepts: what is downloaded."""
        return platform_tags(self.libc, self.machine)


def choose(target: Target, runtime: str, *, beside: Iterable[str] = ()) -> Plan:
    """The newest release of ``runtime`` for ``target``, and a numpy that goes with it.

    ``beside`` are other runtimes of the same board: the numpy must go with them too.

    Raises BootstrapError saying what is allowed, UsageError for a runtime that no table lists.

    >>> board = Target(python=(3, 8), abi="cp38", libc=("glibc", (2, 31)), machine="aarch64")
    >>> [f"{pin.name} {pin.version}" for pin in choose(board, "onnxruntime").packages]
    ['onnxruntime 1.19.2', 'numpy 1.24.4']
    """
    if runtime not in RUNTIMES:
        raise UsageError(
            f"runtime {runtime!r} cannot be brought to a board; allowed: {', '.join(RUNTIMES)}"
        )
    _check_interpreter(target)
    main, *others = RUNTIMES[runtime]
    ceilings = [_ceiling(RUNTIMES[name][0], target) for name in beside if name in RUNTIMES]
    for release in _fitting(main, target):
        chosen = {main: release}
        for name in others:
            below = [c for c in (release.numpy_below, *ceilings) if c and name == "numpy"]
            for other in _fitting(name, target):
                if all(other.version < ceiling for ceiling in below):
                    chosen[name] = other
                    break
        if len(chosen) == 1 + len(others):
            return _plan(target, runtime, chosen)
    raise _impossible(target, main)


def platform_tags(libc: Libc, machine: str) -> tuple[str, ...]:
    """Names of the platforms whose wheels run there, the most specific one first.

    >>> platform_tags(("glibc", (2, 18)), "aarch64")
    ('manylinux_2_18_aarch64', 'manylinux_2_17_aarch64', 'manylinux2014_aarch64')
    """
    name, (major, minor, *_) = libc
    if name == "musl":
        return tuple(f"musllinux_{major}_{m}_{machine}" for m in range(minor, -1, -1))
    oldest = 5 if machine == "x86_64" else 17
    legacy = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
    tags = []
    for m in range(minor, oldest - 1, -1):
        tags.append(f"manylinux_{major}_{m}_{machine}")
        if m in legacy:
            tags.append(f"{legacy[m]}_{machine}")
    return tuple(tags)


def _check_interpreter(target: Target) -> None:
    if target.implementation != "cpython":
        raise BootstrapError(
            f"{target.executable} is {target.implementation}; wheels of the runtimes are for "
            "CPython only",
            hint=OTHER_PYTHON,
        )
    if target.missing_modules:
        raise BootstrapError(
            f"{target.executable} lacks the standard modules {', '.join(target.missing_modules)}, "
            "which unpacking and measuring need",
            hint=f"install the board's full Python package, or {OTHER_PYTHON}",
        )


def _ceiling(main: str, target: Target) -> Version:
    """The first numpy that the newest fitting release was not built for, () where any will do."""
    return next((release.numpy_below for release in _fitting(main, target)), ())


def _fitting(name: str, target: Target) -> Iterable[Release]:
    return (release for release in RELEASES[name] if _fits(release, target))


def _fits(release: Release, target: Target) -> bool:
    name, version = release.libc
    return (
        target.abi in release.abis
        and target.machine in release.machines
        and target.libc[0] == name
        and target.libc[1] >= version
        and (target.glibcxx is None or target.glibcxx >= release.glibcxx)
    )


def _plan(target: Target, runtime: str, chosen: dict[str, Release]) -> Plan:
    return Plan(
        runtime=runtime,
        packages=tuple(Pin(name=name, version=r.text) for name, r in chosen.items()),
        platform_tags=platform_tags(target.libc, target.machine),
        python=target.python,
        abi=target.abi,
        machine=target.machine,
        libc=max(release.libc for release in chosen.values()),
    )


def _impossible(target: Target, name: str) -> BootstrapError:
    """Name the first thing that rules every release out, and what would do instead."""
    rows = RELEASES[name]
    what = f"no wheel of {name} runs on {target}"
    machines = sorted({m for row in rows for m in row.machines})
    if target.machine not in machines:
        allowed = f"there are wheels for {', '.join(machines)}"
        if target.machine == "armv7l" and target.kernel_machine == "aarch64":
            return BootstrapError(
                f"{what}: its programs are 32-bit on a 64-bit kernel; {allowed}",
                hint=f"a 64-bit image, or {OTHER_PYTHON} (64-bit)",
            )
        return BootstrapError(f"{what}: {allowed}", hint="build the runtime for that board")
    rows = tuple(row for row in rows if target.machine in row.machines)
    kinds = sorted({row.libc[0] for row in rows})
    if target.libc[0] not in kinds:
        return BootstrapError(
            f"{what}: its C library is {target.libc[0]}, there are wheels for {', '.join(kinds)}",
            hint="an image with glibc (Debian, Ubuntu, Armbian), or build the runtime for it",
        )
    rows = tuple(row for row in rows if row.libc[0] == target.libc[0])
    here = tuple(row for row in rows if target.libc[1] >= row.libc[1])
    if not here:
        oldest = min(row.libc[1] for row in rows)
        return BootstrapError(f"{what}: {target.libc[0]} {_text(oldest)} or newer is needed")
    if target.glibcxx is not None:
        needed = min(row.glibcxx for row in here)
        if target.glibcxx < needed:
            has = f"has GLIBCXX_{_text(target.glibcxx)}" if target.glibcxx else "has no libstdc++"
            return BootstrapError(
                f"{what}: it {has}, GLIBCXX_{_text(needed)} is needed",
                hint="install the board's libstdc++6 package",
            )
    abis = ", ".join(_python(abi) for abi in _abis(here))
    return BootstrapError(f"{what}: allowed there is Python {abis}", hint=OTHER_PYTHON)


def _abis(rows: Iterable[Release]) -> list[str]:
    found = {abi for row in rows for abi in row.abis}
    return sorted(found, key=lambda abi: (abi.endswith("t"), int(abi.strip("cpmt"))))


def _python(abi: str) -> str:
    digits = abi.strip("cpmt")
    return f"{digits[0]}.{digits[1:]}" + (" free-threaded" if abi.endswith("t") else "")


def _text(version: Version) -> str:
    return ".".join(map(str, version))
