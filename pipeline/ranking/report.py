"""All measures of order preservation of one set of scores, with intervals, JSON-ready.

``global`` and ``local`` are those of Supernet Shifting (section 4.3): ten good architectures and
twenty random ones; global is how many of the good ones are among the ten best-scored of the thirty,
local is Kendall's tau over the ten good ones alone. Deviations: the good ones are the ten truly
best of those compared (the paper's came from its own search and were checked to be better than the
random ones, which holds here by construction), and the twenty are drawn many times, since one draw
says as much about the draw as about the supernet. With ten networks the standard error of tau is
about 0.25, so read the interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latency_tables.errors import DataError
from latency_tables.ranking import (
    Interval,
    bootstrap,
    high_group_tau,
    in_top,
    kendall_tau,
    pearson_of_rows,
    spearman,
    spearman_of_rows,
    strict_tau,
    tau_b_of_rows,
    top_k_overlap,
)
from pipeline.randomness import numpy_generator
from pipeline.ranking.picks import Pick, compare_picks

MIN_NETWORKS = 3
"""Of fewer networks an order says nothing at all."""
TOP_KS = (5, 10, 50, 100)
"""Tops whose overlap is stated, as far as they are at most half of the networks."""
N_HIGH = 100
"""Size of the high group, K-shot NAS's; a quarter of the networks where these are under 400."""
N_GOOD, N_RANDOM, N_DRAWS = 10, 20, 1000
N_RESAMPLES, MIN_RESAMPLES, MAX_RESAMPLED = 1000, 200, 1_000_000
"""Resamples of an interval; of many networks fewer, as their intervals are narrow and slow."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """Share of the ``k`` best-scored that are among the ``k`` truly best (0 ... 1)."""

    k: int
    overlap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HighGroup:
    """Strict tau of the ``n_high`` truly best against the rest."""

    n_high: int
    tau: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderPreservation:
    """Global (0 ... n_good; mean and 90 % of the draws) and local (tau-b) order preservation."""

    n_good: int
    n_random: int
    n_draws: int
    global_mean: float
    global_low: float
    global_high: float
    local: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What a number that costs no training says about the same networks."""

    tau_b: float
    spearman: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RankReport:
    """Agreement of scores and truth over ``n`` networks."""

    n: int
    tau_b: Interval
    strict_tau: float
    spearman: Interval
    pearson: Interval
    top_k: tuple[TopK, ...]
    high_group: HighGroup | None
    order_preservation: OrderPreservation | None
    baselines: Mapping[str, Baseline]
    picks: tuple[Pick, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data of the same structure."""
        return {**asdict(self), "baselines": {k: asdict(v) for k, v in self.baselines.items()}}


def rank_report(
    scores: ArrayLike,
    truth: ArrayLike,
    *,
    baselines: Mapping[str, ArrayLike] | None = None,
    seed: int = 0,
    n_resamples: int | None = None,
    level: float = 0.95,
) -> RankReport:
    """Compare scores (N,) with truth (N,), the larger the better in both.

    Args:
        scores: accuracies with inherited weights.
        truth: accuracies of the same networks trained alone, in any unit.
        baselines: by name, numbers (N,) that are compared with the truth as well, such as MACs.
        seed: of bootstrap and draws.
        n_resamples, level: of the bootstrap intervals; 1,000 resamples of up to 1,000 networks and
            fewer of more, at least 200, where not given.

    Raises:
        DataError: fewer than three networks, or scores or truth are not finite or all the same.

    >>> found = rank_report([0.5, 0.6, 0.7, 0.4], [80.0, 81.0, 83.0, 82.0], n_resamples=50)
    >>> round(found.tau_b.value, 3), found.n
    (0.333, 4)
    """
    a, b = (np.asarray(values, dtype=np.float64) for values in (scores, truth))
    _check(a, b)
    if n_resamples is None:
        n_resamples = min(N_RESAMPLES, max(MIN_RESAMPLES, MAX_RESAMPLED // len(a)))
    named = {name: np.asarray(v, dtype=np.float64) for name, v in (baselines or {}).items()}

    def interval(measure: Any, name: str) -> Interval:
        rng = numpy_generator(seed, "rank", name)
        return bootstrap(measure, a, b, rng=rng, n_resamples=n_resamples, level=level)

    n = len(a)
    n_high = min(N_HIGH, n // 4)
    return RankReport(
        n=n,
        tau_b=interval(tau_b_of_rows, "tau_b"),
        strict_tau=strict_tau(a, b),
        spearman=interval(spearman_of_rows, "spearman"),
        pearson=interval(pearson_of_rows, "pearson"),
        top_k=tuple(TopK(k=k, overlap=top_k_overlap(a, b, k)) for k in TOP_KS if 2 * k <= n),
        high_group=HighGroup(n_high=n_high, tau=high_group_tau(a, b, n_high)) if n_high else None,
        order_preservation=_preservation(a, b, seed, n_resamples, level),
        baselines={
            name: Baseline(tau_b=kendall_tau(v, b), spearman=spearman(v, b))
            for name, v in named.items()
        },
        picks=compare_picks(a, b, named),
    )


def _check(scores: Floats, truth: Floats) -> None:
    if len(scores) < MIN_NETWORKS:
        raise DataError(
            f"{len(scores)} networks have both a score and a truth; an order needs at least "
            f"{MIN_NETWORKS}"
        )
    for values, what, hint in (
        (scores, "score", "more images per network, or a supernet that was trained longer"),
        (truth, "truth", "another column of accuracies"),
    ):
        if not np.isfinite(values).all():
            raise DataError(f"the {what} of network {int(np.argmin(np.isfinite(values)))} is "
                            f"{values[~np.isfinite(values)][0]}, not a number")  # fmt: skip
        if (values == values[0]).all():
            raise DataError(
                f"the {what} of all {len(values)} networks is {values[0]:g}, so there is no order",
                hint=hint,
            )


def _preservation(
    scores: Floats, truth: Floats, seed: int, n_resamples: int, level: float
) -> OrderPreservation | None:
    """None where there are fewer than thirty networks."""
    n = len(scores)
    if n < N_GOOD + N_RANDOM:
        return None
    order = np.argsort(-truth, kind="stable")
    good, rest = order[:N_GOOD], order[N_GOOD:]
    rng = numpy_generator(seed, "rank", "good and random")
    is_good = np.arange(N_GOOD + N_RANDOM) < N_GOOD
    counts = [
        in_top(scores[np.concatenate((good, rng.choice(rest, N_RANDOM, replace=False)))],
               is_good, N_GOOD)
        for _ in range(N_DRAWS)
    ]  # fmt: skip
    low, high = np.quantile(counts, (0.05, 0.95))
    local = bootstrap(
        tau_b_of_rows, scores[good], truth[good],
        rng=numpy_generator(seed, "rank", "local"), n_resamples=n_resamples, level=level,
    )  # fmt: skip
    return OrderPreservation(
        n_good=N_GOOD,
        n_random=N_RANDOM,
        n_draws=N_DRAWS,
        global_mean=float(np.mean(counts)),
        global_low=float(low),
        global_high=float(high),
        local=local,
    )
