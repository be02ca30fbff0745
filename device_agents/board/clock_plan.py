"""Which nodes of ``/sys`` set a clock, with which values and in which order.

Pure planning: nothing is written here, and no other nodes than those of :data:`NODES` are ever
named to the writer.
"""

from __future__ import annotations

import os
import re
from typing import Dict, List, Optional, Tuple

from device_agents.board.cpu import CPU
from device_agents.board.hardware import DEVFREQ, cooling_devices, find_devfreq
from device_agents.board.tree import Tree

NODES = re.compile(
    r"/sys/devices/system/cpu/cpufreq/policy[0-9]{1,4}/"
    r"scaling_(governor|min_freq|max_freq|setspeed)"
    r"|/sys/class/devfreq/[A-Za-z0-9][A-Za-z0-9._:-]{0,80}/(governor|(min|max)_freq"
    r"|userspace/set_freq)"
    r"|/sys/devices/system/cpu/cpu[0-9]{1,4}/cpuidle/state[0-9]{1,2}/disable"
)
CLOCKS = re.compile(r"[0-9]{1,15}")
GOVERNORS = re.compile(r"[a-z][a-z0-9_]{0,31}")
IDLE_NODES = CPU + "/cpu[0-9]*/cpuidle/state[1-9]*/disable"

Nodes = Dict[str, str]


class Refused(Exception):
    """A clock that cannot be set; the message says why and what is allowed."""


def writable(node: str, value: str) -> bool:
    """Whether a node is on the list and the value has the shape of a clock or a governor."""
    values = GOVERNORS if node.endswith("governor") else CLOCKS
    return bool(NODES.fullmatch(node) and values.fullmatch(value))


def throttled_by(tree: Tree) -> List[str]:
    """Cooling devices that hold a clock down now (a fan that turns is none of them)."""
    return [
        "{} (state {})".format(item["type"], item["state"])
        for item in cooling_devices(tree)
        if item["state"] and re.search("cpufreq|devfreq", str(item["type"]))
    ]


def clock_nodes(tree: Tree, name: str, value: int, governor: Optional[str]) -> Nodes:
    folder = folder_of(tree, name)
    if folder is None:
        raise Refused("the board has no clock of that name; it has: " + ", ".join(names(tree)))
    if folder.startswith(DEVFREQ):
        return _devfreq_nodes(tree, folder, value)
    return _policy_nodes(tree, folder, value, governor)


def _policy_nodes(tree: Tree, folder: str, khz: int, governor: Optional[str]) -> Nodes:
    """Governor, both limits and, for userspace, the clock itself."""
    listed = tree.numbers(folder + "/scaling_available_frequencies")
    listed += tree.numbers(folder + "/scaling_boost_frequencies")
    low, high = (tree.number(folder + "/cpuinfo_{}_freq".format(end)) for end in ("min", "max"))
    _check_clock(khz, "kHz", listed, low, high)
    available = tree.words(folder + "/scaling_available_governors")
    chosen = governor or _first(("userspace", "performance"), available)
    nodes = governor_node(tree, folder, chosen) if chosen else {}
    nodes[folder + "/scaling_max_freq"] = nodes[folder + "/scaling_min_freq"] = str(khz)
    if chosen == "userspace":
        nodes[folder + "/scaling_setspeed"] = str(khz)
    return nodes


def governor_node(tree: Tree, folder: str, governor: str) -> Nodes:
    available = tree.words(folder + "/scaling_available_governors")
    if not isinstance(governor, str) or not GOVERNORS.fullmatch(governor):
        raise Refused("governor {!r} is no name of a governor".format(governor))
    if available and governor not in available:
        raise Refused("governor {} is not one of {}".format(governor, ", ".join(available)))
    return {folder + "/scaling_governor": governor}


def _devfreq_nodes(tree: Tree, folder: str, hz: int) -> Nodes:
    listed = tree.numbers(folder + "/available_frequencies")
    _check_clock(hz, "Hz", listed, None, None)
    if "userspace" in tree.words(folder + "/available_governors"):
        return {folder + "/governor": "userspace", folder + "/userspace/set_freq": str(hz)}
    return {folder + "/max_freq": str(hz), folder + "/min_freq": str(hz)}


def idle_nodes(tree: Tree, allowed: bool) -> Nodes:
    """The states below the first one, which every core needs."""
    nodes = tree.folders(IDLE_NODES)
    if not nodes:
        raise Refused("this kernel offers no idle state that can be switched off")
    return {node: "0" if allowed else "1" for node in nodes}


def _check_clock(
    value: int, unit: str, listed: List[int], low: Optional[int], high: Optional[int]
) -> None:
    if listed and value not in listed:
        clocks = ", ".join(map(str, sorted(set(listed))))
        raise Refused("{} {} is not one of {}".format(value, unit, clocks))
    if not listed and not (low or 0) <= value <= (high or value):
        raise Refused("{} {} is outside of {} to {}".format(value, unit, low, high))


def in_order(tree: Tree, nodes: Nodes) -> List[Tuple[str, str]]:
    """Nodes in an order that the kernel accepts.

    Governor first (a clock can only be set under ``userspace``), then the limits so that the lower
    never exceeds the upper one on the way, then the clock, idle states last.
    """

    def rank(node: str) -> Tuple[str, int]:
        folder, _, name = node.rpartition("/")
        if name == "set_freq":
            return folder[: -len("/userspace")], 3
        if name.endswith("governor"):
            return folder, 0
        if name.endswith("max_freq"):
            lower = tree.number(folder + "/" + name.replace("max", "min")) or 0
            return folder, 1 if int(nodes[node]) >= lower else 2
        if name.endswith("min_freq"):
            upper = nodes.get(folder + "/" + name.replace("min", "max"))
            present = tree.number(node) or 0
            return folder, 1 if upper is not None and int(upper) < present else 2
        return folder, 3

    return sorted(nodes.items(), key=lambda item: (*rank(item[0]), item[0]))


def folder_of(tree: Tree, name: str) -> Optional[str]:
    if re.match(r"policy[0-9]{1,4}\Z", name):
        folder = CPU + "/cpufreq/" + name
        return folder if tree.text(folder + "/scaling_governor") is not None else None
    found = find_devfreq(tree, name)
    return DEVFREQ + "/" + found if found else None


def names(tree: Tree) -> List[str]:
    folders = tree.folders(CPU + "/cpufreq/policy*") + tree.folders(DEVFREQ + "/*")
    return [os.path.basename(folder) for folder in folders] or ["none"]


def _first(wanted: Tuple[str, ...], available: List[str]) -> Optional[str]:
    return next((name for name in wanted if name in available), None)
