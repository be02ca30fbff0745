"""Processor time that went to others, and tasks that had to wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from device_agents.link.client import clean_text
from device_agents.measuring.replies import ChildEvidence
from device_agents.measuring.verdicts.finding import Finding

OTHERS_WARN = 0.05
NEIGHBOURS_WARN = 0.25
STEAL_WARN = 0.01
PROCESS_WARN = 0.05
PRESSURE_WARN = {"cpu": 0.05, "io": 0.05, "memory": 0.01}


def other_load(child: ChildEvidence, cores: Sequence[int]) -> list[Finding]:
    """Processor time that went to others while the child ran."""
    before, after = child.before.get("cpu_ticks") or {}, child.after.get("cpu_ticks") or {}
    ours = {str(core) for core in cores}
    timed = _spent(before, after, ours)
    rest = _spent(before, after, set(after) - ours)
    own = child.cpu_s * float(child.after.get("ticks_per_s") or 100)
    found = []
    # two ticks of slack: the counters step by 10 ms
    others = timed["busy"] - own
    if others > OTHERS_WARN * timed["total"] + 2:
        share = others / timed["total"]
        evidence = f"other processes used {share:.0%} of the timed cores"
        found.append(Finding(code="INTERFERENCE", evidence=evidence, size=share))
    if rest["busy"] > NEIGHBOURS_WARN * rest["total"] + 2:
        evidence = f"the other cores were {rest['busy'] / rest['total']:.0%} busy"
        found.append(Finding(code="INTERFERENCE", evidence=evidence))
    if timed["steal"] > STEAL_WARN * timed["total"] + 2:
        share = timed["steal"] / timed["total"]
        evidence = f"the hypervisor took {share:.0%} of the timed cores"
        found.append(Finding(code="INTERFERENCE", evidence=evidence, size=share))
    return found


def other_processes(child: ChildEvidence) -> list[Finding]:
    """Single processes beside ours that used more than 5 % of a core while the child ran."""
    seen = child.witness
    wall_s, tick_s = (
        float(seen.get("wall_s") or 0),
        1 / float(child.after.get("ticks_per_s") or 100),
    )
    found = []
    for process in seen.get("processes") or []:
        used_s = float(process["cpu_s"])
        if wall_s > 0 and used_s > PROCESS_WARN * wall_s + 2 * tick_s:
            name = clean_text(process["name"], 40)
            evidence = f"process {name} used {used_s / wall_s:.0%} of a core"
            found.append(Finding(code="INTERFERENCE", evidence=evidence))
    return found


def pressure(child: ChildEvidence) -> list[Finding]:
    """Shares of the child's time in which some task waited (pressure stall information)."""
    wall_s = float(child.witness.get("wall_s") or 0)
    waited: dict[str, Any] = child.witness.get("stalled_s") or {}
    found = []
    for kind, allowed in PRESSURE_WARN.items():
        stalled_s = float(waited.get(kind) or 0)
        if wall_s > 0 and stalled_s > allowed * wall_s:
            evidence = f"tasks waited for {kind} during {stalled_s / wall_s:.0%} of the time"
            found.append(Finding(code="INTERFERENCE", evidence=evidence))
    return found


def _spent(before: dict[str, Any], after: dict[str, Any], cores: set[str]) -> dict[str, float]:
    spent = {"busy": 0.0, "steal": 0.0, "total": 0.0}
    for core in cores & set(before) & set(after):
        for kind in spent:
            spent[kind] += after[core][kind] - before[core][kind]
    return spent
