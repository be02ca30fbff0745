"""Numbers behind the report, and how they are written for people."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from latency_tables.estimate import Estimate
from latency_tables.ranking import kendall_tau
from pipeline.report.model import FrontRow

# C0 and C1 controls (but tab and newline), bidirectional overrides, zero-width characters
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
)
MISSING = "–"


def visible(text: object, *, limit: int = 400) -> str:
    """A text without invisible or control characters, shortened to ``limit``.

    Escaping HTML or markup is left to the renderer; this is for what escaping lets through:
    terminal sequences, and letters that turn the reading direction.

    >>> visible("a\\x1b[2Jb")
    'a�[2Jb'
    """
    cleaned = _INVISIBLE.sub("\ufffd", str(text))
    return cleaned if len(cleaned) <= limit else f"{cleaned[: limit - 1]}…"


def significant(value: float, digits: int = 3) -> str:
    """A number with ``digits`` significant digits and no exponent.

    >>> significant(0.08344), significant(12.0), significant(1234.5)
    ('0.0834', '12.0', '1234')
    """
    if not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")  # first, for 0.9999 has another decade than 1.00
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{value:.{decimals}f}"


def latency(estimate: Estimate | None) -> str:
    """``"1.83 ms"``, or a dash."""
    return MISSING if estimate is None else f"{significant(estimate.latency_ms)} ms"


def interval(estimate: Estimate | None) -> str:
    """``"1.80 … 1.90"`` in ms, or nothing."""
    if estimate is None:
        return ""
    return f"{significant(estimate.low_ms)} … {significant(estimate.high_ms)}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage, or a dash.

    >>> percent(0.95625)
    '95.6 %'
    """
    return MISSING if value is None or not math.isfinite(value) else f"{value * 100:.{digits}f} %"


def quantity(value: float | None, unit: str = "") -> str:
    """A large number with a decimal prefix.

    >>> quantity(322_918_720), quantity(611_374, "B"), quantity(12)
    ('323 M', '611 kB', '12')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor * 0.9995:
            return f"{significant(value / factor)} {prefix}{unit}"
    number = f"{value:.0f}" if float(value).is_integer() else significant(value)
    return f"{number} {unit}".strip()


def power_of_ten(count: int) -> str:
    """A count of architectures: exact while short, otherwise its order of magnitude.

    >>> power_of_ten(6561), power_of_ten(4**20)
    ('6,561', '1.1 × 10¹²')
    """
    if count < 10_000_000:
        return f"{count:,}"
    exponent = len(str(count)) - 1
    digits = str(exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{count / 10**exponent:.1f} × 10{digits}"


def duration(seconds: float) -> str:
    """A duration as people say it.

    >>> duration(0.4), duration(75), duration(7300)
    ('0.4 s', '1 min 15 s', '2 h 01 min')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def wilson(value: float, n_images: int) -> tuple[float, float]:
    """95 % interval of a share seen on ``n_images`` (Wilson, 1927).

    >>> low, high = wilson(0.95, 200)
    >>> round(low, 3), round(high, 3)
    (0.91, 0.973)
    """
    if n_images <= 0:
        return 0.0, 1.0
    z = 1.959964
    centre = value + z * z / (2 * n_images)
    half = z * math.sqrt(value * (1 - value) / n_images + z * z / (4 * n_images**2))
    scale = 1 + z * z / n_images
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def sourced(estimate: Estimate | None) -> str:
    """``"1.83 ms predicted"``: a latency never goes without where it comes from.

    >>> sourced(Estimate(
    ...     latency_ms=1.83, low_ms=1.8, high_ms=1.9, key="k", source="table", n=90
    ... ))
    '1.83 ms table'
    """
    return MISSING if estimate is None else f"{latency(estimate)} {estimate.source}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Predicted against measured latency of the front on one device.

    Latencies that the search took from the table or from the device itself are no predictions and
    do not count. ``error`` is the median of the relative errors, ``inside`` how many measured
    latencies fell into the predicted interval, ``tau`` Kendall's tau-b (None below three networks).
    """

    n: int
    error: float
    inside: int
    tau: float | None


def foretold(front: Sequence[FrontRow], device: str) -> list[FrontRow]:
    """Points of the front whose latency on a device was predicted, then measured."""
    return [
        row
        for row in front
        if device in row.measured
        and device in row.predicted
        and row.predicted[device].source == "predicted"
    ]


def agreement(front: Sequence[FrontRow], device: str) -> Agreement | None:
    """How well the front's latencies were predicted; None where none of them was."""
    pairs = [(row.predicted[device], row.measured[device]) for row in foretold(front, device)]
    if not pairs:
        return None
    errors = sorted(abs(p.latency_ms - m.latency_ms) / m.latency_ms for p, m in pairs)
    middle = len(errors) // 2
    median = errors[middle] if len(errors) % 2 else (errors[middle - 1] + errors[middle]) / 2
    predicted, measured = [p.latency_ms for p, _ in pairs], [m.latency_ms for _, m in pairs]
    return Agreement(
        n=len(pairs),
        error=median,
        inside=sum(p.low_ms <= m.latency_ms <= p.high_ms for p, m in pairs),
        tau=kendall_tau(predicted, measured) if len(pairs) >= 3 else None,
    )
