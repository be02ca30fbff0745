"""From a probe to a fingerprint: what must match between two latencies, and what may move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from device_agents.devices import CLUSTERS
from device_agents.link.client import clean_text
from latency_tables.errors import MissingRuntimeError, UsageError
from latency_tables.records import DeviceFingerprint

_IDENTITY = ("soc", "compatible", "cpu_models", "cpu_parts", "cpu_count", "hypervisor", "machine")
_MORE_IDENTITY = ("serial_sha256", "kernel", "libc")
_MEMORY_STEP = 1 << 28
_MORE_RUNTIME = ("library", "driver", "api", "other_libraries")


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
        "devfreq": clean_json(now.get("devfreq")),
        "psi": clean_json(now.get("psi")),
        "python": clean_json(probe.get("python")),
    }
    return DeviceFingerprint(identity=identity, state=state)


def runtime_of(
    probe: dict[str, Any], name: str, optimization: str, device: str = ""
) -> dict[str, Any]:
    """The runtime part of a record. Raises MissingRuntimeError saying what the board has."""
    offered = [r for r in probe.get("runtimes") or [] if isinstance(r, dict)]
    for runtime in offered:
        if runtime.get("name") == name and isinstance(runtime.get("version"), str):
            return {
                "name": name,
                "version": clean_text(runtime["version"], 60),
                "provider": clean_text(runtime.get("provider", ""), 60),
                "graph_optimization": optimization,
                **{more: clean_json(runtime[more]) for more in _MORE_RUNTIME if more in runtime},
            }
    broken = "; ".join(clean_text(r["broken"], 300) for r in offered if r.get("broken"))
    problem = broken or clean_text(probe.get("runtimes_problem") or "it cannot be imported", 300)
    raise MissingRuntimeError(
        f"runtime {name!r} does not work on the device: {problem}",
        hint=f"hilnas devices bootstrap {device or 'NAME'} --runtime {name}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Equal cores of a board; ``name`` is one of big, mid and little."""

    name: str
    cores: tuple[int, ...]
    part: str = ""
    max_khz: int | None = None

    def __str__(self) -> str:
        return f"{self.name} = {', '.join(map(str, self.cores))}"


def clusters_of(probe: dict[str, Any]) -> tuple[Cluster, ...]:
    """The clusters that a probe tells, the fastest first; what makes no sense is left out.

    >>> [str(c) for c in clusters_of({"clusters": [{"name": "big", "cores": [4, 5]}]})]
    ['big = 4, 5']
    """
    found = []
    said = probe.get("clusters")
    for item in (c for c in (said if isinstance(said, list) else ()) if isinstance(c, dict)):
        cores = whole_numbers(item.get("cores"))
        top = item.get("max_khz")
        if item.get("name") in CLUSTERS and cores:
            found.append(
                Cluster(
                    name=str(item["name"]),
                    cores=tuple(sorted(set(cores))),
                    part=clean_text(item.get("part", ""), 20),
                    max_khz=top if type(top) is int else None,
                )
            )
    return tuple(found)


def cores_of(
    probe: dict[str, Any],
    asked: tuple[int, ...],
    threads: int,
    pin: str = "",
    *,
    mixed: bool = False,
) -> tuple[int, ...]:
    """The cores to pin to: those asked for, else the last ``threads`` allowed ones.

    ``pin`` names a cluster, of which the last ``threads`` allowed cores are taken. Cores of
    different clusters are refused unless ``mixed``: their latency depends on which thread lands
    where.

    Raises UsageError where there are too few, the cluster does not exist, or clusters are mixed.
    """
    clusters = clusters_of(probe)
    allowed = set(whole_numbers(probe.get("allowed_cores")))
    if pin:
        return _of_cluster(clusters, allowed, threads, pin)
    if not asked and len(allowed) < threads:
        offer = sorted(allowed)
        raise UsageError(f"{threads} threads were asked for, the device offers cores {offer}")
    cores = asked or tuple(sorted(allowed)[-threads:])
    touched = [c for c in clusters if set(c.cores) & set(cores)]
    if len(touched) > 1 and not mixed:
        raise UsageError(
            f"cores {', '.join(map(str, cores))} are of different clusters; the device has "
            f"{_listed(clusters)}",
            hint=f'pin = "{touched[0].name}", or a list of cores of one cluster',
        )
    return cores


def _of_cluster(
    clusters: tuple[Cluster, ...], allowed: set[int], threads: int, pin: str
) -> tuple[int, ...]:
    named = [c for c in clusters if c.name == pin]
    if not named:
        raise UsageError(f"the device has no cluster {pin!r}; it has {_listed(clusters)}")
    offers = [sorted(set(c.cores) & allowed) for c in named]
    for offer in offers:
        if len(offer) >= threads:
            return tuple(offer[-threads:])
    raise UsageError(
        f"{threads} threads were asked for, cluster {pin!r} offers cores {max(offers, key=len)}; "
        f"the device has {_listed(clusters)}"
    )


def _listed(clusters: tuple[Cluster, ...]) -> str:
    return "; ".join(map(str, clusters)) or "none that it tells"


def whole_numbers(value: Any) -> list[int]:
    """The integers from 0 that a list holds; none where it is no list.

    >>> whole_numbers([1, -1, True, "2"]), whole_numbers(7)
    ([1], [])
    """
    found = value[:4096] if isinstance(value, list) else []
    return [item for item in found if type(item) is int and item >= 0]


def clean_json(value: Any) -> Any:
    """Plain JSON without control codes, cut to a sane depth and length."""
    if isinstance(value, str):
        return clean_text(value, 200)
    if isinstance(value, list):
        return [clean_json(item) for item in value[:256]]
    if isinstance(value, dict):
        return {clean_text(k, 60): clean_json(v) for k, v in list(value.items())[:64]}
    return value if isinstance(value, bool | int | float) else None
