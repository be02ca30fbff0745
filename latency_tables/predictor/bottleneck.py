"""The bottleneck model: a device takes as long as its slower half, starting operators or computing.

A GPU computes while the host launches the next operators, so small networks cost launches and large
ones arithmetic: not a sum but a maximum, as in the roofline model (Williams, Waterman and
Patterson 2009). Latency = ‖(a + b · operators, Σ cₖ · workₖ)‖₈ with non-negative a, b, cₖ; the
8-norm rounds the corner off. What is left, a factor near 1, is a hierarchical table of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latency_tables.predictor import hierarchical
from latency_tables.predictor.features import Features
from latency_tables.predictor.hierarchical import Linear, Scales
from latency_tables.predictor.problem import Problem, Training, folds_of

Array = NDArray[np.float64]
Genes = NDArray[np.int64]

LAUNCHES = "n_operators"
WORK = (
    "macs_pointwise",
    "macs_depthwise",
    "macs_spatial",
    "macs_matmul",
    "activation_elements",
)
N_FOLDS = 10
SHARPNESS = 8.0

_STARTS = (0.5, 0.8, 1.1)
"""Launching of the median network relative to its latency, where the fit begins."""
_PRIOR = 0.05
"""Pull of every logarithm towards its start, in relative residuals: keeps idle ones in place."""
_SOFT = 0.05
"""Relative residuals beyond this count linearly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Halves:
    """Fitted halves: ``theta`` holds log launching, its logit share per operator, log work (K,).

    ``unit`` (K + 1,) are the training means of the operators and of each kind of work.
    """

    names: tuple[str, ...]
    theta: Array
    unit: Array

    def predict(self, costs: Array) -> Array:
        """Costs (N, K + 1) → latencies (N,) in ms."""
        return _latency(self.theta, costs / self.unit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """A fitted bottleneck model: its halves and the table of what they leave over."""

    halves: Halves
    rest: Linear
    left_out_ms: Array

    def predict_raw_ms(self, problem: Problem, genes: Genes, columns: Array) -> Array:
        """Latencies (M,) of choice indices with raw columns (M, p), before the floor."""
        costs = _costs(problem.features, genes, self.halves.names)
        return self.halves.predict(costs) * self.rest.predict_raw_ms(columns)


def applies(features: Features) -> bool:
    """Whether a cost table tells operators and work apart."""
    names = {column.name for column in features.table.columns}
    return LAUNCHES in names and bool(names & set(WORK))


def fit(problem: Problem, *, kept: Iterable[Scales] | None = None) -> Bottleneck:
    """Fit the halves, then the rest, on the errors of halves that did not see a network."""
    features, training = problem.features, problem.training
    have = {column.name for column in features.table.columns}
    names = (LAUNCHES, *(name for name in WORK if name in have))
    costs = _costs(features, training.genes, names)
    busy = costs.mean(axis=0)[1:] > 0
    names = (LAUNCHES, *(n for n, some in zip(names[1:], busy, strict=True) if some))
    costs = _costs(features, training.genes, names)
    latency = training.latency_ms
    halves = _fit_halves(names, costs, latency)
    fold = folds_of(training.groups, N_FOLDS)
    unseen = np.empty_like(latency)
    for number in range(int(fold.max()) + 1):
        out = fold == number
        unseen[out] = _fit_halves(names, costs[~out], latency[~out], start=halves).predict(
            costs[out]
        )
    ratio = Problem(
        features=features,
        training=Training(
            genes=training.genes, latency_ms=latency / unseen, groups=training.groups
        ),
    )
    rest = hierarchical.fit(ratio, "latency", kept=kept)
    left_out = problem.above_floor(unseen * rest.left_out_ms)
    return Bottleneck(halves=halves, rest=rest, left_out_ms=left_out)


def _costs(features: Features, genes: Genes, names: tuple[str, ...]) -> Array:
    return np.stack([features.table.column(name, genes) for name in names], axis=1)


def _fit_halves(
    names: tuple[str, ...], costs: Array, latency_ms: Array, *, start: Halves | None = None
) -> Halves:
    from scipy.optimize import least_squares

    unit = costs.mean(axis=0)
    scaled = costs / unit
    typical = float(np.median(latency_ms))
    n_work = len(names) - 1
    best = (np.inf, np.zeros(n_work + 2))
    for launching in _STARTS:
        prior = np.log(
            [typical * launching, 1.0, *np.full(n_work, typical * 0.6 / n_work)], dtype=np.float64
        )

        def residuals(theta: Array, prior: Array = prior) -> Array:
            relative = _latency(theta, scaled) / latency_ms - 1.0
            return np.concatenate([relative, _PRIOR * (theta - prior)])

        first = prior if start is None else start.theta
        found = least_squares(residuals, first, loss="soft_l1", f_scale=_SOFT, max_nfev=100)
        if found.cost < best[0]:
            best = float(found.cost), np.asarray(found.x, dtype=np.float64)
        if start is not None:
            break
    return Halves(names=names, theta=best[1], unit=unit)


def _latency(theta: Array, scaled: Array) -> Array:
    per_operator = 1.0 / (1.0 + np.exp(-np.clip(theta[1], -50.0, 50.0)))
    launch = np.exp(np.clip(theta[0], -50.0, 50.0)) * (
        1.0 - per_operator + per_operator * scaled[:, 0]
    )
    work = scaled[:, 1:] @ np.exp(np.clip(theta[2:], -50.0, 50.0))
    largest = np.maximum(launch, work)
    norm: Array = largest * ((launch / largest) ** SHARPNESS + (work / largest) ** SHARPNESS) ** (
        1.0 / SHARPNESS
    )
    return norm
