"""What the times themselves tell: drift, trend, two groups, wrong outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from device_agents.measuring.replies import NetRound
from device_agents.measuring.statistics import theil_sen
from device_agents.measuring.verdicts.finding import Finding
from latency_tables.records import Verdict

DRIFT_WARN = 0.01
DRIFT_QUARANTINE = 0.03
TREND_WARN = 0.005
SWITCHES_PER_RUN_WARN = 0.01
NPU_SPREAD_WARN = 0.05
_MIN_RUNS = 20

Floats = NDArray[np.float64]


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


def drift(around_ns: Sequence[float | None], session_ns: float) -> list[Finding]:
    """Rounds in which the reference was off its own median over the session.

    >>> drift([100.0, 101.5, None], 100.0)[0].evidence
    'the reference network was off by +1.5%'
    """
    found = []
    for near in around_ns:
        off = near / session_ns - 1 if near else 0.0
        if abs(off) > DRIFT_WARN:
            evidence = f"the reference network was off by {off:+.1%}"
            if abs(off) > DRIFT_QUARANTINE:
                evidence += ": look at the device before it measures more"
            found.append(Finding(code="DRIFT", evidence=evidence, size=abs(off)))
    return found


def to_quarantine(verdicts: Iterable[Verdict]) -> bool:
    """Whether a drift that fails its profile says that the device itself needs a look."""
    return any(v.code == "DRIFT" and v.severity == "fail" for v in verdicts)


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


def bimodal(rounds: Sequence[NetRound]) -> list[Finding]:
    """Runs that fall into two groups within most rounds: two alignments, two cores, two states.

    Rounds are looked at one by one: that processes differ from each other is usual, and the
    interval over rounds says it.
    """
    gaps = [
        gap
        for result in rounds
        if (gap := two_groups(np.concatenate(result.samples_ns).astype(np.float64))) is not None
    ]
    if 2 * len(gaps) <= len(rounds):
        return []
    size = float(np.median(gaps))
    evidence = (
        f"runs fall into two groups, {size:.1%} apart, in {len(gaps)} of {len(rounds)} rounds"
    )
    return [Finding(code="BIMODAL", evidence=evidence, size=size)]


def two_groups(values: Floats, *, min_share: float = 0.2, min_size: float = 0.01) -> float | None:
    """Distance of two groups of values, as a share of the median; None where there is one.

    The split with the least squared deviation inside the halves must leave a fifth of the values
    on each side, medians more than three scaled deviations (1.4826·MAD) apart and by more than
    ``min_size``, and hardly a value (5 %) in the middle third between the medians: a long tail
    fills it, two groups do not.

    >>> two_groups(np.array([100.0, 101.0, 102.0] * 10 + [120.0, 121.0, 122.0] * 10)) > 0.1
    True
    """
    if len(values) < _MIN_RUNS:
        return None
    ordered = np.sort(values)
    n = len(ordered)
    sizes = np.arange(1, n)
    sums, squares = np.cumsum(ordered - ordered[0]), np.cumsum((ordered - ordered[0]) ** 2)
    left = squares[:-1] - sums[:-1] ** 2 / sizes
    right = squares[-1] - squares[:-1] - (sums[-1] - sums[:-1]) ** 2 / (n - sizes)
    cut = int(np.argmin(left + right)) + 1
    if min(cut, n - cut) < min_share * n:
        return None
    low, high = ordered[:cut], ordered[cut:]
    below, above = float(np.median(low)), float(np.median(high))
    distance = above - below
    scatter = 1.4826 * max(_mad(low), _mad(high))
    third = distance / 3
    between = np.count_nonzero((ordered > below + third) & (ordered < above - third)) / n
    size = distance / float(np.median(ordered))
    if distance <= 3 * scatter or between > 0.05 or size <= min_size:
        return None
    return size


def npu_fluctuation(rounds: Sequence[NetRound]) -> list[Finding]:
    """The NPU's own times scatter by more than 5 % while the rest of a run is steady.

    A runtime tells them as ``npu_ns``, one per run, and the whole runs as ``run_ns``.
    """
    spreads, ranges = [], []
    for result in rounds:
        npu = _column(result, "npu_ns")
        run = _column(result, "run_ns")
        if len(npu) < _MIN_RUNS:
            continue
        spread = _spread(npu)
        rest = run - npu if len(run) == len(npu) else None
        # a busy processor makes both scatter, which is interference and not the NPU
        if rest is not None and np.median(rest) > 0 and _width(rest) > 0.5 * _width(npu):
            continue
        spreads.append(spread)
        ranges += [float(npu.min()), float(npu.max())]
    if not spreads or (size := float(np.median(spreads))) <= NPU_SPREAD_WARN:
        return []
    evidence = (
        f"the NPU's own times scatter by {size:.1%}, "
        f"between {min(ranges) / 1e6:.3f} and {max(ranges) / 1e6:.3f} ms"
    )
    return [Finding(code="NPU_FLUCTUATION", evidence=evidence, size=size)]


def _column(result: NetRound, name: str) -> Floats:
    values = result.runtime_evidence.get(name)
    values = values if isinstance(values, list) else []
    return np.array([v for v in values if isinstance(v, int | float) and v > 0], dtype=np.float64)


def _width(values: Floats) -> float:
    low, high = np.percentile(values, [10, 90])
    return float(high - low)


def _spread(values: Floats) -> float:
    return _width(values) / float(np.median(values))


def _mad(values: Floats) -> float:
    return float(np.median(np.abs(values - np.median(values))))
