"""What the kernel tells about a board: identity for `probe`, counters for verdicts.

Every read goes through :class:`Tree`, whose root can be a copied or invented file tree, so the
rules can be tested without a board.
"""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import re
from typing import Any, Dict, List, Optional

Json = Dict[str, Any]

_MAX_READ_BYTES = 1 << 16


class Tree:
    """Reads of ``/proc`` and ``/sys`` below a root.

    >>> Tree("/").text("/nowhere/to/be/found") is None
    True
    """

    def __init__(self, root: str = "/") -> None:
        self.root = root

    def path(self, name: str) -> str:
        return os.path.join(self.root, name.lstrip("/"))

    def text(self, name: str) -> Optional[str]:
        """Content without surrounding blanks and zero bytes; None where it cannot be read."""
        try:
            with open(self.path(name), "rb") as stream:
                return stream.read(_MAX_READ_BYTES).decode("utf-8", "replace").strip("\0 \n\t")
        except OSError:
            return None

    def number(self, name: str) -> Optional[int]:
        text = self.text(name)
        try:
            return int(text) if text is not None else None
        except ValueError:
            return None

    def folders(self, pattern: str) -> List[str]:
        """Names below the root that match, in natural order, without the root."""
        found = glob.glob(self.path(pattern))
        prefix = len(self.path(""))
        return sorted(("/" + name[prefix:] for name in found), key=_natural)


def _natural(name: str) -> List[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


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
    }


def snapshot(tree: Tree) -> Json:
    """Counters and states of this moment; two of them around a round are the evidence."""
    return {
        "boot_id": boot_id(tree),
        "load_average": _load(tree),
        "cpu_ticks": cpu_ticks(tree),
        "ticks_per_s": os.sysconf("SC_CLK_TCK"),
        "policies": policies(tree),
        "thermal_zones": thermal_zones(tree),
        "cooling_devices": cooling_devices(tree),
        "memory_available_bytes": _kib(tree.text("/proc/meminfo") or "", "MemAvailable"),
        "oom_kills": _counter(tree.text("/proc/vmstat") or "", "oom_kill"),
    }


def policies(tree: Tree) -> List[Json]:
    """cpufreq policies: cores, governor, clocks in kHz, number of clock changes so far."""
    found = []
    for folder in tree.folders("/sys/devices/system/cpu/cpufreq/policy*"):
        found.append(
            {
                "name": os.path.basename(folder),
                "cores": tree.text(folder + "/affected_cpus") or "",
                "governor": tree.text(folder + "/scaling_governor"),
                "cur_khz": tree.number(folder + "/scaling_cur_freq"),
                "min_khz": tree.number(folder + "/scaling_min_freq"),
                "max_khz": tree.number(folder + "/scaling_max_freq"),
                "hardware_max_khz": tree.number(folder + "/cpuinfo_max_freq"),
                "transitions": tree.number(folder + "/stats/total_trans"),
            }
        )
    return found


def thermal_zones(tree: Tree) -> List[Json]:
    """Temperatures in milli degrees Celsius with the lowest passive trip point of the zone."""
    found = []
    for folder in tree.folders("/sys/class/thermal/thermal_zone*"):
        trips = [
            tree.number(name[: -len("_type")] + "_temp")
            for name in tree.folders(folder + "/trip_point_*_type")
            if tree.text(name) == "passive"
        ]
        known = [trip for trip in trips if trip is not None and trip > 0]
        found.append(
            {
                "name": os.path.basename(folder),
                "type": tree.text(folder + "/type"),
                "temperature_mc": tree.number(folder + "/temp"),
                "passive_trip_mc": min(known) if known else None,
            }
        )
    return found


def cooling_devices(tree: Tree) -> List[Json]:
    """State (0 = not cooling) and number of state changes of every cooling device."""
    return [
        {
            "name": os.path.basename(folder),
            "type": tree.text(folder + "/type"),
            "state": tree.number(folder + "/cur_state"),
            "transitions": tree.number(folder + "/stats/total_trans"),
        }
        for folder in tree.folders("/sys/class/thermal/cooling_device*")
    ]


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
