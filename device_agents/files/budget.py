"""Limits that a measured network must keep, judged with the uncertainty of the measurement.

A limit is kept when the end of the interval that is nearer to it still keeps it, broken when the
other end breaks it, and otherwise the measurement is inconclusive: with more rounds it may become
either. A percentile below its sample floor is inconclusive, too, and so is a measurement with a
verdict that keeps it out of tables.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from latency_tables.errors import BudgetMissedError, InconclusiveError, UsageError
from latency_tables.records import NS_PER_MS, Measurement, Statistics

Outcome = Literal["pass", "fail", "inconclusive"]
Relation = Literal["<=", ">="]

_LIMIT = re.compile(r"\s*([a-z0-9_]+)\s*(<=|>=|<|>|==?)\s*(\S+)\s*\Z")
_LATENCIES = ("latency_ms", "min_ms", "mean_ms", "p90_ms", "p95_ms", "p99_ms")
_METRICS: dict[str, Relation] = {
    **{name: "<=" for name in _LATENCIES},
    "peak_memory_mb": "<=",
    "peak_memory_bytes": "<=",
    "throughput": ">=",
}
MORE_ROUNDS = "more rounds narrow the interval: --measuring strict"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One limit: ``metric`` ``relation`` ``bound``."""

    metric: str
    relation: Relation
    bound: float

    def __str__(self) -> str:
        return f"{self.metric}{self.relation}{self.bound:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """How one limit came out; ``low`` and ``high`` are the interval of ``value``."""

    limit: Limit
    outcome: Outcome
    value: float | None
    low: float | None
    high: float | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "limit": str(self.limit),
            "metric": self.limit.metric,
            "relation": self.limit.relation,
            "bound": self.limit.bound,
            "outcome": self.outcome,
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "reason": self.reason,
        }


def parse_limit(text: str) -> Limit:
    """Read ``latency_ms<=5``. Raises UsageError listing the metrics and their relations.

    >>> parse_limit("p90_ms <= 7.5")
    Limit(metric='p90_ms', relation='<=', bound=7.5)
    """
    match = _LIMIT.match(text)
    allowed = ", ".join(f"{name}{relation}X" for name, relation in _METRICS.items())
    if match is None or match[1] not in _METRICS:
        raise UsageError(f"limit {text!r} is not one of {allowed}")
    relation = _METRICS[match[1]]
    if match[2] != relation:
        raise UsageError(f"limit {text!r}: {match[1]} can only be limited with {relation}")
    try:
        bound = float(match[3])
    except ValueError:
        bound = math.nan
    if not (math.isfinite(bound) and bound > 0):
        raise UsageError(f"limit {text!r}: {match[3]!r} is not a positive number")
    return Limit(metric=match[1], relation=relation, bound=bound)


def judge(limits: Sequence[Limit], measurement: Measurement) -> tuple[Judgement, ...]:
    """Judge every limit on one measurement."""
    return tuple(_judge(limit, measurement) for limit in limits)


def outcome(judgements: Sequence[Judgement]) -> Outcome:
    """The worst outcome of all: fail, else inconclusive, else pass."""
    found = {one.outcome for one in judgements}
    return "fail" if "fail" in found else "inconclusive" if "inconclusive" in found else "pass"


def require(judgements: Sequence[Judgement]) -> None:
    """Raise BudgetMissedError or InconclusiveError unless every limit is kept."""
    verdict = outcome(judgements)
    if verdict == "pass":
        return
    said = "; ".join(f"{j.limit}: {j.reason}" for j in judgements if j.outcome == verdict)
    if verdict == "fail":
        raise BudgetMissedError(f"limit not kept: {said}")
    raise InconclusiveError(f"cannot say whether the limit is kept: {said}", hint=MORE_ROUNDS)


def _judge(limit: Limit, measurement: Measurement) -> Judgement:
    failed = [verdict.code for verdict in measurement.verdicts if verdict.severity == "fail"]
    value, low, high = _interval(limit.metric, measurement)

    def made(result: Outcome, reason: str) -> Judgement:
        return Judgement(
            limit=limit, outcome=result, value=value, low=low, high=high, reason=reason
        )

    if "WRONG_ANSWER" in failed:
        return made("fail", "the outputs are wrong, so no limit is kept")
    if failed:
        return made("inconclusive", f"the measurement is not valid: {', '.join(failed)}")
    if value is None or low is None or high is None:
        return made("inconclusive", _why_unknown(limit.metric))
    shown = f"{value:.6g}" if low == high else f"{value:.6g}, interval {low:.6g} … {high:.6g}"
    if limit.relation == ">=":
        kept, broken = low >= limit.bound, high < limit.bound
    else:
        kept, broken = high <= limit.bound, low > limit.bound
    if kept:
        return made("pass", f"measured {shown}")
    if broken:
        return made("fail", f"measured {shown}")
    return made("inconclusive", f"measured {shown}: the limit lies inside")


def _why_unknown(metric: str) -> str:
    if metric.startswith("peak_memory"):
        return "the peak memory was not measured"
    return f"too few independent runs for {metric.removesuffix('_ms')}"


def _interval(
    metric: str, measurement: Measurement
) -> tuple[float | None, float | None, float | None]:
    if metric.startswith("peak_memory"):
        size = measurement.peak_memory_bytes
        if size is None:
            return None, None, None
        found = size / (1e6 if metric.endswith("_mb") else 1)
        return found, found, found
    statistics = measurement.statistics
    if statistics is None:
        return None, None, None
    if metric == "throughput":
        return (
            1e9 / statistics.median_ns,
            1e9 / statistics.ci_high_ns,
            1e9 / statistics.ci_low_ns,
        )
    return _latency(metric.removesuffix("_ms"), statistics)


def _latency(name: str, found: Statistics) -> tuple[float | None, float | None, float | None]:
    """Milliseconds. Only the median has an interval of its own; it is scaled to the others.

    What moves the median between processes (placement, clocks, neighbours) moves the whole
    distribution.
    """
    value = found.median_ns if name == "latency" else getattr(found, f"{name}_ns")
    if value is None:
        return None, None, None
    scale = value / found.median_ns
    low, high = found.ci_low_ns * scale, found.ci_high_ns * scale
    return value / NS_PER_MS, low / NS_PER_MS, high / NS_PER_MS
