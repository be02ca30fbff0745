"""Intervals that cover what they say: localised conformal prediction.

The score of a training network is its relative error when left out, times √(1 - leverage); a
prediction is as wide as a quantile of the scores times √(1 + novelty), where the novelty is the
posterior variance of the prediction in units of the noise. So networks far from the training set
get wider intervals. The quantile is taken among networks of similar latency (Guan 2023), because
devices are noisier at one end than at the other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from latency_tables.predictor.hierarchical import Linear, group_scale
from latency_tables.predictor.problem import Problem, relative_errors, relative_weights

Array = NDArray[np.float64]

NEIGHBOURHOOD = 0.35
"""Standard deviation of the weights of neighbours, as a share of the networks in order."""
MAX_NOVELTY = 100.0
"""In variances of the noise; what is farther away is out of support."""

_GRID = 33
_INFLATION = 1.5


class Intervals:
    """Half-widths of predictions; ``left_out_ms`` (N,) are those of the blend."""

    def __init__(self, latency_ms: Array, left_out_ms: Array, leverage: Array) -> None:
        errors = relative_errors(latency_ms, left_out_ms)
        self._scores = errors * np.sqrt(np.clip(1.0 - leverage, 1e-6, 1.0))
        self._sorted_ms = np.sort(left_out_ms)
        order = np.argsort(left_out_ms, kind="stable")
        self._rank = np.empty(len(order))
        self._rank[order] = np.arange(len(order)) / max(len(order) - 1, 1)
        self._by_score = np.argsort(self._scores, kind="stable")
        self._curves: dict[float, Array] = {}  # level → quantiles at the places of the grid

    def half_widths(self, latency_ms: Array, novelty: Array, level: float) -> Array:
        """Relative half-widths (M,) at a level in (0, 1) of predictions (M,) in ms."""
        places = np.linspace(0.0, 1.0, _GRID)
        if level not in self._curves:
            self._curves[level] = np.array([self._quantile(place, level) for place in places])
        rank = np.interp(latency_ms, self._sorted_ms, np.linspace(0.0, 1.0, len(self._sorted_ms)))
        width: Array = np.interp(rank, places, self._curves[level])
        return width * np.sqrt(1.0 + np.minimum(novelty, MAX_NOVELTY))

    def _quantile(self, place: float, level: float) -> float:
        """Weighted quantile of the scores around a place in the order of latencies."""
        weights = np.exp(-0.5 * ((self._rank - place) / NEIGHBOURHOOD) ** 2)
        n_effective = float(weights.sum() ** 2 / (weights**2).sum())
        wanted = level * (1.0 + 1.0 / n_effective)
        order = self._by_score
        covered = np.cumsum(weights[order]) / weights.sum()
        if wanted <= 1.0:
            at = min(int(np.searchsorted(covered, wanted - 1e-12)), len(order) - 1)
            return float(self._scores[order[at]])
        return float(self._scores[order[-1]]) * wanted * _INFLATION  # too few to know


class Novelty:
    """Posterior variance of the table's prediction in units of the noise.

    With λ the strength, B the weighted columns of the training networks and z those of a network,
    it is zᵀ (BᵀB + λ I)⁻¹ z, plus what the intercept is uncertain of.
    """

    def __init__(self, problem: Problem, table: Linear) -> None:
        self._problem, self._scale = problem, group_scale(problem, table.scales)
        self._used = np.flatnonzero(self._scale * problem.scale)
        latency = problem.training.latency_ms
        weights = relative_weights("latency", latency) * table.weights
        self._unit = float((1.0 / latency**2).mean())
        self._share, self._strength = float(1.0 / weights.sum()), table.strength
        columns = (problem.columns * self._scale)[:, self._used]
        scaled = columns * np.sqrt(weights)[:, None]
        _, singular, right = np.linalg.svd(scaled, full_matrices=False)
        kept = singular > 1e-9 * max(float(singular.max(initial=0.0)), 1e-300)
        self._right, eigen = right[kept].T, singular[kept] ** 2
        self._inside = 1.0 / (eigen + self._strength)
        self._whole = len(eigen) == len(self._used)

    def of(self, raw: Array, latency_ms: Array) -> Array:
        """Novelty (M,) of networks with raw columns (M, p) and predictions (M,) in ms."""
        used = self._used
        columns = (raw[:, used] - self._problem.centre[used]) * (
            self._problem.scale[used] * self._scale[used]
        )
        inside = columns @ self._right
        variance = np.square(inside) @ self._inside
        if not self._whole:  # directions that no training network showed: only the prior holds
            outside = np.einsum("np,np->n", columns, columns) - np.einsum(
                "np,np->n", inside, inside
            )
            variance += np.maximum(outside, 0.0) / self._strength
        weight = 1.0 / (latency_ms**2 * self._unit)
        novelty: Array = weight * (self._share + variance)
        return novelty
