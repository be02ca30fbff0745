"""Agreement of two orders: Kendall's tau in two readings, Spearman, Pearson, top-k, and intervals.

====================  ==========================================================================
tau-b                 (C - D) / sqrt((C + D + Ta) (C + D + Tb)), Kendall (1945); C and D are the
                      concordant and discordant pairs, Ta and Tb those tied in one sequence only
strict tau            2 C / all pairs - 1: a pair that is not strictly concordant, so every tie,
                      counts as discordant (Su et al., 2021, K-shot NAS, Eq. 18)
high-group tau        strict tau over the pairs of one network of the best group and one of the
                      rest only (the same paper, section 5.2)
Spearman              Pearson's correlation of the ranks; ties get the mean of their ranks
top-k overlap         share of the k best of one sequence that are among the k best of the other
====================  ==========================================================================

Everything takes O(n log n): pairs are not looked at one by one but counted as inversions. Ties at
the border of a group never fall by the order in which the values are listed: the high group takes
all of them, the top k counts each with the probability that a random order of the tied gives it a
place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from latency_tables.errors import UsageError
from latency_tables.pair_counts import Floats, count_pairs, n_pairs_of

_AT_ONCE = 1 << 16
"""Values of resamples that are counted together: few enough for the cache of a core."""

Measure = Callable[[Floats, Floats], Floats]
"""Agreement of each row of (R, N) with the same row of another (R, N) -> (R,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A measure of all pairs of values, and where it lies in ``level`` of the resamples."""

    value: float
    low: float
    high: float
    level: float
    n_resamples: int


def kendall_tau(first: ArrayLike, second: ArrayLike) -> float:
    """Kendall's tau-b of two sequences (N,); 0 where one of them is constant.

    Raises:
        UsageError: the sequences are not equally long.

    >>> round(kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]), 4)
    0.6667
    >>> round(kendall_tau([1, 2, 3, 4], [1, 1, 2, 3]), 4)
    0.9129
    """
    return float(tau_b_of_rows(*_one_row(first, second))[0])


def strict_tau(first: ArrayLike, second: ArrayLike) -> float:
    """Kendall's tau of two sequences (N,) where a tie counts as discordant; 0 for N < 2.

    Raises:
        UsageError: the sequences are not equally long.

    >>> strict_tau([1, 2, 3, 4], [1, 1, 2, 3])  # 5 of 6 pairs are strictly concordant
    0.6666666666666667
    """
    return float(strict_tau_of_rows(*_one_row(first, second))[0])


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's correlation of two sequences (N,), average ranks; 0 where one is constant.

    Raises:
        UsageError: the sequences are not equally long.

    >>> round(spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]), 4)
    0.8
    """
    return float(spearman_of_rows(*_one_row(first, second))[0])


def pearson(first: ArrayLike, second: ArrayLike) -> float:
    """Pearson's correlation of two sequences (N,); 0 where one of them is constant.

    Raises:
        UsageError: the sequences are not equally long.

    >>> round(pearson([1, 2, 3], [2, 4, 6]), 4)
    1.0
    """
    return float(pearson_of_rows(*_one_row(first, second))[0])


def top_k_overlap(first: ArrayLike, second: ArrayLike, k: int) -> float:
    """Share of the ``k`` largest of one sequence (N,) that are among those of the other (0 ... 1).

    Raises:
        UsageError: ``k`` is not within 1 ... N, or the sequences are not equally long.

    >>> top_k_overlap([4, 3, 2, 1], [4, 2, 3, 1], k=2)
    0.5
    """
    a, b = _one_row(first, second)
    return float(_places(a[0], k) @ _places(b[0], k)) / k


def in_top(scores: ArrayLike, chosen: ArrayLike, k: int) -> float:
    """How many of the ``chosen`` (N,), a mask, are among the ``k`` largest of the scores (N,).

    With k the number of the chosen this is the global order preservation of Supernet Shifting
    (section 4.3): ten good architectures among thirty, counted in the ten best-scored.

    Raises:
        UsageError: ``k`` is not within 1 ... N, or the sequences are not equally long.

    >>> in_top([0.9, 0.8, 0.2, 0.1], [True, False, True, False], k=2)
    1.0
    """
    a, b = _one_row(scores, chosen)
    return float(_places(a[0], k) @ b[0])


def high_group_tau(scores: ArrayLike, truth: ArrayLike, n_high: int) -> float:
    """Strict tau over the pairs of one of the ``n_high`` truly best and one of the rest.

    Networks tied in truth with the last of the group belong to it. 0 where no rest is left.

    Raises:
        UsageError: ``n_high`` is not within 1 ... N, or the sequences are not equally long.

    >>> high_group_tau([4, 2, 3, 1], [4, 3, 2, 1], n_high=2)  # 3 of 4 pairs are in order
    0.5
    """
    a, b = _one_row(scores, truth)
    _check_k(n_high, len(b[0]))
    high = b[0] >= np.partition(b[0], -n_high)[-n_high]
    n_pairs = int(high.sum()) * int((~high).sum())
    if not n_pairs:
        return 0.0
    concordant = int(np.searchsorted(np.sort(a[0][~high]), a[0][high], side="left").sum())
    return 2 * concordant / n_pairs - 1


