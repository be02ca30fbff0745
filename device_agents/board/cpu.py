"""Cores of a board: clusters of equal cores, cpufreq policies, idle states."""

from __future__ import annotations

import os
import re
from typing import Any, Dict, List, Optional, Tuple

from device_agents.board.tree import Tree

CPU = "/sys/devices/system/cpu"
SAME_CLUSTER = 0.9
"""Top clocks of equal cores may differ by binning; a tenth or more is another kind of core."""

Json = Dict[str, Any]


def policies(tree: Tree) -> List[Json]:
    """cpufreq policies: cores, governor, clocks in kHz, number of clock changes so far."""
    found = []
    for folder in tree.folders(CPU + "/cpufreq/policy*"):
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


def choices(tree: Tree) -> List[Json]:
    """What each policy can be set to: clocks in kHz and governors."""
    return [
        {
            "name": os.path.basename(folder),
            "available_khz": sorted(
                set(
                    tree.numbers(folder + "/scaling_available_frequencies")
                    + tree.numbers(folder + "/scaling_boost_frequencies")
                )
            ),
            "governors": tree.words(folder + "/scaling_available_governors"),
        }
        for folder in tree.folders(CPU + "/cpufreq/policy*")
    ]


def time_in_state_ms(tree: Tree, name: str, unit_ms: int) -> Optional[Dict[str, int]]:
    """Pairs of a state and the time spent in it; ``unit_ms`` is the kernel's unit."""
    text = tree.text(name)
    if text is None:
        return None
    pairs = re.findall(r"^(?:state)?(\d+)\s+(\d+)$", text, re.MULTILINE)
    return {state: int(time) * unit_ms for state, time in pairs[:64]} or None


def clusters(tree: Tree) -> List[Json]:
    """Groups of equal cores, the fastest first: ``big``, then ``mid``, then ``little``.

    Cores are equal if they have one part number and top clocks within a tenth of each other (chips
    are binned by cluster); without part numbers, capacities. One group alone is called ``big``.
    """
    tops = _top_khz(tree)
    parts = _parts(tree)
    groups: List[Json] = []
    for core in sorted(set(parts) | set(tops)):
        part, top = parts.get(core, ""), tops.get(core)
        capacity = tree.number("{}/cpu{}/cpu_capacity".format(CPU, core))
        for group in groups:
            if _equal(group, part, capacity, top):
                group["cores"].append(core)
                group["max_khz"] = max(group["max_khz"] or 0, top or 0) or None
                group["capacity"] = max(group["capacity"] or 0, capacity or 0) or None
                break
        else:
            groups.append({"cores": [core], "part": part, "capacity": capacity, "max_khz": top})
    groups.sort(key=lambda group: (-(group["capacity"] or 0), -(group["max_khz"] or 0)))
    for index, group in enumerate(groups):
        last = index == len(groups) - 1 and index > 0
        group["name"] = "big" if index == 0 else "little" if last else "mid"
    return groups


def _equal(group: Json, part: str, capacity: Optional[int], top: Optional[int]) -> bool:
    if group["part"] != part or not _near(group["max_khz"], top):
        return False
    return bool(part) or _near(group["capacity"], capacity)


def _near(one: Optional[int], other: Optional[int]) -> bool:
    """Whether two values are within a tenth, or one of them is unknown."""
    low, high = sorted((one or 0, other or 0))
    return low == 0 or low > SAME_CLUSTER * high


def _top_khz(tree: Tree) -> Dict[int, int]:
    tops = {}
    for folder in tree.folders(CPU + "/cpufreq/policy*"):
        top = tree.number(folder + "/cpuinfo_max_freq")
        cores = tree.numbers(folder + "/related_cpus") or tree.numbers(folder + "/affected_cpus")
        if top:
            tops.update({core: top for core in cores})
    return tops


def _parts(tree: Tree) -> Dict[int, str]:
    """Core → part number ('' where the architecture has none), from cpuinfo, else the register."""
    parts = {}
    for block in re.split(r"\n\s*\n", tree.text("/proc/cpuinfo") or ""):
        core = re.search(r"^processor\s*:\s*(\d+)", block, re.MULTILINE)
        part = re.search(r"^CPU part\s*:\s*(\S+)", block, re.MULTILINE)
        if core:
            parts[int(core.group(1))] = part.group(1) if part else ""
    for number in [number for number, known in parts.items() if not known]:
        midr = tree.text("{}/cpu{}/regs/identification/midr_el1".format(CPU, number))
        if midr and re.match(r"0x[0-9a-fA-F]{1,16}\Z", midr):
            parts[number] = "0x{:03x}".format(int(midr, 16) >> 4 & 0xFFF)
    return parts


def cpuidle(tree: Tree) -> List[Json]:
    """Idle states by name: exit latency, on how many cores they exist and are disabled."""
    states: Dict[Tuple[str, str], Json] = {}
    for folder in tree.folders(CPU + "/cpu[0-9]*/cpuidle/state[0-9]*"):
        index = folder.rpartition("/state")[2]
        name = tree.text(folder + "/name") or "state" + index
        state = states.setdefault(
            (index, name),
            {
                "index": int(index) if index.isdigit() else -1,
                "name": name,
                "exit_us": tree.number(folder + "/latency"),
                "cores": 0,
                "disabled": 0,
            },
        )
        state["cores"] += 1
        state["disabled"] += 1 if tree.number(folder + "/disable") else 0
    return [states[key] for key in sorted(states)][:32]
