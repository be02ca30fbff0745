"""Measuring profiles: how long to look, when to stop, and how severe each finding is.

``quick`` is for a first table on a busy desktop, ``screening`` for many candidates on a board,
``strict`` for numbers to publish. Times are per network and round unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from latency_tables.errors import UsageError
from latency_tables.records import Severity

ProfileName = Literal["quick", "screening", "strict"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How to measure.

    ``batch_size`` networks share a process per round: starting it costs as much as timing several
    small networks, and a batch is what a kill loses. ``gate_wait_s`` is how long a round waits
    for a gate (:mod:`~device_agents.measuring.gates`) to open. A batch that took
    ``time_budget_s`` per network takes no rounds beyond ``min_rounds``.

    A round that met the device busy (``batches.BUSY``) is taken again, at most ``retakes`` times
    per batch. A session stops after ``min_rounds`` once the 95 % interval of
    every network is within ±``target_half_width`` of its median, and after ``max_rounds`` in any
    case. A finding whose code is not in ``severity`` is not reported. ``drift_fail`` is the drift
    of the reference above which DRIFT is a failure; ``widen`` adds the drift to the interval
    instead.
    """

    name: str
    min_rounds: int
    max_rounds: int
    target_half_width: float
    blocks: int
    min_block_ms: float
    min_iterations: int
    warmup_min_runs: int
    warmup_block_ms: float
    warmup_cap_ms: float
    warmup_tolerance: float
    reference_every: int
    retakes: int
    net_timeout_s: float
    batch_size: int
    gate_wait_s: float
    severity: dict[str, Severity]
    time_budget_s: float | None = None
    drift_fail: float | None = None
    widen: bool = False
    block_runs: tuple[int, ...] | None = None

    def board_plan(self) -> dict[str, Any]:
        """The part that the agent's timing loop follows."""
        return {
            "blocks": self.blocks,
            "min_block_ns": round(self.min_block_ms * 1e6),
            "min_iterations": self.min_iterations,
            "warmup_min_runs": self.warmup_min_runs,
            "warmup_block_ns": round(self.warmup_block_ms * 1e6),
            "warmup_cap_ns": round(self.warmup_cap_ms * 1e6),
            "warmup_tolerance": self.warmup_tolerance,
            "block_runs": list(self.block_runs) if self.block_runs else None,
            "max_samples": 20_000,
        }

    def net_seconds(self, net_ms: float) -> float:
        """Expected time of one network in one round, loading included."""
        if self.block_runs:
            return 0.02 + net_ms / 1e3 * (sum(self.block_runs) + self.warmup_min_runs)
        block_ms = max(self.min_block_ms, self.min_iterations * net_ms)
        warmup_ms = max(self.warmup_cap_ms / 2, (self.warmup_min_runs + 1) * net_ms)
        return 0.02 + (self.blocks * block_ms + warmup_ms) / 1e3


SEVERITY: dict[str, tuple[Severity | None, Severity | None, Severity | None]] = {
    # code: quick, screening, strict; None: not reported. docs/measuring.md shows the same table.
    "THROTTLED": ("fail", "fail", "fail"),
    "WRONG_ANSWER": ("fail", "fail", "fail"),
    "BOARD_REBOOTED": ("fail", "fail", "fail"),
    "MIGRATED": ("fail", "fail", "fail"),
    "FREQ_CHANGED": ("warn", "warn", "fail"),
    "CLOCK_MISMATCH": ("warn", "warn", "fail"),
    "CLOCKS_REFUSED": ("warn", "warn", "fail"),
    "UNCONTROLLED_GOV": ("warn", "warn", "fail"),
    "UNCONTROLLED_DMC": ("warn", "warn", "fail"),
    "UNCONTROLLED_NPU": ("warn", "warn", "fail"),
    "INTERFERENCE": ("warn", "warn", "fail"),
    "BUSY_BOARD": (None, "warn", "fail"),
    "HOT": ("warn", "warn", "fail"),
    "COLD": (None, "warn", "warn"),
    "DRIFT": ("warn", "warn", "fail"),
    "TREND": ("warn", "warn", "warn"),
    "BIMODAL": ("warn", "warn", "warn"),
    "NPU_FLUCTUATION": ("warn", "warn", "warn"),
    "NOT_FINITE": ("warn", "warn", "warn"),
    "NOT_STEADY": (None, None, "warn"),
}
"""How severe each finding is. STUCK_THROTTLE is no finding: it stops the session."""