def bootstrap(
    measure: Measure,
    first: ArrayLike,
    second: ArrayLike,
    *,
    rng: np.random.Generator,
    n_resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """A measure with its percentile bootstrap interval (Efron, 1979).

    Args:
        measure: ``tau_b_of_rows``, ``strict_tau_of_rows``, ``spearman_of_rows``,
            ``pearson_of_rows``.
        first, second: (N,) each; pairs are drawn with replacement. A pair that is drawn twice is
            tied with itself, which lowers the strict tau of a resample: its interval lies low, by
            about 2 / N.
        rng: draws the resamples.

    Raises:
        UsageError: the sequences are not equally long, or ``level`` is not between 0 and 1.

    >>> rng = np.random.default_rng(0)
    >>> found = bootstrap(tau_b_of_rows, range(50), range(50), rng=rng, n_resamples=100)
    >>> found.value, found.low, found.high
    (1.0, 1.0, 1.0)
    """
    if not 0 < level < 1 or n_resamples < 1:
        raise UsageError(
            f"an interval of level {level} from {n_resamples} resamples: the level must lie "
            "between 0 and 1, with at least one resample"
        )
    a, b = _one_row(first, second)
    n = a.shape[1]
    value = float(measure(a, b)[0])
    rows = max(1, _AT_ONCE // max(n, 1))
    found = []
    for start in range(0, n_resamples if n else 0, rows):
        drawn = rng.integers(0, n, size=(min(rows, n_resamples - start), n))
        found.append(measure(a[0][drawn], b[0][drawn]))
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(found), (tail, 1 - tail)) if found else (value, value)
    return Interval(
        value=value, low=float(low), high=float(high), level=level, n_resamples=n_resamples
    )


def tau_b_of_rows(first: Floats, second: Floats) -> Floats:
    """Kendall's tau-b of each row of (R, N) -> (R,)."""
    n_pairs = n_pairs_of(first.shape[1])
    discordant, tied_a, tied_b, tied_both = count_pairs(first, second)
    concordant = n_pairs - discordant - tied_a - tied_b + tied_both
    scale = np.sqrt((n_pairs - tied_a).astype(float) * (n_pairs - tied_b).astype(float))
    found: Floats = np.divide(
        concordant - discordant, scale, out=np.zeros(len(first)), where=scale > 0
    )
    return found


def strict_tau_of_rows(first: Floats, second: Floats) -> Floats:
    """Strict tau of each row of (R, N) -> (R,)."""
    n_pairs = n_pairs_of(first.shape[1])
    if not n_pairs:
        return np.zeros(len(first))
    discordant, tied_a, tied_b, tied_both = count_pairs(first, second)
    return 2.0 * (n_pairs - discordant - tied_a - tied_b + tied_both) / n_pairs - 1.0


def spearman_of_rows(first: Floats, second: Floats) -> Floats:
    """Spearman's correlation of each row of (R, N) -> (R,)."""
    from scipy.stats import rankdata  # takes the better part of a second to import

    return pearson_of_rows(rankdata(first, axis=1), rankdata(second, axis=1))


def pearson_of_rows(first: Floats, second: Floats) -> Floats:
    """Pearson's correlation of each row of (R, N) -> (R,); 0 where a row is constant."""
    if not first.shape[1]:
        return np.zeros(len(first))
    # a mean of equal numbers need not equal them, so constant rows are told by their values
    varies = np.array([(x != x[:, :1]).any(axis=1) for x in (first, second)]).all(axis=0)
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (first, second))
    scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    product = (a * b).sum(axis=1)
    found: Floats = np.divide(product, scale, out=np.zeros(len(first)), where=varies & (scale > 0))
    np.clip(found, -1.0, 1.0, out=found)  # rounding
    return found


def _one_row(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    a, b = (np.asarray(x, dtype=np.float64) for x in (first, second))
    if a.shape != b.shape or a.ndim != 1:
        raise UsageError(
            f"sequences of the shapes {a.shape} and {b.shape} cannot be compared; both must be (N,)"
        )
    return a[None], b[None]


def _check_k(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise UsageError(f"a group of the {k} best of {n} networks; allowed: 1 ... {n}")


def _places(values: Floats, k: int) -> Floats:
    """Probability of each value (N,) to be among the ``k`` largest when ties fall at random."""
    _check_k(k, len(values))
    border = np.partition(values, -k)[-k]
    above, tied = values > border, values == border
    found: Floats = above + tied * ((k - above.sum()) / tied.sum())
    return found
