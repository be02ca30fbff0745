"""Findings, and how a profile turns them into verdicts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from device_agents.board.child import core_list
from device_agents.measuring.profiles import Profile
from latency_tables.records import Verdict

MAX_WIDENING = 0.5
WIDENING = (
    "DRIFT",
    "TREND",
    "INTERFERENCE",
    "UNCONTROLLED_GOV",
    "UNCONTROLLED_DMC",
    "UNCONTROLLED_NPU",
)
"""Codes whose size is an error of the latency itself; a profile that widens adds them."""

Snapshot = dict[str, Any]


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
        if severity == "warn" and profile.widen and code in WIDENING:
            widening += float(np.median([finding.size for finding in by_code[code]]))
    return tuple(verdicts), min(widening, MAX_WIDENING)


def paired(before: Snapshot, after: Snapshot, what: str) -> list[tuple[Snapshot, Snapshot]]:
    """Items of a list in two snapshots, by name; the earlier one is empty where it is missing."""
    old = {item.get("name"): item for item in before.get(what) or []}
    return [(old.get(item.get("name"), {}), item) for item in after.get(what) or []]


def concerns(policy: Snapshot, cores: Iterable[int]) -> bool:
    """Whether a cpufreq policy governs one of ``cores``."""
    listed = str(policy.get("cores") or "").replace(" ", ",")
    return not listed or bool(core_list(listed) & set(cores))


def spent_ms(before: Snapshot, after: Snapshot) -> dict[str, int]:
    """Time in each state between two snapshots of one item, where the kernel counts it.

    >>> spent_ms({"time_in_state_ms": {"0": 10}}, {"time_in_state_ms": {"0": 15, "1": 2}})
    {'0': 5, '1': 2}
    """
    old, new = before.get("time_in_state_ms"), after.get("time_in_state_ms")
    if not isinstance(old, dict) or not isinstance(new, dict):
        return {}
    return {str(state): max(0, int(ms) - int(old.get(state, 0))) for state, ms in new.items()}
