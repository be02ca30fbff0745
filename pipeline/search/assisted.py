"""Predictor-assisted search: many children, of which the most promising ones are scored.

After every generation a Gaussian process is fitted on the accuracies of everything scored so far.
It predicts those of many more children than a generation has; the searcher orders children and
archive together, as it orders what it knows, and asks for the first of the children. So every
accuracy that a search is told is a real one: what is predicted chooses whom to score and is
dropped.

Accuracies of a space are skewed (a few very bad subnets, many good ones that differ little), so the
process sees their normal scores: the quantiles of a normal distribution at their ranks. Its kernel
is the sum of three: the share of choices in which two subnets agree, an exponential of the number
in which they differ, and a squared exponential of the distance of their costs. Lengths and noise
are those of the largest marginal likelihood. It is a function of the archive, so a resumed search
predicts the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from latency_tables.arch import Arch
from latency_tables.predictor.problem import one_thread
from latency_tables.predictor.regression import Regression
from pipeline.search.evaluation import Candidate, Evaluation, Score, comparable
from pipeline.search.evaluator import SearchSpace
from pipeline.search.operators import genes_of, sizes_of

Array = NDArray[np.float64]

CHILDREN = 20
"""Children per subnet that is scored."""
MIN_SCORED = 8
"""With fewer scored subnets nothing is predicted."""
MAX_FITTED = 1_000
"""The newest subnets that take part: time grows with the cube of their number."""
MAX_CHOOSING = 200
"""Lengths are chosen on at most this many."""

Kernel = tuple[float, float | None]
"""Length in differing choices, and in standard deviations of logarithms of costs (or without)."""

_LENGTHS = (1.0, 2.0, 4.0, 8.0)
_COST_LENGTHS = (None, 1.0, 2.0)
_AGREEMENT = 3.0
_NOISES = tuple(10.0 ** (-0.5 * k) for k in range(8))


@dataclass(frozen=True, slots=True, kw_only=True)
class Assistant:
    """Predicts evaluations of subnets that nobody scored.

    Args:
        space: its decisions are what subnets may share.
        screen: costs and latencies of subnets, as of those that are scored.
        children: how many are predicted per subnet that is scored.
    """

    space: SearchSpace
    screen: Callable[[Sequence[Arch]], Sequence[Candidate]]
    children: int = CHILDREN

    def predict(self, archs: Sequence[Arch], scored: Sequence[Evaluation]) -> list[Evaluation]:
        """Evaluations of ``archs`` in order, with predicted merits; empty if too few are known.

        They are for choosing only; no archive may hold them.
        """
        known = [e for e in comparable(scored) if math.isfinite(e.merit)][-MAX_FITTED:]
        if len(known) < MIN_SCORED:
            return []
        candidates, rank_by = self.screen(archs), known[0].score.rank_by
        everything = [*(e.candidate for e in known), *candidates]
        merit = np.array([e.merit for e in known])
        with one_thread():
            predicted = predict_merit(merit, one_hot(self.space, everything), log_costs(everything))
        return [
            Evaluation(candidate=c, score=Score.expected(m, rank_by), generation=-1)
            for c, m in zip(candidates, predicted.tolist(), strict=True)
        ]


def one_hot(space: SearchSpace, candidates: Sequence[Candidate]) -> Array:
    """One column per choice of every decision: (N, n_choices)."""
    genes = genes_of(space.decisions, [c.arch for c in candidates])
    columns = [np.eye(n)[genes[:, i]] for i, n in enumerate(sizes_of(space.decisions).tolist())]
    return np.concatenate(columns, axis=1)


def log_costs(candidates: Sequence[Candidate]) -> Array:
    """Standardised logarithms of the costs that differ: (N, n_costs)."""
    names = [name for name, value in candidates[0].costs.items() if value > 0]
    rows = np.log([[max(c.costs[name], 1e-300) for name in names] for c in candidates])
    rows = rows.reshape(len(candidates), len(names))
    spread = rows.std(axis=0)
    varied = spread > 1e-9
    return np.asarray((rows - rows.mean(axis=0))[:, varied] / spread[varied])


def predict_merit(merit: Array, choices: Array, costs: Array) -> Array:
    """Merits (M,) of the last M of N + M subnets, of which the first N merits are known.

    Args:
        merit: (N,).
        choices: one-hot, (N + M, n_choices).
        costs: standardised, (N + M, n_costs); may have no columns.
    """
    n = len(merit)
    scores = norm.ppf((rankdata(merit) - 0.5) / n)
    kernels = list(product(_LENGTHS, _COST_LENGTHS if costs.shape[1] else (None,)))
    few = np.sort(np.random.default_rng(0).permutation(n)[:MAX_CHOOSING])
    among = _Distances(choices[few], choices[few], costs[few], costs[few])
    best = max(
        kernels,
        key=lambda k: float(
            _regression(among.covariance(k), scores[few]).log_evidence(_NOISES).max()
        ),
    )
    covariance = _Distances(choices, choices[:n], costs, costs[:n]).covariance(best)  # (N + M, N)
    regression = _regression(covariance[:n], scores)
    solution = regression.solve(_NOISES[int(regression.log_evidence(_NOISES).argmax())])
    found = solution.mean + covariance[n:] @ solution.dual
    return _merit_of(found, scores, merit)


class _Distances:
    """Of N subnets from M others: differing choices, and mean squared differences of costs."""

    def __init__(self, choices: Array, other_choices: Array, costs: Array, others: Array) -> None:
        self.n_genes = float(choices[0].sum())
        self.differing = self.n_genes - choices @ other_choices.T  # (N, M)
        squares = (costs**2).sum(axis=1)[:, None] + (others**2).sum(axis=1)[None]
        squares -= 2.0 * costs @ others.T
        self.squares = np.maximum(squares, 0.0) / max(costs.shape[1], 1)

    def covariance(self, kernel: Kernel) -> Array:
        """The kernel's values (N, M)."""
        length, cost_length = kernel
        covariance = _AGREEMENT * (1.0 - self.differing / self.n_genes)
        covariance += np.exp(-self.differing / length)
        if cost_length is not None:
            covariance += np.exp(-self.squares / (2.0 * cost_length**2))
        return covariance


def _regression(gram: Array, scores: Array) -> Regression:
    return Regression(scores, np.ones(len(scores)), np.arange(len(scores)), gram=gram)


def _merit_of(found: Array, scores: Array, merit: Array) -> Array:
    """Turn normal scores back into merits; straight lines go on beyond the known ones."""
    x, first = np.unique(scores, return_index=True)
    y = merit[first]
    if len(x) < 2:
        return np.full(len(found), y[0])
    inside = np.interp(found, x, y)
    slope = (y[-1] - y[0]) / (x[-1] - x[0])
    beyond = np.maximum(found - x[-1], 0.0) - np.maximum(x[0] - found, 0.0)
    return np.asarray(inside + slope * beyond)
