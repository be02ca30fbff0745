"""Set clocks, read them back, and put the old ones back, also after a crash.

Old values go to ``<workdir>/restore.json`` and to the disk before the first write; the file goes
away after the last value was put back. A reboot puts clocks back by itself, so a journal of
another boot is dropped. Only the nodes that :mod:`clock_plan` lists are ever written. With power
"sudo" the writes go through ``sudo -n`` and a helper that root owns and that checks them again.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from typing import Any, Callable, Dict, Iterator, List, Optional

from device_agents.board import clock_journal
from device_agents.board.clock_plan import (
    IDLE_NODES,
    Nodes,
    Refused,
    clock_nodes,
    folder_of,
    governor_node,
    idle_nodes,
    in_order,
    throttled_by,
    writable,
)
from device_agents.board.cpu import CPU
from device_agents.board.hardware import DEVFREQ
from device_agents.board.system import boot_id
from device_agents.board.tree import Tree

HELPER = "/usr/local/sbin/hilnas-clocks"
POWERS = ("direct", "sudo")
SETTLE_S = 0.5
"""How long a clock may take to follow its limits."""
TOLERANCE = 0.01
SUDO_TIMEOUT_S = 10

Json = Dict[str, Any]
Write = Callable[[str, str], None]


def operations(agent: Any) -> Dict[str, Callable[[Json], Json]]:
    """What this module adds to the agent."""
    tree, workdir = agent.tree, agent.workdir
    return {
        "clocks_set": lambda request: set_clocks(tree, workdir, request),
        "clocks_restore": lambda request: restore(tree, workdir, request.get("power")),
        "clocks_journal": lambda request: clock_journal.describe(workdir, boot_id(tree)),
    }


def set_clocks(tree: Tree, workdir: str, request: Json) -> Json:
    """Set what was asked; ``got`` is read back, ``refused`` has the reason by name.

    Raises ValueError on a request that makes no sense, OSError where the journal cannot be kept.
    """
    clocks, governor, idle = _checked(request)
    power = _power(request.get("power", "direct"))
    asked: Json = dict(clocks)
    if governor is not None:
        asked["governor"] = governor
    if idle is not None:
        asked["idle"] = idle
    refused: Dict[str, str] = {}
    plans = _plans(tree, asked, clocks, refused)
    _remember(tree, workdir, plans, power)
    write = _writer(tree, power)
    for name, nodes in plans.items():
        with _refusing(refused, name):
            for node, value in in_order(tree, nodes):
                _write_checked(tree, write, node, value)
    got: Json = {name: _read_back(tree, name, value, refused) for name, value in clocks.items()}
    if governor is not None:
        got["governor"] = _governors(tree)
    if idle is not None:
        got["idle"] = any(tree.number(node) == 0 for node in tree.folders(IDLE_NODES))
    return {"asked": asked, "got": got, "refused": refused}


def _checked(request: Json) -> Any:
    clocks, governor, idle = (request.get(name) for name in ("clocks", "governor", "idle"))
    clocks = {} if clocks is None else clocks
    if not isinstance(clocks, dict):
        raise ValueError("clocks are {!r}; allowed: names with numbers".format(clocks))
    for name, value in clocks.items():
        if type(value) is not int or value <= 0:
            raise ValueError("clock {!r} is {!r}; allowed: a positive integer".format(name, value))
    if idle is not None and not isinstance(idle, bool):
        raise ValueError("idle is {!r}; allowed: true, false".format(idle))
    return clocks, governor, idle


def _power(power: Any) -> str:
    if power not in POWERS:
        raise ValueError("power {!r}; allowed: {}".format(power, ", ".join(POWERS)))
    return str(power)


def _plans(
    tree: Tree, asked: Json, clocks: Dict[str, int], refused: Dict[str, str]
) -> Dict[str, Nodes]:
    """The nodes of every name that was asked for; what cannot be planned is refused."""
    governor, plans = asked.get("governor"), {}
    hot = throttled_by(tree)
    if hot:
        # the limits that can be read now are those of the heat and not those of the owner
        reason = "the board is being throttled by {}; let it cool down".format(", ".join(hot))
        refused.update({name: reason for name in asked})
        return {}
    for name, value in clocks.items():
        with _refusing(refused, name):
            plans[name] = clock_nodes(tree, name, value, governor)
    if governor is not None:
        folders = tree.folders(CPU + "/cpufreq/policy*")
        if not folders:
            refused["governor"] = "this kernel offers no cpufreq policy"
        for folder in folders:
            name = os.path.basename(folder)
            if name not in clocks:
                with _refusing(refused, name):
                    plans[name] = governor_node(tree, folder, governor)
    if "idle" in asked:
        with _refusing(refused, "idle"):
            plans["idle"] = idle_nodes(tree, asked["idle"])
    return plans


def restore(tree: Tree, workdir: str, power: Any = None) -> Json:
    """Put back what the journal holds; what fails stays in it.

    ``dropped`` says why a journal needed no writes. Raises ValueError for an unknown power.
    """
    journal = clock_journal.load(workdir)
    if journal is None:
        return {"restored": [], "failed": {}}
    if journal["boot_id"] != boot_id(tree):
        clock_journal.remove(workdir)
        reason = "the board rebooted since: its clocks are back by themselves"
        return {"restored": [], "failed": {}, "dropped": reason}
    write = _writer(tree, _power(power or journal["power"]))
    nodes = {node: value for node, value in journal["nodes"].items() if writable(node, value)}
    foreign = set(journal["nodes"]) - set(nodes)
    failed = {node: "is no node, or has no value, that is ever written" for node in foreign}
    restored: List[str] = []
    for node, value in in_order(tree, nodes):
        with _refusing(failed, node):
            _write_checked(tree, write, node, value)
            restored.append(node)
    left = {node: value for node, value in nodes.items() if node in failed}
    if left:
        clock_journal.save(workdir, dict(journal, nodes=left))
    else:
        clock_journal.remove(workdir)
    return {"restored": restored, "failed": failed}


# ---- writing and reading back -------------------------------------------------------------------


def _remember(tree: Tree, workdir: str, plans: Dict[str, Nodes], power: str) -> None:
    """Journal the present values of what is about to be written; older entries win."""
    journal = clock_journal.load(workdir)
    if journal is None or journal["boot_id"] != boot_id(tree):
        journal = {"boot_id": boot_id(tree), "nodes": {}}
    nodes = journal["nodes"]
    for plan in plans.values():
        for node in plan:
            value = tree.text(node)
            if value is not None and writable(node, value) and _worth_keeping(tree, nodes, node):
                nodes.setdefault(node, value)
    if nodes:
        clock_journal.save(workdir, dict(journal, power=power))


def _worth_keeping(tree: Tree, kept: Nodes, node: str) -> bool:
    """A clock set by hand counts only where its owner, and not this session, chose userspace."""
    for speed, governor in (
        ("/scaling_setspeed", "/scaling_governor"),
        ("/userspace/set_freq", "/governor"),
    ):
        if node.endswith(speed):
            name = node[: -len(speed)] + governor
            return (kept.get(name) or tree.text(name)) == "userspace"
    return True


def _writer(tree: Tree, power: str) -> Write:
    return tree.write if power == "direct" else _sudo_write


def _sudo_write(node: str, value: str) -> None:
    """Let the helper write. Raises OSError with what it said."""
    try:
        done = subprocess.run(
            ["sudo", "-n", HELPER, node, value],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=SUDO_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise OSError("sudo did not end within {} s".format(SUDO_TIMEOUT_S)) from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()[-300:]
        raise OSError("the helper refuses: {}".format(said or done.returncode))


def _write_checked(tree: Tree, write: Write, node: str, value: str) -> None:
    """Write one node and read it back. Raises OSError or Refused."""
    if not writable(node, value):
        raise Refused("{} = {!r} is never written".format(node, value))
    write(node, value)
    if node.endswith(("setspeed", "set_freq")):
        return  # these read as the clock, which needs a moment: see _read_back
    read = tree.text(node)
    if read != value and not (node.endswith("max_freq") and throttled_by(tree)):
        raise Refused("{}: wrote {}, reads back {}".format(_short(node), value, read))


@contextlib.contextmanager
def _refusing(refused: Dict[str, str], name: str) -> Iterator[None]:
    try:
        yield
    except Refused as error:
        refused[name] = str(error)
    except OSError as error:
        node = _short(error.filename) + ": " if error.filename else ""
        refused[name] = node + (error.strerror or str(error))


def _short(node: Any) -> str:
    return "/".join(str(node).split("/")[-2:])


def _read_back(tree: Tree, name: str, asked: int, refused: Dict[str, str]) -> Optional[int]:
    """The clock as the driver tells it, given a moment to follow; a difference is a refusal."""
    folder = folder_of(tree, name)
    if folder is None:
        return None
    node = folder + ("/cur_freq" if folder.startswith(DEVFREQ) else "/scaling_cur_freq")
    deadline = time.monotonic() + SETTLE_S
    got = tree.number(node)
    while name not in refused and (got is None or abs(got - asked) > TOLERANCE * asked):
        if time.monotonic() > deadline:
            refused[name] = "asked for {}, reads back {}".format(asked, got)
        time.sleep(0.02)
        got = tree.number(node)
    return got


def _governors(tree: Tree) -> str:
    """The governor of all policies, or all of them."""
    folders = tree.folders(CPU + "/cpufreq/policy*")
    found = {tree.text(folder + "/scaling_governor") or "unknown" for folder in folders}
    return ", ".join(sorted(found)) or "none"
