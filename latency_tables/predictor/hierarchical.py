"""The hierarchical look-up table: additive, shrunk from one entry per choice towards physics.

One Bayesian linear regression stands on all column groups; the scale of a group says how large its
coefficients may be a priori. With choices alone it is a plain look-up table; where samples are few
the posterior falls back to physics; where they are many it becomes a table whose entries were
calibrated in the context of whole networks. Scales and noise are not chosen but averaged over,
weighed by their marginal likelihood (MacKay 1992; Hoeting et al. 1999), so that a dozen networks
need not decide between hundreds of candidates. A mean of linear functions is linear, so the result
is still a table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from latency_tables.predictor.features import LIVE, PRIORS, STAGES
from latency_tables.predictor.problem import (
    Problem,
    Target,
    relative_weights,
    robust_weights,
)
from latency_tables.predictor.regression import Regression

Array = NDArray[np.float64]
Scales = tuple[float, ...]
"""A-priori scale of the coefficients of each group: physics, stages, choices, live, priors."""

STRENGTHS = tuple(float(s) for s in np.logspace(-6, 1, 15))
"""Noise relative to the coefficients of physics, per training network."""
STAGE_SCALES = (0.0, 0.03, 0.1, 0.3, 1.0)
CHOICE_SCALES = (0.0, 0.03, 0.1, 0.3)
LIVE_SCALES = ((1.0, 0.0), (1.0, 0.3), (1.0, 1.0), (0.3, 1.0))
"""(physics, live): what the graph says, or what a compiler leaves of it, or both."""
MIN_LIVE = 20
"""Fewer networks cannot tell whether a compiler drops dead branches."""
PRIOR_SCALES = (0.0, 1.0, 3.0, 10.0)
PLAIN = (0.0, 0.0, 1.0, 0.0, 0.0)
"""A look-up table of choices, with nothing to shrink towards but the mean."""

_KEPT_SHARE = 0.02
_KEPT_AT_MOST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A fitted additive model.

    ``intercept`` and ``coefficients`` are for raw columns. ``left_out_ms`` (N,) are positive
    predictions of training networks left out, ``leverage`` (N,) how much each predicts itself,
    ``weights`` (N,) those of outliers. ``scales`` and ``strength`` are the most likely ones,
    ``kept`` all that took part.
    """

    target: Target
    intercept: float
    coefficients: Array
    left_out_ms: Array
    leverage: Array
    weights: Array
    scales: Scales
    strength: float
    kept: tuple[Scales, ...]

    def predict_raw_ms(self, columns: Array) -> Array:
        """Latencies (M,) of networks with raw columns (M, p), before the floor."""
        return restored(self.target, columns @ self.coefficients + self.intercept)


def grid(problem: Problem) -> list[Scales]:
    """Every combination of scales worth trying: groups without columns have one scale."""
    sizes = problem.features.sizes
    stages = STAGE_SCALES if sizes[STAGES] else (0.0,)
    tells = sizes[LIVE] > 0 and len(problem.training.genes) >= MIN_LIVE
    live = LIVE_SCALES if tells else LIVE_SCALES[:1]
    priors = PRIOR_SCALES if sizes[PRIORS] else (0.0,)
    found = [
        (physics, stage, choice, alive, prior)
        for (physics, alive), stage, choice, prior in product(live, stages, CHOICE_SCALES, priors)
    ]
    return [*found, PLAIN]


def fit(
    problem: Problem, target: Target, *, kept: Iterable[Scales] | None = None, robust: bool = True
) -> Linear:
    """Average over the scales in ``kept`` (default: the grid), by their marginal likelihood."""
    latency = problem.training.latency_ms
    scales = list(grid(problem) if kept is None else kept)
    if kept is None:  # most of the grid has no weight whatever the outliers weigh
        found = _average(problem, target, scales, np.ones_like(latency))
        scales = list(found.kept)
    if not robust:
        return _average(problem, target, scales, np.ones_like(latency))

    def left_out(weights: Array) -> Array:
        return _average(problem, target, scales, weights).left_out_ms

    weights = robust_weights(latency, left_out)
    if kept is None and (weights < 0.5).any():  # outliers may have misled the first look
        scales = list(_average(problem, target, grid(problem), weights).kept)
        weights = robust_weights(latency, left_out)
    # all that the weights of outliers follow from is kept, so that solving again gives the same
    return replace(_average(problem, target, scales, weights), kept=tuple(scales))


def group_scale(problem: Problem, scales: Scales) -> Array:
    """Scale of every column (p,); priors share theirs."""
    spread = np.array(scales, dtype=np.float64)
    spread[PRIORS] /= np.sqrt(max(problem.features.sizes[PRIORS], 1))
    scale: Array = spread[problem.features.group]
    return scale


def transformed(target: Target, latency_ms: Array) -> Array:
    """Latencies as the regression sees them."""
    return latency_ms if target == "latency" else np.log(latency_ms)


def restored(target: Target, value: Array) -> Array:
    """Latencies in ms of what the regression gives."""
    if target == "latency":
        return value
    ms: Array = np.exp(np.clip(value, -700.0, 700.0))
    return ms


def _average(problem: Problem, target: Target, scales: list[Scales], weights: Array) -> Linear:
    latency = problem.training.latency_ms
    goal = transformed(target, latency)
    total = relative_weights(target, latency) * weights
    n = len(latency)
    strengths = [s * n for s in STRENGTHS]
    primal = problem.columns.shape[1] < n
    gram = None if primal else problem.grams()

    def regression(one: Scales) -> Regression:
        groups = problem.training.groups
        if gram is None:
            columns = problem.columns * group_scale(problem, one)
            moved = np.flatnonzero(columns.any(axis=0))
            return Regression(goal, total, groups, columns=columns[:, moved])
        joint = np.tensordot(np.square(one), gram, axes=1)
        return Regression(goal, total, groups, gram=joint)

    problems = [regression(one) for one in scales]
    evidence = np.stack([p.log_evidence(strengths) for p in problems])
    share = np.exp(evidence - evidence.max())
    share /= share.sum()
    best, at = np.unravel_index(int(share.argmax()), share.shape)
    order = np.argsort(-share.sum(axis=1), kind="stable")[:_KEPT_AT_MOST]
    order = order[share.sum(axis=1)[order] >= _KEPT_SHARE * float(share.sum(axis=1).max())]
    total_share = float(share[order].sum())
    intercept, coefficients = 0.0, np.zeros(problem.columns.shape[1])
    left_out, leverage = np.zeros(n), np.zeros(n)
    for i in order.tolist():
        scale = group_scale(problem, scales[i])
        for j in np.flatnonzero(share[i] > 1e-3 * total_share).tolist():
            part = float(share[i, j]) / total_share
            solution = problems[i].solve(strengths[j])
            # columns are centred by plain means: the intercept belongs to standardised columns
            intercept += part * solution.mean
            coefficients += part * scale**2 * (problem.columns.T @ solution.dual)
            left_out += part * solution.left_out
            leverage += part * solution.leverage
    raw = coefficients * problem.scale
    return Linear(
        target=target,
        intercept=intercept - float(problem.centre @ raw),
        coefficients=raw,
        left_out_ms=problem.above_floor(restored(target, left_out)),
        leverage=leverage,
        weights=weights,
        scales=scales[int(best)],
        strength=STRENGTHS[int(at)] * n,
        kept=tuple(scales[i] for i in order.tolist()),
    )
