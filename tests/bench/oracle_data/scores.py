"""How good predictions of held-out networks are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, rankdata

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
MAX_TEST = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Indices of the test networks, and of the others in the order in which they are measured."""

    test: Integers
    rest: Integers


def splits(groups: Integers, n_seeds: int) -> Iterator[tuple[int, Split]]:
    """One split per seed; a third of the networks (at most 2,000) is for testing.

    Isomorphic networks stay on one side. Training sets of one seed are nested.
    """
    names, index = np.unique(groups, return_inverse=True)
    members = np.bincount(index)
    for seed in range(n_seeds):
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(names))
        n_test = min(MAX_TEST, len(groups) // 3)
        n_held = int(np.searchsorted(np.cumsum(members[order]), n_test, side="right"))
        held = np.isin(index, order[: max(n_held, 1)])
        yield (
            seed,
            Split(test=np.flatnonzero(held), rest=rng.permutation(np.flatnonzero(~held))),
        )


def spearman(first: Array, second: Array) -> float:
    """Spearman's rank correlation; 0 where one of them is constant."""
    a, b = rankdata(first), rankdata(second)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def point_scores(predicted: Array, truth: Array) -> dict[str, float]:
    """Order and relative errors."""
    error = np.abs(predicted / truth - 1.0)
    return {
        "kendall_tau": float(kendalltau(predicted, truth).statistic) if np.ptp(predicted) else 0.0,
        "spearman": spearman(predicted, truth),
        "mape": float(error.mean()),
        "within_5": float((error <= 0.05).mean()),
        "within_10": float((error <= 0.10).mean()),
    }


def interval_scores(predicted: Array, low: Array, high: Array, truth: Array) -> dict[str, float]:
    """Coverage, in all and in the worst cost tercile, and half-widths relative to predictions.

    ``constant_width`` is the median half-width that intervals of one width in milliseconds would
    need to cover as much: it knows the test errors, so ours has to be clever to beat it.
    """
    covered = (truth >= low) & (truth <= high)
    terciles = np.array_split(np.argsort(truth, kind="stable"), 3)
    shares = [float(covered[part].mean()) for part in terciles]
    constant = float(np.quantile(np.abs(predicted - truth), covered.mean()))
    return {
        "coverage": float(covered.mean()),
        "coverage_low_tercile": shares[0],
        "coverage_mid_tercile": shares[1],
        "coverage_high_tercile": shares[2],
        "width": float(np.median((high - low) / 2 / predicted)),
        "constant_width": constant / float(np.median(predicted)),
    }
