"""What was wrong with a measurement: pure functions from evidence to findings to verdicts.

A *finding* says what happened and how much; its *severity* depends on the measuring profile
(:mod:`device_agents.profiles`). Findings of several rounds are merged into one verdict per code.

================  ===============================================================================
THROTTLED         a cooling device acted, the clock limit fell, or a zone reached its trip point
FREQ_CHANGED      the clock of a timed core moved during the round
UNCONTROLLED_GOV  a governor may change the clock, or no clock can be read at all
INTERFERENCE      other processes or the hypervisor took the timed cores, or switches were forced
MIGRATED          a thread was allowed to run outside the chosen cores
DRIFT             the reference network changed its own latency
TREND             block medians climb or fall within the rounds
WRONG_ANSWER      the outputs differ from the expected ones
NOT_FINITE        an output holds NaN or an infinity
NOT_STEADY        the warm-up hit its time limit
BOARD_REBOOTED    rounds come from different boots
================  ===============================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from device_agents.board.child import core_list
from device_agents.profiles import Profile
from device_agents.replies import ChildEvidence, NetRound
from device_agents.statistics import theil_sen
from latency_tables.records import Verdict

DRIFT_WARN = 0.01
TREND_WARN = 0.005
OTHERS_WARN = 0.05
NEIGHBOURS_WARN = 0.25
STEAL_WARN = 0.01
SWITCHES_PER_RUN_WARN = 0.01
MAX_WIDENING = 0.5
FIXED_GOVERNORS = ("performance", "userspace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something seen in one round; ``size`` is its relative effect where that is known."""

    code: str
    evidence: str
    size: float = 0.0


def judge(findings: Iterable[Finding], profile: Profile) -> tuple[tuple[Verdict, ...], float]:
    """Verdicts, one per code with its largest finding, and by how much to widen the interval.

    The widening is a fraction of the median and 0 unless the profile widens.
    """
    by_code: dict[str, list[Finding]] = {}
    for finding in findings:
        by_code.setdefault(finding.code, []).append(finding)
    verdicts, widening = [], 0.0
    for code in sorted(by_code):
        severity = profile.severity.get(code)
        worst = max(by_code[code], key=lambda finding: finding.size)
        if severity is None:
            continue
        if code == "DRIFT" and profile.drift_fail is not None:
            severity = "fail" if worst.size > profile.drift_fail else "warn"
        times = f" (and {n - 1} more)" if (n := len(by_code[code])) > 1 else ""
        verdicts.append(Verdict(code=code, severity=severity, evidence=worst.evidence + times))
        if severity == "warn" and profile.widen:
            widening += float(np.median([finding.size for finding in by_code[code]]))
    return tuple(verdicts), min(widening, MAX_WIDENING)


def board_findings(child: ChildEvidence, cores: Sequence[int]) -> list[Finding]:
    """Everything that concerns all networks of one child."""
    return [
        *throttling(child.before, child.after),
        *clock_changes(child, cores),
        *uncontrolled_governors(child.after, cores),
        *other_load(child, cores),
    ]


def net_findings(result: NetRound) -> list[Finding]:
    """Everything that concerns one network in one round."""
    found = []
    if result.masks_outside:
        masks = ", ".join(result.masks_outside)
        found.append(Finding(code="MIGRATED", evidence=f"threads were allowed on cores {masks}"))
    if result.involuntary_switches > SWITCHES_PER_RUN_WARN * result.n_runs:
        found.append(
            Finding(
                code="INTERFERENCE",
                evidence=f"{result.involuntary_switches} involuntary context switches in "
                f"{result.n_runs} runs",
            )
        )
    if result.golden_right is False:
        error = "shape" if result.golden_error is None else f"max error {result.golden_error:.3g}"
        found.append(Finding(code="WRONG_ANSWER", evidence=f"outputs are not as expected: {error}"))
    if not result.finite:
        found.append(Finding(code="NOT_FINITE", evidence="an output holds NaN or an infinity"))
    if not result.steady:
        runs = result.warmup_runs
        found.append(Finding(code="NOT_STEADY", evidence=f"still moving after {runs} runs"))
    return found


def throttling(before: dict[str, Any], after: dict[str, Any]) -> list[Finding]:
    """Signs in cooling devices, clock limits and temperatures that heat slowed the board."""
    found = []
    for old, new in _paired(before, after, "cooling_devices"):
        state, name = new.get("state") or 0, f"{new.get('type')} ({new.get('name')})"
        moved = (new.get("transitions") or 0) - (old.get("transitions") or 0)
        if state > 0 or moved > 0:
            evidence = f"cooling device {name} is in state {state} after {moved} changes"
            found.append(Finding(code="THROTTLED", evidence=evidence))
    for old, new in _paired(before, after, "policies"):
        was, now = old.get("max_khz"), new.get("max_khz")
        if was and now and now < was:
            evidence = f"clock limit of {new.get('name')} fell from {was} to {now} kHz"
            found.append(Finding(code="THROTTLED", evidence=evidence))
    for _, new in _paired(before, after, "thermal_zones"):
        heat, trip = new.get("temperature_mc"), new.get("passive_trip_mc")
        if heat and trip and heat >= trip:
            evidence = f"{new.get('type')} is at {heat / 1e3:g} °C, its limit is {trip / 1e3:g} °C"
            found.append(Finding(code="THROTTLED", evidence=evidence))
    return found


