"""From samples to numbers: medians of medians, a bootstrap over rounds, percentiles with floors.

Samples inside a process are correlated and processes differ from each other, so nothing here uses
formulas for independent samples: the headline is the median over rounds of the median of block
medians, and the interval resamples rounds first and blocks inside them.

Percentile floors: the smallest n for which at most one sample above the (1 - p) percentile has a
probability of at most 1 % (64, 130 and 662). The n is the effective one, after correlation between
neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from device_agents.measuring.replies import NetRound, ReferenceVisit
from latency_tables.errors import UsageError
from latency_tables.records import Statistics

N_DRAWS = 2000
SEED = 20260101
EQUAL = 0.01
"""Two networks whose ratio may lie within 1 ± this are called equal."""

PERCENTILE_FLOORS = {90: 64, 95: 130, 99: 662}

Floats = NDArray[np.float64]


def summarise(
    rounds: Sequence[NetRound],
    references_ns: Sequence[float | None],
    *,
    target_half_width: float,
    widening: float = 0.0,
) -> Statistics:
    """Statistics of one network over its rounds.

    ``references_ns`` is the reference network's time around this network in each round.
    ``widening`` is added to both half-widths of the interval, as a fraction of the median.
    """
    blocks = _blocks(rounds)
    medians = np.array([np.median(block) for block in blocks])
    median = float(np.median(medians))
    low, high = bootstrap_interval(blocks)
    low, high = min(low, median), max(high, median)
    samples = np.concatenate([np.concatenate(r.samples_ns) for r in rounds]).astype(np.float64)
    batched = any(r.calls_per_sample > 1 for r in rounds)
    n_effective = sum(effective_samples(np.concatenate(r.samples_ns)) for r in rounds)
    n_effective = 0.0 if batched else n_effective  # means of several calls have no such tails
    ratios = [m / ref for m, ref in zip(medians, references_ns, strict=True) if ref]
    tails = {p: percentile(samples, p, n_effective) for p in PERCENTILE_FLOORS}
    return Statistics(
        n_samples=sum(sum(r.block_counts) for r in rounds),
        n_rounds=len(rounds),
        median_ns=round(median),
        min_ns=min(r.min_ns for r in rounds),
        p10_ns=round(float(np.percentile(samples, 10))),
        mean_ns=round(float(samples.mean())),
        std_ns=round(float(samples.std())),
        mad_ns=round(float(np.median(np.abs(samples - np.median(samples))))),
        p90_ns=tails[90],
        p95_ns=tails[95],
        p99_ns=tails[99],
        ci_low_ns=max(1, round(low - widening * median)),
        ci_high_ns=round(high + widening * median),
        round_medians_ns=tuple(round(float(m)) for m in medians),
        first_ns=round(float(np.median([r.first_ns for r in rounds]))),
        load_ns=round(float(np.median([r.load_ns for r in rounds]))),
        warmup_runs=max(r.warmup_runs for r in rounds),
        converged=half_width(low, high, median) <= target_half_width,
        ratio_to_reference=float(np.median(ratios)) if ratios else None,
    )


def converged(rounds: Sequence[NetRound], target_half_width: float) -> bool:
    """Whether the interval of these rounds is narrow enough to stop."""
    blocks = _blocks(rounds)
    median = float(np.median([np.median(block) for block in blocks]))
    low, high = bootstrap_interval(blocks)
    return half_width(low, high, median) <= target_half_width


def half_width(low: float, high: float, median: float) -> float:
    """The larger half-width of an interval as a fraction of the median.

    >>> half_width(98.0, 104.0, 100.0)
    0.04
    """
    return max(high - median, median - low) / median


def bootstrap_interval(
    blocks: Sequence[Floats], *, seed: int = SEED, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the median over rounds of medians of block medians.

    ``blocks`` holds the block medians of each round. 2000 draws: rounds with replacement, then
    blocks inside each drawn round. The same data give the same interval.

    >>> bootstrap_interval([np.array([5.0, 5.0]), np.array([5.0])])
    (5.0, 5.0)
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn = rng.integers(0, len(blocks), (N_DRAWS, len(blocks)))
    medians = np.median(_drawn_medians(blocks, drawn, rng), axis=1)
    return _interval(medians, level)


def _drawn_medians(
    blocks: Sequence[Floats], drawn: NDArray[np.int64], rng: np.random.Generator
) -> Floats:
    """Median of resampled blocks of each drawn round, (draws, rounds)."""
    n_rounds, n_blocks = len(blocks), max(len(block) for block in blocks)
    counts = np.array([len(block) for block in blocks])
    table = np.zeros((n_rounds, n_blocks))  # rows are rounds, padded at the end
    for row, block in zip(table, blocks, strict=True):
        row[: len(block)] = block
    # a position in [0, 1) scaled by the number of blocks of the drawn round never meets padding
    within = rng.random((*drawn.shape, n_blocks)) * counts[drawn][..., None]
    values = table[drawn[..., None], within.astype(np.int64)]  # (draws, rounds, blocks)
    medians: Floats = np.median(values, axis=2)
    return medians


def _interval(values: Floats, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How many times as long one network takes as another, with a 95 % interval.

    ``equal``: the interval meets 1 ± 1 %, so the two are not told apart by more than that.
    ``surely_equal``: all of it lies there.
    """

    ratio: float
    low: float
    high: float

    @property
    def equal(self) -> bool:
        """Whether 1 ± 1 % is possible."""
        return self.low <= 1 + EQUAL and self.high >= 1 - EQUAL

    @property
    def surely_equal(self) -> bool:
        """Whether nothing but 1 ± 1 % is."""
        return self.low >= 1 - EQUAL and self.high <= 1 + EQUAL


