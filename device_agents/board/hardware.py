"""What a board has beside its cores: devfreq clocks, NPU stack, heat, pressure, disk, system."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from typing import Any, Dict, List, Optional

from device_agents.board.cpu import time_in_state_ms
from device_agents.board.tree import Tree

DEVFREQ = "/sys/class/devfreq"
RKNN_LIBRARIES = (
    "/usr/lib/librknnrt.so",
    "/usr/lib64/librknnrt.so",
    "/usr/local/lib/librknnrt.so",
    "/lib/librknnrt.so",
    "/lib64/librknnrt.so",
    "/usr/lib/aarch64-linux-gnu/librknnrt.so",
    "/usr/lib32/librknnrt.so",
    "/vendor/lib64/librknnrt.so",
    "/oem/usr/lib/librknnrt.so",
)
MAX_LIBRARY_BYTES = 64 << 20

Json = Dict[str, Any]


def devfreq(tree: Tree) -> List[Json]:
    """Clocks of NPU, GPU and memory in Hz. ``device`` tells what a numbered one belongs to."""
    found = []
    for folder in tree.folders(DEVFREQ + "/*"):
        found.append(
            {
                "name": os.path.basename(folder),
                "device": tree.text(folder + "/name") or os.path.basename(folder),
                "governor": tree.text(folder + "/governor"),
                "cur_hz": tree.number(folder + "/cur_freq"),
                "min_hz": tree.number(folder + "/min_freq"),
                "max_hz": tree.number(folder + "/max_freq"),
                "transitions": _transitions(tree.text(folder + "/trans_stat")),
            }
        )
    return found


def devfreq_choices(tree: Tree) -> List[Json]:
    """What each devfreq device can be set to: clocks in Hz and governors."""
    return [
        {
            "name": os.path.basename(folder),
            "available_hz": sorted(tree.numbers(folder + "/available_frequencies")),
            "governors": tree.words(folder + "/available_governors"),
        }
        for folder in tree.folders(DEVFREQ + "/*")
    ]


def _transitions(text: Optional[str]) -> Optional[int]:
    match = re.search(r"Total transition\s*:\s*(\d+)", text or "")
    return int(match.group(1)) if match else None


def find_devfreq(tree: Tree, name: str) -> Optional[str]:
    """The devfreq device called ``name``, or the only one that is an ``npu``, ``gpu``, ``dmc``."""
    devices = [(item["name"], str(item["device"])) for item in devfreq(tree)]
    for folder, device in devices:
        if name in (folder, device):
            return str(folder)
    short = [
        folder
        for folder, device in devices
        if re.search(r"[.\-_]" + re.escape(name) + r"\Z", device)
    ]
    return str(short[0]) if len(short) == 1 and re.match(r"[a-z]{3,8}\Z", name) else None


def npu(tree: Tree) -> Optional[Json]:
    """Driver and libraries of an NPU; None where there is no sign of one.

    ``stack`` is "rknpu" (vendor kernel), "rocket" (mainline: another stack, which does not run
    ``.rknn`` files) or "unknown" (a library without a driver that can be seen).
    """
    version = tree.text("/sys/kernel/debug/rknpu/version") or tree.text("/proc/rknpu/version")
    libraries = _libraries(tree)
    accelerators = [os.path.basename(name) for name in tree.folders("/dev/accel/accel*")]
    rknpu = version is not None or bool(
        tree.folders("/sys/bus/platform/drivers/RKNPU") or tree.folders("/sys/class/devfreq/*.npu")
    )
    rocket = bool(tree.folders("/sys/bus/platform/drivers/rocket")) or (
        bool(accelerators) and not rknpu
    )
    if not (rknpu or rocket or libraries):
        return None
    return {
        "stack": "rknpu" if rknpu else "rocket" if rocket else "unknown",
        "driver": version,
        "driver_readable": version is not None,
        "libraries": libraries,
        "accelerators": accelerators,
        "load": tree.text("/sys/kernel/debug/rknpu/load"),
    }


def _libraries(tree: Tree) -> List[Json]:
    """Each copy once, with its hash and the version that its text names: boards have several."""
    found, seen = [], set()
    for name in RKNN_LIBRARIES:
        real = os.path.realpath(tree.path(name))
        try:
            with open(real, "rb") as stream:
                data = stream.read(MAX_LIBRARY_BYTES)
        except OSError:
            continue
        if real in seen:
            continue
        seen.add(real)
        text = re.search(rb"librknnrt version: ([^\0\n]{1,80})", data)
        found.append(
            {
                "path": name,
                "sha256": hashlib.sha256(data).hexdigest(),
                "version": text.group(1).decode("utf-8", "replace") if text else None,
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
    """State (0 = not cooling), changes of state and time in each, of every cooling device."""
    return [
        {
            "name": os.path.basename(folder),
            "type": tree.text(folder + "/type"),
            "state": tree.number(folder + "/cur_state"),
            "transitions": tree.number(folder + "/stats/total_trans"),
            "time_in_state_ms": time_in_state_ms(tree, folder + "/stats/time_in_state_ms", 1),
        }
        for folder in tree.folders("/sys/class/thermal/cooling_device*")
    ]


def pressure(tree: Tree) -> Optional[Dict[str, Optional[float]]]:
    """Share of the last 10 s, in per cent, in which some task waited for cpu, io, memory.

    None where the kernel was built without pressure stall information.
    """
    found = {}
    for name in ("cpu", "io", "memory"):
        text = tree.text("/proc/pressure/" + name) or ""
        match = re.search(r"^some avg10=(\d+(?:\.\d+)?)", text, re.MULTILINE)
        found[name] = float(match.group(1)) if match else None
    return found if any(value is not None for value in found.values()) else None


def disk_free_bytes(folder: Optional[str] = None) -> Optional[int]:
    """Room for an ordinary user on the file system of ``folder``, by default of the agent."""
    folder = folder or os.path.dirname(os.path.abspath(sys.argv[0]))
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def operating_system(tree: Tree) -> str:
    """Name and version of the distribution, or ''."""
    text = tree.text("/etc/os-release") or tree.text("/usr/lib/os-release") or ""
    match = re.search(r"^PRETTY_NAME=[\"']?([^\"'\n]*)", text, re.MULTILINE)
    return match.group(1).strip()[:120] if match else ""


def clock_source(tree: Tree) -> Optional[str]:
    """The kernel's clock source, e.g. ``arch_sys_counter``."""
    return tree.text("/sys/devices/system/clocksource/clocksource0/current_clocksource")
