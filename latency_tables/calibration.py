"""Choose how the latency model is fitted: target, ridge strength, scales, weights of outliers.

Every candidate is judged by its leave-one-out errors in closed form, so that trying a few hundred
of them takes as long as a few decompositions.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from latency_tables.features import CHOICES, STAGES, Features
from latency_tables.ridge import Ridge, RidgeFit

Target = Literal["latency", "log"]
Array = NDArray[np.float64]
Genes = NDArray[np.int64]
Integers = NDArray[np.int64]

STRENGTHS = tuple(float(s) for s in np.logspace(-8, 1, 19))
FEW_NETWORKS = 40
FEW_STRENGTHS = (0.0001, 0.001, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Below 40 networks only these are tried, at reference scales and for the latency itself: the best
of hundreds of candidates on a dozen errors is luck, and its errors promise too much."""
STAGE_SCALES: tuple[float, ...] = (0.3, 0.1, 1.0)
CHOICE_SCALES: tuple[float, ...] = (0.1, 0.03, 0.3)
"""The first of each is the reference."""
LOG_MUST_WIN_BY = 0.95
"""The logarithm is chosen where its error is below this share: only latencies add up."""
MAX_LEVERAGE = 0.85
"""Fits that spend more than this many degrees of freedom per network interpolate: their
leave-one-out errors are unstable, and reweighting would call every surprise an outlier."""
HUBER = 3.0
"""Leave-one-out residuals beyond this many robust standard deviations lose weight."""
FLOOR = 0.25
"""No prediction falls below this share of the fastest training network."""

_REWEIGHTINGS = 3
_CLIP = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyper:
    """What leave-one-out chose. ``ridge`` is the strength per training network."""

    target: Target
    ridge: float
    stage_scale: float
    choice_scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Networks (N, n_decisions), latencies (N,) in ms, and a number per isomorphism class (N,)."""

    genes: Genes
    latency_ms: Array
    groups: Integers


class Calibration:
    """The regression problem of one training set, for any choice of hyper-parameters."""

    def __init__(self, features: Features, training: Training) -> None:
        self._features, self._training = features, training
        self._raw = features.matrix(training.genes)
        self._mean, spread = self._raw.mean(axis=0), self._raw.std(axis=0)
        # a column that did not move in training says nothing: coefficient 0
        moved = spread > 1e-9 * (np.abs(self._mean) + 1e-300)
        self._scale = np.where(moved, 1.0 / np.where(moved, spread, 1.0), 0.0)
        self.floor_ms = FLOOR * float(training.latency_ms.min())
        self._columns = self._standardise(self._raw)

    def standardised(self, raw: Array, hyper: Hyper) -> Array:
        """Columns of networks, standardised over the training set and scaled by group."""
        return self._standardise(raw) * self._group_scale(hyper)

    def base_weight(self, target: Target, latency_ms: Array) -> Array:
        """Weights that make residuals relative: noise of latencies is proportional to them."""
        if target == "log":
            return np.ones_like(latency_ms)
        reference = float((1.0 / self._training.latency_ms**2).mean())
        return 1.0 / (latency_ms**2 * reference)

    def ridge(self, hyper: Hyper, weights: Array) -> tuple[Ridge, float]:
        """The decomposed problem and its ridge strength; ``weights`` (N,) are for outliers."""
        latency = self._training.latency_ms
        target = latency if hyper.target == "latency" else np.log(latency)
        total = weights * self.base_weight(hyper.target, latency)
        columns = self._columns * self._group_scale(hyper)
        return Ridge(columns, target, total, self._training.groups), hyper.ridge * len(latency)

    def unscaled(self, fit: RidgeFit, hyper: Hyper) -> tuple[float, Array]:
        """Intercept and coefficients for columns as :meth:`Features.matrix` gives them."""
        coefficients = fit.coefficients * self._group_scale(hyper) * self._scale
        return fit.intercept - float(self._mean @ coefficients), coefficients

    def left_out_ms(self, target: Target, fit: RidgeFit) -> Array:
        """What the model says about each network when its group is left out: (N,), positive."""
        latency = self._training.latency_ms
        if target == "log":
            predicted = np.exp(np.clip(np.log(latency) - fit.loo, -700.0, 700.0))
        else:
            predicted = latency - fit.loo
        return np.maximum(predicted, self.floor_ms)

    def select(self) -> tuple[Hyper, Array]:
        """Hyper-parameters and weights of outliers (N,), by leave-one-out error."""
        weights = np.ones_like(self._training.latency_ms)
        hyper = self._best(weights)
        weights = self._reweighted(hyper, weights)
        if (weights < 1.0).any():  # outliers may have misled the first choice
            hyper = self._best(weights)
            weights = self._reweighted(hyper, weights)
        return hyper, weights

    def _best(self, weights: Array) -> Hyper:
        best: dict[Target, tuple[float, Hyper]] = {}
        targets: tuple[Target, ...] = ("latency", "log")
        stage_scales, choice_scales, strengths = STAGE_SCALES, CHOICE_SCALES, STRENGTHS
        if not (self._features.group == STAGES).any():
            stage_scales = stage_scales[:1]
        if len(weights) < FEW_NETWORKS:
            targets, strengths = targets[:1], FEW_STRENGTHS
            stage_scales, choice_scales = stage_scales[:1], choice_scales[:1]
        for target, stage_scale, choice_scale in product(targets, stage_scales, choice_scales):
            base = Hyper(
                target=target, ridge=1.0, stage_scale=stage_scale, choice_scale=choice_scale
            )
            problem, n = self.ridge(base, weights)
            for strength in strengths:
                fit = problem.fit(strength * n)
                if fit.leverage.mean() > MAX_LEVERAGE and strength < strengths[-1]:
                    continue
                error = self._error(target, fit)
                if target not in best or error < best[target][0]:
                    best[target] = (
                        error,
                        Hyper(
                            target=target,
                            ridge=strength,
                            stage_scale=stage_scale,
                            choice_scale=choice_scale,
                        ),
                    )
        if "log" in best and best["log"][0] < LOG_MUST_WIN_BY * best["latency"][0]:
            return best["log"][1]
        return best["latency"][1]

    def _error(self, target: Target, fit: RidgeFit) -> float:
        """Mean relative error with outliers clipped, so that one of them does not decide."""
        errors = np.abs(self.left_out_ms(target, fit) / self._training.latency_ms - 1.0)
        return float(np.minimum(errors, _CLIP * np.median(errors)).mean())

    def _reweighted(self, hyper: Hyper, weights: Array) -> Array:
        latency = self._training.latency_ms
        for _ in range(_REWEIGHTINGS):
            problem, strength = self.ridge(hyper, weights)
            left_out = self.left_out_ms(hyper.target, problem.fit(strength))
            residual = np.abs(latency / left_out - 1.0)
            scale = max(1.4826 * float(np.median(residual)), 1e-6)
            weights = np.minimum(1.0, HUBER * scale / np.maximum(residual, 1e-12))
        return weights

    def _standardise(self, raw: Array) -> Array:
        standard: Array = (raw - self._mean) * self._scale
        return standard

    def _group_scale(self, hyper: Hyper) -> Array:
        group = self._features.group
        scale = np.ones(len(group))
        scale[group == STAGES] = hyper.stage_scale
        scale[group == CHOICES] = hyper.choice_scale
        return scale
