"""What else happened on the board between two moments: waiting tasks and busy processes.

It complements :func:`device_agents.board.system.snapshot` with sums that need both ends.
"""

from __future__ import annotations

import os
import re
import time
from typing import Any, Dict, List, Tuple

from device_agents.board.system import Tree

TOLD_PROCESSES = 5

Json = Dict[str, Any]


class Witness:
    """Looks when it is made and again in :meth:`tell`; this process is left out."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.ticks_per_s = float(os.sysconf("SC_CLK_TCK"))
        self.stalled, self.used = stalled_us(tree), processor_ticks(tree)
        self.since = time.monotonic()

    def tell(self) -> Json:
        """Seconds that passed, that tasks waited by kind, and that the busiest others used."""
        wall_s = time.monotonic() - self.since
        stalled = stalled_us(self.tree)
        used: List[Json] = []
        for identity, (name, ticks) in processor_ticks(self.tree).items():
            spent = ticks - self.used.get(identity, ("", 0))[1]
            if spent > 0:
                used.append({"name": name, "cpu_s": spent / self.ticks_per_s})
        used.sort(key=lambda process: -process["cpu_s"])
        return {
            "wall_s": wall_s,
            "stalled_s": {
                kind: (stalled[kind] - self.stalled[kind]) / 1e6
                for kind in stalled
                if kind in self.stalled
            },
            "processes": used[:TOLD_PROCESSES],
        }


def stalled_us(tree: Tree) -> Dict[str, int]:
    """Total microseconds in which some task waited, by kind; empty where it is not counted."""
    found = {}
    for kind in ("cpu", "io", "memory"):
        text = tree.text("/proc/pressure/" + kind) or ""
        match = re.search(r"^some .*total=(\d+)", text, re.MULTILINE)
        if match:
            found[kind] = int(match.group(1))
    return found


def processor_ticks(tree: Tree) -> Dict[Tuple[int, str], Tuple[str, int]]:
    """Name and processor time in ticks of every process but this one, by id and start time."""
    found = {}
    for folder in tree.folders("/proc/[0-9]*"):
        pid = int(os.path.basename(folder))
        text = tree.text(folder + "/stat") or ""
        head, _, tail = text.rpartition(")")  # the name may hold blanks and brackets
        fields = tail.split()
        if pid != os.getpid() and len(fields) > 19:
            name = head.partition("(")[2][:40]
            found[(pid, fields[19])] = (name, int(fields[11]) + int(fields[12]))
    return found