def compare(
    rounds_a: Sequence[NetRound], rounds_b: Sequence[NetRound], *, seed: int = SEED
) -> Comparison:
    """Ratio of two networks that were timed in the same rounds, in the same order of rounds.

    The median over rounds of the ratio of their medians; the bootstrap draws rounds for both
    together, so that what both suffered cancels, and blocks for each. Raises UsageError on rounds
    that are no pairs.
    """
    if len(rounds_a) != len(rounds_b) or not rounds_a:
        raise UsageError(
            f"{len(rounds_a)} rounds cannot be paired with {len(rounds_b)}: both networks must "
            "have been timed in the same rounds"
        )
    a, b = _blocks(rounds_a), _blocks(rounds_b)
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn = rng.integers(0, len(a), (N_DRAWS, len(a)))
    ratios = _drawn_medians(a, drawn, rng) / _drawn_medians(b, drawn, rng)
    ratio = float(np.median([np.median(x) / np.median(y) for x, y in zip(a, b, strict=True)]))
    low, high = _interval(np.median(ratios, axis=1), 0.95)
    return Comparison(ratio=ratio, low=min(low, ratio), high=max(high, ratio))


def _blocks(rounds: Sequence[NetRound]) -> list[Floats]:
    return [np.array(r.block_medians_ns, dtype=np.float64) for r in rounds]


def effective_samples(series: NDArray[np.int64] | Floats) -> float:
    """Number of independent samples that tell as much as this correlated series.

    n·(1 - r)/(1 + r) with r the correlation of neighbours, of values clipped at the 1st and 99th
    percentile so that one outlier does not hide it; never more than n.

    >>> effective_samples(np.array([1.0, 1.0, 1.0, 1.0]))
    1.0
    """
    values = np.asarray(series, dtype=np.float64)
    values = np.clip(values, *np.percentile(values, [1, 99]))
    centred = values - values.mean()
    energy = float(centred @ centred)
    if len(values) < 3 or energy == 0.0:
        return 1.0
    r = min(0.999, max(0.0, float(centred[:-1] @ centred[1:]) / energy))
    return len(values) * (1 - r) / (1 + r)


def percentile(samples: Floats, p: int, n_effective: float) -> int | None:
    """The p-th percentile, or None below its sample floor.

    >>> percentile(np.arange(1.0, 101.0), 90, 63), percentile(np.arange(1.0, 101.0), 90, 64)
    (None, 90)
    """
    if n_effective < PERCENTILE_FLOORS[p]:
        return None
    return round(float(np.percentile(samples, p)))


def reference_around(visits: Sequence[ReferenceVisit], position: int) -> float | None:
    """Time of the reference just before and after a network, averaged; None without a visit."""
    before = [v for v in visits if v.position <= position]
    after = [v for v in visits if v.position > position]
    near = [*before[-1:], *after[:1]]
    if not near:
        return None
    return float(np.mean([np.median(v.block_medians_ns) for v in near]))


def theil_sen(values: Sequence[float]) -> float:
    """Median slope over all pairs, per step; one outlier does not move it.

    >>> theil_sen([1.0, 2.0, 3.0, 100.0, 5.0])
    1.0
    """
    series = np.asarray(values, dtype=np.float64)
    i, j = np.triu_indices(len(series), k=1)
    return float(np.median((series[j] - series[i]) / (j - i))) if len(i) else 0.0