def clock_changes(child: ChildEvidence, cores: Sequence[int]) -> list[Finding]:
    """Changes of the clock of the timed cores: by the kernel's counter, else by samples."""
    found = []
    for old, new in _paired(child.before, child.after, "policies"):
        if not _concerns(new, cores):
            continue
        moved = (new.get("transitions") or 0) - (old.get("transitions") or 0)
        low, high = child.clock_khz.get(str(new.get("name")), (0, 0))
        if moved > 0:
            evidence = f"{new.get('name')} changed its clock {moved} times"
        elif low and high > low * 1.005:
            evidence = f"{new.get('name')} ran between {low} and {high} kHz"
        else:
            continue
        found.append(Finding(code="FREQ_CHANGED", evidence=evidence))
    return found


def uncontrolled_governors(after: dict[str, Any], cores: Sequence[int]) -> list[Finding]:
    """Clocks of the timed cores that the kernel may change, or that cannot be seen."""
    policies = [p for p in after.get("policies") or [] if _concerns(p, cores)]
    if not policies:
        evidence = "this machine shows no cpufreq policy (virtual machine?)"
        return [Finding(code="UNCONTROLLED_GOV", evidence=evidence)]
    found = []
    for policy in policies:
        fixed = policy.get("min_khz") and policy.get("min_khz") == policy.get("max_khz")
        if policy.get("governor") not in FIXED_GOVERNORS and not fixed:
            evidence = f"governor of {policy.get('name')} is {policy.get('governor')}"
            found.append(Finding(code="UNCONTROLLED_GOV", evidence=evidence))
    return found


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
        found.append(Finding(code="INTERFERENCE", evidence=evidence))
    if rest["busy"] > NEIGHBOURS_WARN * rest["total"] + 2:
        evidence = f"the other cores were {rest['busy'] / rest['total']:.0%} busy"
        found.append(Finding(code="INTERFERENCE", evidence=evidence))
    if timed["steal"] > STEAL_WARN * timed["total"] + 2:
        evidence = f"the hypervisor took {timed['steal'] / timed['total']:.0%} of the timed cores"
        found.append(Finding(code="INTERFERENCE", evidence=evidence))
    return found


def drift(around_ns: Sequence[float | None], session_ns: float) -> list[Finding]:
    """Rounds in which the reference was off its own median over the session.

    >>> drift([100.0, 101.5, None], 100.0)[0].evidence
    'the reference network was off by +1.5%'
    """
    offs = [near / session_ns - 1 for near in around_ns if near]
    return [
        Finding(
            code="DRIFT",
            evidence=f"the reference network was off by {off:+.1%}",
            size=abs(off),
        )
        for off in offs
        if abs(off) > DRIFT_WARN
    ]


def trend(rounds: Sequence[NetRound]) -> list[Finding]:
    """A slope over blocks that has one sign in all rounds and stands out of the scatter."""
    totals, clear = [], True
    for result in rounds:
        values = np.array(result.block_medians_ns, dtype=np.float64)
        if len(values) < 5:
            return []
        slope = theil_sen(list(values))
        residuals = values - slope * np.arange(len(values))
        scatter = float(np.median(np.abs(residuals - np.median(residuals))))
        total = slope * (len(values) - 1)
        clear = clear and abs(total) > 2 * scatter
        totals.append(total / float(np.median(values)))
    size = float(np.median(totals))
    if not clear or len({np.sign(t) for t in totals}) != 1 or abs(size) <= TREND_WARN:
        return []
    evidence = f"block medians moved by {size:+.1%} within a round"
    return [Finding(code="TREND", evidence=evidence, size=abs(size))]


def reboots(boot_ids: Iterable[str]) -> list[Finding]:
    """More than one boot among the rounds.

    >>> [finding.code for finding in reboots(["a", "b"])]
    ['BOARD_REBOOTED']
    """
    known = {boot for boot in boot_ids if boot}
    if len(known) < 2:
        return []
    return [Finding(code="BOARD_REBOOTED", evidence=f"rounds come from {len(known)} boots")]


def _paired(
    before: dict[str, Any], after: dict[str, Any], what: str
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    old = {item.get("name"): item for item in before.get(what) or []}
    return [(old.get(item.get("name"), {}), item) for item in after.get(what) or []]


def _concerns(policy: dict[str, Any], cores: Sequence[int]) -> bool:
    listed = str(policy.get("cores") or "").replace(" ", ",")
    return not listed or bool(core_list(listed) & set(cores))


def _spent(before: dict[str, Any], after: dict[str, Any], cores: set[str]) -> dict[str, float]:
    spent = {"busy": 0.0, "steal": 0.0, "total": 0.0}
    for core in cores & set(before) & set(after):
        for kind in spent:
            spent[kind] += after[core][kind] - before[core][kind]
    return spent
