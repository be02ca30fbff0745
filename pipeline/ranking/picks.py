"""What a supernet's choice is worth beside choices that need no supernet, or only part of it.

Baselines of Li and Talwalkar (2019) and of the papers on one-shot search: *random-select-5* trains
five random networks and keeps the best of them; *random-100* scores a hundred random networks with
the supernet and keeps the best-scored. Both depend on the draw, so expectation and range are
computed over all draws, in closed form: among ``k`` of ``n`` networks drawn without replacement the
i-th worst is the best with probability C(i - 1, k - 1) / C(n, k).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

N_SELECTED = 5
N_SCORED = 100
_RANGE = (0.05, 0.95)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """The truth of the network that one way of choosing gives.

    ``mean``, ``low`` and ``high`` (90 % of the draws) are in the unit of the truth; ``regret`` is
    how far the mean is below the best network there is, ``better`` the number of networks that are
    truly better than the mean.
    """

    name: str
    mean: float
    low: float
    high: float
    regret: float
    better: int


def compare_picks(scores: Floats, truth: Floats, by: Mapping[str, Floats]) -> tuple[Pick, ...]:
    """Picks by scores, by luck and by other numbers, among the same networks (N,).

    >>> values = np.arange(10.0)
    >>> [(p.name, round(p.mean, 6)) for p in compare_picks(values, values, {})][:2]
    [('best by score', 9.0), ('one at random', 4.5)]
    """
    n = len(truth)
    ways = [("best by score", scores, n)]
    if n > N_SCORED:
        ways.append(("random-100", scores, N_SCORED))
    ways.append(("one at random", truth, 1))
    if n >= N_SELECTED:
        ways.append(("random-select-5", truth, N_SELECTED))
    ways += [(f"most {name}", values, n) for name, values in by.items()]
    ways.append(("truly best", truth, n))
    return tuple(_pick(name, truth, chance_of_best(key, k)) for name, key, k in ways)


def chance_of_best(key: Floats, k: int) -> Floats:
    """Chance of each (N,) to have the largest ``key`` among ``k`` drawn at random; ties are fair.

    >>> chance_of_best(np.array([1.0, 3.0, 2.0]), 2).round(3).tolist()
    [0.0, 0.667, 0.333]
    """
    n = len(key)
    weight = np.zeros(n)  # ascending by key
    weight[-1] = k / n
    for i in range(n - 1, k - 1, -1):  # from the i + 1-th worst to the i-th: C(i-1,k-1)/C(i,k-1)
        weight[i - 1] = weight[i] * (i - k + 1) / i
    order = np.argsort(key, kind="stable")
    _, group, counts = np.unique(key[order], return_inverse=True, return_counts=True)
    shared = np.bincount(group, weights=weight) / counts
    chance = np.empty(n)
    chance[order] = shared[group]
    return chance


def _pick(name: str, truth: Floats, chance: Floats) -> Pick:
    mean = float(chance @ truth)
    order = np.argsort(truth, kind="stable")
    reached = np.cumsum(chance[order])
    low, high = (
        float(truth[order][min(int(np.searchsorted(reached, q - 1e-12)), len(truth) - 1)])
        for q in _RANGE
    )
    return Pick(
        name=name,
        mean=mean,
        low=low,
        high=high,
        regret=max(0.0, float(truth.max()) - mean),
        better=int((truth > mean + 1e-12 * abs(mean)).sum()),
    )
