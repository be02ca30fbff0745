"""Several sessions of one network become one latency."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from latency_tables.errors import MissingLatencyError
from latency_tables.estimate import Estimate, Source
from latency_tables.records import Measurement


def pool(
    measurements: Sequence[Measurement], *, source: Source = "table", level: float = 0.9
) -> Estimate:
    """Combine measurements of one key, one per session, into an Estimate.

    The latency is the median of the session medians; the interval is the hull of the sessions'
    intervals, so sessions that disagree widen it instead of averaging the disagreement away.
    Unusable records are ignored. Raises MissingLatencyError where none is left.
    """
    usable = [m for m in measurements if m.ok and m.statistics is not None]
    if not usable:
        raise MissingLatencyError(
            f"none of {len(measurements)} records holds a usable latency"
            + (f"; the last says {measurements[-1].why_not()}" if measurements else "")
        )
    centre = statistics.median(m.latency_ms for m in usable)
    intervals = [m.interval_ms(level) for m in usable]
    return Estimate(
        latency_ms=centre,
        low_ms=min(centre, *(low for low, _ in intervals)),
        high_ms=max(centre, *(high for _, high in intervals)),
        key=usable[0].key,
        source=source,
        n=sum(m.statistics.n_samples for m in usable if m.statistics is not None),
        level=level,
    )


def by_key(measurements: Iterable[Measurement]) -> dict[str, list[Measurement]]:
    """Usable measurements by key, in the order in which the keys first appear."""
    groups: dict[str, list[Measurement]] = defaultdict(list)
    for measurement in measurements:
        if measurement.ok:
            groups[measurement.key].append(measurement)
    return dict(groups)