def severities(profile: ProfileName) -> dict[str, Severity]:
    """The column of a profile, without what it does not report.

    >>> severities("quick")["DRIFT"], severities("strict")["DRIFT"]
    ('warn', 'fail')
    """
    column = get_args(ProfileName).index(profile)
    return {code: row[column] for code, row in SEVERITY.items() if row[column] is not None}  # type: ignore[misc]


PROFILES: dict[str, Profile] = {
    "quick": Profile(
        name="quick",
        min_rounds=3,
        max_rounds=3,
        target_half_width=0.05,
        blocks=5,
        min_block_ms=8.0,
        min_iterations=5,
        warmup_min_runs=3,
        warmup_block_ms=2.0,
        warmup_cap_ms=40.0,
        warmup_tolerance=0.02,
        reference_every=4,
        retakes=3,
        net_timeout_s=30.0,
        batch_size=50,
        gate_wait_s=0.0,
        severity=severities("quick"),
        widen=True,
    ),
    "screening": Profile(
        name="screening",
        min_rounds=3,
        max_rounds=5,
        target_half_width=0.02,
        blocks=8,
        min_block_ms=50.0,
        min_iterations=10,
        warmup_min_runs=3,
        warmup_block_ms=10.0,
        warmup_cap_ms=1_000.0,
        warmup_tolerance=0.01,
        reference_every=3,
        retakes=3,
        net_timeout_s=60.0,
        batch_size=25,
        gate_wait_s=60.0,
        time_budget_s=60.0,
        severity=severities("screening"),
    ),
    "strict": Profile(
        name="strict",
        min_rounds=5,
        max_rounds=15,
        target_half_width=0.005,
        blocks=10,
        min_block_ms=100.0,
        min_iterations=10,
        warmup_min_runs=3,
        warmup_block_ms=50.0,
        warmup_cap_ms=10_000.0,
        warmup_tolerance=0.005,
        reference_every=2,
        retakes=5,
        net_timeout_s=180.0,
        batch_size=10,
        gate_wait_s=120.0,
        time_budget_s=300.0,
        severity=severities("strict"),
        drift_fail=0.03,
    ),
}


def load_profile(profile: str | Profile) -> Profile:
    """Give a profile by name. Raises UsageError naming those that exist.

    >>> load_profile("quick").max_rounds
    3
    """
    if isinstance(profile, Profile):
        return profile
    if profile not in PROFILES:
        raise UsageError(
            f"measuring profile {profile!r} does not exist; there are {', '.join(PROFILES)}"
        )
    return PROFILES[profile]


def counted(runs: int, rounds: int, *, warmup_runs: int = 3, base: str = "quick") -> Profile:
    """A profile of exactly ``runs`` timed runs in each of ``rounds`` rounds.

    Severities are those of ``base``. Raises UsageError on counts below one.

    >>> profile = counted(20, 2)
    >>> sum(profile.block_runs), profile.max_rounds
    (20, 2)
    """
    if runs < 1 or rounds < 1 or warmup_runs < 0:
        raise UsageError(f"{runs} runs in {rounds} rounds after {warmup_runs}: at least 1, 1 and 0")
    blocks = min(5, runs)
    share, rest = divmod(runs, blocks)
    return replace(
        load_profile(base),
        name=f"{runs}x{rounds}",
        min_rounds=rounds,
        max_rounds=rounds,
        retakes=0,
        blocks=blocks,
        warmup_min_runs=warmup_runs,
        warmup_cap_ms=0.0,
        block_runs=tuple(share + (index < rest) for index in range(blocks)),
    )
