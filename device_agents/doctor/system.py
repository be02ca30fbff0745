"""Checks of what every board has: Python, C library, room, load, clocks' source."""

from __future__ import annotations

import re

from device_agents.devices import DeviceSpec
from device_agents.doctor.check import Check, Probe, items, mib, number, text

MIN_PYTHON = (3, 7)
WHEELS_PYTHON = (3, 8)
"""The oldest Python with aarch64 wheels that the bootstrap still installs."""
WHEELS_GLIBC = (2, 27)
MIN_DISK_BYTES = 128 << 20
GOOD_DISK_BYTES = 1 << 30
MIN_MEMORY_BYTES = 128 << 20
BUSY_LOAD = 0.3
BUSY_PRESSURE = 5.0
SLOW_CLOCKS = ("jiffies", "refined-jiffies", "hpet", "acpi_pm")


def python(said: Probe, device: DeviceSpec) -> Check:
    """The interpreter that runs the agent."""
    version = text(said, "python", 30)
    known = _version(version)
    if known is None:
        return Check(name="python", state="unknown", evidence=f"{version!r} is no version")
    evidence = f"{device.python} is Python {version}"
    if known < MIN_PYTHON:
        return Check(
            name="python",
            state="fail",
            evidence=f"{evidence}; the agent needs 3.7 or newer",
            remedy=f"hilnas devices bootstrap {device.name} --python-tar FILE",
        )
    if known < WHEELS_PYTHON:
        return Check(
            name="python",
            state="warn",
            evidence=f"{evidence}; runtimes are published for 3.8 and newer",
            remedy=f"hilnas devices bootstrap {device.name} --python-tar FILE",
        )
    return Check(name="python", state="ok", evidence=evidence)


def libc(said: Probe) -> Check:
    """The C library, which decides which wheels fit."""
    name = text(said, "libc", 60)
    if name.startswith("glibc"):
        version = _version(name)
        if version is not None and version < WHEELS_GLIBC:
            return Check(
                name="libc",
                state="warn",
                evidence=f"{name}; onnxruntime newer than 1.16 needs glibc 2.27",
                remedy="a newer system image gives newer runtimes",
            )
        return Check(name="libc", state="ok", evidence=name)
    if "musl" in name:
        return Check(
            name="libc",
            state="warn",
            evidence=f"{name}; wheels of onnxruntime need glibc",
            remedy="a system image with glibc",
        )
    return Check(name="libc", state="unknown", evidence=name or "the board does not tell")


def architecture(said: Probe) -> Check:
    """The processor's architecture."""
    machine = text(said, "machine", 40)
    evidence = "; ".join(filter(None, (machine, text(said, "soc", 80), text(said, "os", 80))))
    if machine in ("aarch64", "x86_64"):
        return Check(name="architecture", state="ok", evidence=evidence)
    return Check(
        name="architecture",
        state="warn" if machine else "unknown",
        evidence=evidence or "the board does not tell",
        remedy="runtimes are published for aarch64 and x86_64; others must be built by hand"
        if machine
        else "",
    )


def disk(said: Probe, device: DeviceSpec, workdir: str) -> Check:
    """Room in the work folder."""
    free = number(said, "disk_free_bytes")
    if free is None:
        return Check(name="disk", state="unknown", evidence=f"{workdir}: the board does not tell")
    evidence = f"{mib(free)} free in {workdir}"
    if free >= GOOD_DISK_BYTES:
        return Check(name="disk", state="ok", evidence=evidence)
    return Check(
        name="disk",
        state="fail" if free < MIN_DISK_BYTES else "warn",
        evidence=evidence,
        remedy=f"hilnas devices clean {device.name}, or a workdir on a larger partition",
    )


def memory(said: Probe) -> Check:
    """Memory that a network can have."""
    now = said.get("now")
    available = number(now, "memory_available_bytes") if isinstance(now, dict) else None
    total = number(said, "memory_total_bytes")
    if available is None:
        return Check(name="memory", state="unknown", evidence="the board does not tell")
    evidence = f"{mib(available)} available" + (f" of {mib(total)}" if total else "")
    if available >= MIN_MEMORY_BYTES:
        return Check(name="memory", state="ok", evidence=evidence)
    remedy = "stop other programs; large networks will be ended for lack of memory"
    return Check(name="memory", state="warn", evidence=evidence, remedy=remedy)


def clock_source(said: Probe) -> Check:
    """What the kernel takes the time from."""
    source = text(said, "clock_source", 40)
    if not source:
        return Check(name="clock source", state="unknown", evidence="the board does not tell")
    if source in SLOW_CLOCKS:
        remedy = "short networks are timed badly; see the kernel's clocksource parameter"
        return Check(name="clock source", state="warn", evidence=source, remedy=remedy)
    return Check(name="clock source", state="ok", evidence=source)


def load(said: Probe) -> Check:
    """What else the board does now."""
    now = said.get("now")
    now = now if isinstance(now, dict) else {}
    average, psi = number(now, "load_average"), now.get("psi")
    pressures = {
        name: value
        for name in ("cpu", "io", "memory")
        if isinstance(psi, dict) and (value := number(psi, name)) is not None
    }
    if average is None and not pressures:
        return Check(name="load", state="unknown", evidence="the board does not tell")
    seen = [] if average is None else [f"load average {average:.2f}"]
    seen += [f"{name} pressure {value:.1f} %" for name, value in pressures.items()]
    if not pressures:
        seen.append("this kernel tells no pressure")
    busy = (average or 0) > BUSY_LOAD or any(v > BUSY_PRESSURE for v in pressures.values())
    return Check(
        name="load",
        state="warn" if busy else "ok",
        evidence=", ".join(seen),
        remedy="stop other programs, or measure when the board is idle" if busy else "",
    )


def energy(said: Probe) -> Check:
    """Whether energy can be told."""
    sensors = [text(sensor, "name", 60) for sensor in items(said, "power_sensors")]
    if sensors:
        return Check(name="energy", state="ok", evidence=f"sensors: {', '.join(sensors[:8])}")
    return Check(
        name="energy",
        state="unknown",
        evidence="no sensor: this board cannot tell its power",
        remedy="a current sensor (hwmon), if energy matters",
    )


def _version(name: str) -> tuple[int, int] | None:
    found = re.search(r"(\d{1,4})\.(\d{1,4})", name)
    return (int(found[1]), int(found[2])) if found else None
