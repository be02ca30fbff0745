"""From a probe to a fingerprint: what must match between two latencies, and what may move."""

from __future__ import annotations

from typing import Any

from device_agents.client import clean_text
from latency_tables.errors import MissingRuntimeError, UsageError
from latency_tables.records import DeviceFingerprint

_IDENTITY = ("soc", "compatible", "cpu_models", "cpu_parts", "cpu_count", "hypervisor", "machine")
_MORE_IDENTITY = ("serial_sha256", "kernel", "libc")
_MEMORY_STEP = 1 << 28


def fingerprint(probe: dict[str, Any]) -> DeviceFingerprint:
    """Identity (SoC, cores, clocks' limits, memory, kernel, libc) and state of a board.

    Memory is rounded to 256 MiB, because the kernel reserves a little more or less at each boot.
    The runtime is no part of it: it is in every measurement's key already.
    """
    policies = [p for p in probe.get("policies") or [] if isinstance(p, dict)]
    memory = probe.get("memory_total_bytes")
    identity = {name: clean_json(probe.get(name)) for name in (*_IDENTITY, *_MORE_IDENTITY)}
    identity["memory_total_bytes"] = (
        round(memory / _MEMORY_STEP) * _MEMORY_STEP if isinstance(memory, int) else None
    )
    identity["policies"] = [
        {name: clean_json(p.get(name)) for name in ("name", "cores", "hardware_max_khz")}
        for p in policies
    ]
    now = probe.get("now")
    now = now if isinstance(now, dict) else {}
    state = {
        "policies": clean_json(policies),
        "load_average": clean_json(now.get("load_average")),
        "memory_available_bytes": clean_json(now.get("memory_available_bytes")),
        "thermal_zones": clean_json(now.get("thermal_zones")),
        "cooling_devices": clean_json(now.get("cooling_devices")),
        "python": clean_json(probe.get("python")),
    }
    return DeviceFingerprint(identity=identity, state=state)


def runtime_of(probe: dict[str, Any], name: str, optimization: str) -> dict[str, Any]:
    """The runtime part of a record. Raises MissingRuntimeError saying what the board has."""
    offered = [r for r in probe.get("runtimes") or [] if isinstance(r, dict)]
    for runtime in offered:
        if runtime.get("name") == name and isinstance(runtime.get("version"), str):
            return {
                "name": name,
                "version": clean_text(runtime["version"], 60),
                "provider": clean_text(runtime.get("provider", ""), 60),
                "graph_optimization": optimization,
            }
    broken = "; ".join(clean_text(r["broken"], 300) for r in offered if r.get("broken"))
    problem = broken or clean_text(probe.get("runtimes_problem") or "it cannot be imported", 300)
    raise MissingRuntimeError(
        f"runtime {name!r} does not work on the device: {problem}",
        hint=f"install {name} for the Python that runs the agent",
    )


def cores_of(probe: dict[str, Any], asked: tuple[int, ...], threads: int) -> tuple[int, ...]:
    """The cores to pin to: those asked for, else the last ``threads`` allowed ones.

    Raises UsageError where there are fewer.
    """
    if asked:
        return asked
    allowed = [c for c in probe.get("allowed_cores") or [] if type(c) is int and c >= 0]
    if len(allowed) < threads:
        raise UsageError(f"{threads} threads were asked for, the device offers cores {allowed}")
    return tuple(sorted(allowed)[-threads:])


def clean_json(value: Any) -> Any:
    """Plain JSON without control codes, cut to a sane depth and length."""
    if isinstance(value, str):
        return clean_text(value, 200)
    if isinstance(value, list):
        return [clean_json(item) for item in value[:256]]
    if isinstance(value, dict):
        return {clean_text(k, 60): clean_json(v) for k, v in list(value.items())[:64]}
    return value if isinstance(value, bool | int | float) else None
