"""The same network twice in one session: noise, or a device that drifted in between."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from latency_tables.records import CI_LEVEL, NS_PER_MS, Measurement, Statistics

MAX_GAP = 3.0
"""Two medians of one session may differ by this many standard errors of their difference."""

_TICK_NS = 1.0
"""No clock is finer than this, whatever a record says about its noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Second:
    """A second number for a key in one session; ``gap`` is in standard errors."""

    net_id: str
    run_id: str
    first_ms: float
    second_ms: float
    gap: float

    @property
    def drifted(self) -> bool:
        """Whether the two differ by more than noise."""
        return self.gap > MAX_GAP

    def __str__(self) -> str:
        about = "DRIFT: " if self.drifted else ""
        return (
            f"{about}{self.second_ms:.6g} ms after {self.first_ms:.6g} ms, {self.gap:.1f} × noise"
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {**asdict(self), "drifted": self.drifted}


def compare(first: Measurement, second: Measurement) -> Second:
    """Compare two usable records of one key and session. Raises MissingLatencyError."""
    one, two = first.latency_ms, second.latency_ms
    errors = [_error_ns(m.statistics) for m in (first, second) if m.statistics is not None]
    noise_ms = max(_TICK_NS, math.hypot(*errors)) / NS_PER_MS
    return Second(
        net_id=first.net_id,
        run_id=first.run_id,
        first_ms=one,
        second_ms=two,
        gap=abs(one - two) / noise_ms,
    )


def _error_ns(statistics: Statistics) -> float:
    """Standard error of the median: from its interval, at least from the spread of single runs."""
    width = (statistics.ci_high_ns - statistics.ci_low_ns) / 2
    of_interval = width / NormalDist().inv_cdf((1 + CI_LEVEL) / 2)
    of_runs = 1.2533 * 1.4826 * abs(statistics.mad_ns) / math.sqrt(statistics.n_samples)
    return max(of_interval, of_runs)
