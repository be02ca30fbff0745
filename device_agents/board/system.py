"""What the kernel tells about a board: identity for `probe`, counters for verdicts.

Every read goes through :class:`Tree`, whose root can be a copied or invented file tree, so the
rules can be tested without a board.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from typing import Any, Dict, List, Optional

from device_agents.board import hardware, sensors
from device_agents.board.cpu import CPU, choices, clusters, cpuidle, policies, time_in_state_ms
from device_agents.board.hardware import cooling_devices, devfreq, thermal_zones
from device_agents.board.tree import Tree

__all__ = [
    "Tree",
    "boot_id",
    "cooling_devices",
    "cpu_ticks",
    "devfreq",
    "identify",
    "policies",
    "resident_bytes",
    "snapshot",
    "thermal_zones",
]

Json = Dict[str, Any]


def boot_id(tree: Tree) -> str:
    """The kernel's random name of this boot, or ''."""
    return tree.text("/proc/sys/kernel/random/boot_id") or ""


def identify(tree: Tree) -> Json:
    """What a board is: SoC, cores, policies, memory, kernel, C library, Python. No host name."""
    cpuinfo = tree.text("/proc/cpuinfo") or ""
    meminfo = tree.text("/proc/meminfo") or ""
    return {
        "soc": tree.text("/proc/device-tree/model") or _field(cpuinfo, "model name") or "unknown",
        "compatible": [
            name for name in (tree.text("/proc/device-tree/compatible") or "").split("\0") if name
        ],
        "cpu_models": sorted(set(_fields(cpuinfo, "model name"))),
        "cpu_parts": sorted(
            {
                implementer + ":" + part
                for implementer, part in zip(  # noqa: B905  (3.7 has no strict)
                    _fields(cpuinfo, "CPU implementer"), _fields(cpuinfo, "CPU part")
                )
            }
        ),
        "cpu_count": len(_fields(cpuinfo, "processor")),
        "hypervisor": " hypervisor" in (_field(cpuinfo, "flags") or ""),
        "machine": platform.machine(),
        "serial_sha256": _serial(tree),
        "memory_total_bytes": _kib(meminfo, "MemTotal"),
        "kernel": platform.release(),
        "libc": _libc(),
        "python": platform.python_version(),
        "policies": policies(tree),
        "thermal_zones": thermal_zones(tree),
        "cooling_devices": cooling_devices(tree),
        "clusters": clusters(tree),
        "choices": choices(tree),
        "devfreq": devfreq(tree),
        "devfreq_choices": hardware.devfreq_choices(tree),
        "cpuidle": cpuidle(tree),
        "npu": hardware.npu(tree),
        "power_sensors": sensors.describe(tree),
        "os": hardware.operating_system(tree),
        "clock_source": hardware.clock_source(tree),
        "user_id": os.getuid(),
        "disk_free_bytes": hardware.disk_free_bytes(),
    }


def snapshot(tree: Tree) -> Json:
    """Counters and states of this moment; two of them around a round are the evidence."""
    return {
        "boot_id": boot_id(tree),
        "load_average": _load(tree),
        "cpu_ticks": cpu_ticks(tree),
        "ticks_per_s": os.sysconf("SC_CLK_TCK"),
        "policies": [
            dict(
                policy,
                time_in_state_ms=time_in_state_ms(
                    tree, "{}/cpufreq/{}/stats/time_in_state".format(CPU, policy["name"]), 10
                ),
            )
            for policy in policies(tree)
        ],
        "thermal_zones": thermal_zones(tree),
        "cooling_devices": cooling_devices(tree),
        "devfreq": devfreq(tree),
        "psi": hardware.pressure(tree),
        "disk_free_bytes": hardware.disk_free_bytes(),
        "memory_available_bytes": _kib(tree.text("/proc/meminfo") or "", "MemAvailable"),
        "oom_kills": _counter(tree.text("/proc/vmstat") or "", "oom_kill"),
    }


def cpu_ticks(tree: Tree) -> Dict[str, Dict[str, int]]:
    """Busy, steal and total time of each core in clock ticks (``getconf CLK_TCK``)."""
    ticks = {}
    for line in (tree.text("/proc/stat") or "").splitlines():
        match = re.match(r"cpu(\d+) (.*)", line)
        if match:
            values = [int(value) for value in match.group(2).split()] + [0] * 8
            user, nice, system, idle, iowait, irq, softirq, steal = values[:8]
            busy = user + nice + system + irq + softirq
            total = busy + idle + iowait + steal
            ticks[match.group(1)] = {"busy": busy, "steal": steal, "total": total}
    return ticks


def resident_bytes(pid: int) -> int:
    """Resident memory of a process, 0 where it is gone."""
    text = Tree("/").text("/proc/{}/statm".format(pid)) or "0 0"
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _serial(tree: Tree) -> str:
    """A one-way name of this very board: chips of one type differ in their clocks."""
    serial = tree.text("/proc/device-tree/serial-number") or tree.text("/etc/machine-id") or ""
    return hashlib.sha256(b"hilnas:" + serial.encode()).hexdigest() if serial else ""


def _libc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or "unknown"
    except (ValueError, OSError):
        return "unknown"


def _load(tree: Tree) -> Optional[float]:
    text = tree.text("/proc/loadavg")
    return float(text.split()[0]) if text else None


def _fields(text: str, name: str) -> List[str]:
    lines = re.findall(r"^" + re.escape(name) + r"[ \t]*:[ \t]*(.*)$", text, re.MULTILINE)
    return [line.strip() for line in lines]


def _field(text: str, name: str) -> Optional[str]:
    found = _fields(text, name)
    return found[0] if found else None


def _kib(meminfo: str, name: str) -> Optional[int]:
    value = _field(meminfo, name)
    return int(value.split()[0]) * 1024 if value else None


def _counter(text: str, name: str) -> Optional[int]:
    match = re.search(r"^" + re.escape(name) + r" (\d+)$", text, re.MULTILINE)
    return int(match.group(1)) if match else None
