"""Clocks that moved, lie, were refused, or that nobody holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from device_agents.measuring.replies import ChildEvidence
from device_agents.measuring.verdicts.finding import Finding, Snapshot, concerns, paired, spent_ms

FIXED_GOVERNORS = ("performance", "userspace")
OUTSIDE_WARN = 0.005
MISMATCH_WARN = 0.02
SAMPLED_WARN = 0.005
CLOCK_TOLERANCE = 0.01
UNHELD = 0.01
"""Assumed effect of a clock that nobody holds: what differs between days on such a board is more
than a session shows, and what a session does show is DRIFT or FREQ_CHANGED."""


def clock_changes(
    child: ChildEvidence, cores: Sequence[int], target_khz: Mapping[str, int]
) -> list[Finding]:
    """Changes of the clock of the timed cores: by the kernel's counters, else by samples.

    ``target_khz`` holds clocks that were set, by policy; without one the clock that a policy had
    for longest is its target.
    """
    found = []
    for old, new in paired(child.before, child.after, "policies"):
        if not concerns(new, cores):
            continue
        name = str(new.get("name"))
        moved = (new.get("transitions") or 0) - (old.get("transitions") or 0)
        low, high = child.clock_khz.get(name, (0, 0))
        outside = outside_target(spent_ms(old, new), target_khz.get(name))
        if outside > OUTSIDE_WARN:
            evidence = f"{name} spent {outside:.1%} of the time at other clocks"
        elif moved > 0:
            evidence = f"{name} changed its clock {moved} times"
        elif low and high > low * (1 + SAMPLED_WARN):
            evidence = f"{name} ran between {low} and {high} kHz"
        else:
            continue
        found.append(Finding(code="FREQ_CHANGED", evidence=evidence, size=outside))
    return found


def outside_target(spent: Mapping[str, int], target_khz: int | None = None) -> float:
    """Share of the time at another clock than ``target_khz``, or than the most usual one.

    >>> outside_target({"408000": 10, "2208000": 990}), outside_target({})
    (0.01, 0.0)
    """
    total = sum(spent.values())
    if not total:
        return 0.0
    most = max(spent.values()) if target_khz is None else spent.get(str(target_khz), 0)
    return (total - most) / total


def devfreq_changes(child: ChildEvidence, *, npu: bool) -> list[Finding]:
    """Changes of the clocks of memory and, where it is timed, NPU."""
    found = []
    for old, new in paired(child.before, child.after, "devfreq"):
        if not (_is(new, "dmc") or (npu and _is(new, "npu"))):
            continue
        was, now = old.get("cur_hz"), new.get("cur_hz")
        moved = (new.get("transitions") or 0) - (old.get("transitions") or 0)
        if moved > 0:
            evidence = f"{new.get('name')} changed its clock {moved} times"
        elif was and now and was != now:
            evidence = f"{new.get('name')} went from {was} to {now} Hz"
        else:
            continue
        found.append(Finding(code="FREQ_CHANGED", evidence=evidence))
    return found


def clock_mismatch(child: ChildEvidence, cores: Sequence[int]) -> list[Finding]:
    """Counted cycles per second that differ from the clock that the kernel states."""
    if not child.cycles_per_s:
        return []
    stated = [
        policy["cur_khz"] * 1000.0
        for policy in child.after.get("policies") or []
        if concerns(policy, cores) and policy.get("cur_khz")
    ]
    if not stated:
        return []
    off, clock = min((abs(child.cycles_per_s / hz - 1), hz) for hz in stated)
    if off <= MISMATCH_WARN:
        return []
    evidence = (
        f"the cores made {child.cycles_per_s / 1e6:.0f} million cycles per second, "
        f"the kernel says {clock / 1e6:.0f} MHz"
    )
    return [Finding(code="CLOCK_MISMATCH", evidence=evidence, size=off)]


def clocks_refused(evidence: Mapping[str, Any]) -> list[Finding]:
    """Clocks that were asked for and not taken; ``evidence`` has asked, got and refused.

    >>> clocks_refused({"asked": {"dmc": 2}, "got": {"dmc": 1}, "refused": {}})[0].evidence
    'dmc: asked for 2, got 1'
    """
    asked = evidence.get("asked") or {}
    got, refused = evidence.get("got") or {}, evidence.get("refused") or {}
    found = []
    for name, wish in asked.items():
        if name in refused:
            why = f"{name}: asked for {wish}, refused: {refused[name]}"
        elif name in got and not _near(got[name], wish):
            why = f"{name}: asked for {wish}, got {got[name]}"
        else:
            continue
        found.append(Finding(code="CLOCKS_REFUSED", evidence=why))
    return found


def uncontrolled_governors(after: Snapshot, cores: Sequence[int]) -> list[Finding]:
    """Clocks of the timed cores that the kernel may change, or that cannot be seen."""
    policies = [p for p in after.get("policies") or [] if concerns(p, cores)]
    if not policies:
        evidence = "this machine shows no cpufreq policy (virtual machine?)"
        return [Finding(code="UNCONTROLLED_GOV", evidence=evidence, size=UNHELD)]
    found = []
    for policy in policies:
        fixed = policy.get("min_khz") and policy.get("min_khz") == policy.get("max_khz")
        if policy.get("governor") not in FIXED_GOVERNORS and not fixed:
            evidence = f"governor of {policy.get('name')} is {policy.get('governor')}"
            found.append(Finding(code="UNCONTROLLED_GOV", evidence=evidence, size=UNHELD))
    return found


def uncontrolled_devfreq(after: Snapshot, *, npu: bool) -> list[Finding]:
    """The clocks of memory and NPU that the kernel may change.

    A machine without any devfreq device tells nothing about its memory, and nothing is found.
    """
    devices = after.get("devfreq") or []
    wanted = [("dmc", "UNCONTROLLED_DMC")] if devices else []
    if npu:
        wanted.append(("npu", "UNCONTROLLED_NPU"))
    found = []
    for kind, code in wanted:
        matching = [device for device in devices if _is(device, kind)]
        if not matching:
            evidence = f"the kernel shows no clock of the {kind}"
            found.append(Finding(code=code, evidence=evidence, size=UNHELD))
        for device in matching:
            fixed = device.get("min_hz") and device.get("min_hz") == device.get("max_hz")
            if device.get("governor") not in FIXED_GOVERNORS and not fixed:
                evidence = f"governor of {device.get('name')} is {device.get('governor')}"
                found.append(Finding(code=code, evidence=evidence, size=UNHELD))
    return found


def _near(got: Any, wish: Any) -> bool:
    """Kernels round clocks to what the hardware makes; other settings are judged on the board."""
    numbers = type(got) is int and type(wish) is int
    return abs(got - wish) <= CLOCK_TOLERANCE * wish if numbers else True


def _is(device: Snapshot, kind: str) -> bool:
    return kind in str(device.get("name")) or kind in str(device.get("device"))
