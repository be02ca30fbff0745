"""Bayesian linear regression with several column groups, decomposed once for every noise level.

Targets y = 1 μ + Z β + ε: the coefficients have the prior β ~ N(0, σ²/λ), the noise of sample i has
the variance σ²/wᵢ, μ and log σ have flat priors. Everything asked for follows in closed form from
one eigendecomposition of the Gram matrix (Rasmussen and Williams 2006, sections 2.7 and 5.4.2):

* the marginal likelihood of the targets, by which hyper-parameters are weighed;
* the posterior mean, as dual coefficients, so that Z may be given by its Gram matrix alone;
* residuals with a group of samples left out: with A = W½ (Z Zᵀ) W½ + λ I and Q the inverse of A
  without the direction of the intercept, they are (Q_gg)⁻¹ (Q W½ y)_g in units of √w.

Symbols: N samples, p columns, w weights, λ = ``strength``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

_RANK = 1e-11
"""Eigenvalues below this share of the largest one are zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The posterior mean for one strength.

    ``dual`` (N,) gives the coefficients of columns as ``columns.T @ dual`` and the value of a
    kernel machine as ``kernel @ dual``; ``left_out`` (N,) are predictions of each sample when its
    group is left out; ``leverage`` (N,) are the shares of themselves that samples predict.
    """

    mean: float
    dual: Array
    left_out: Array
    leverage: Array


class Regression:
    """One weighted problem: ``columns`` (N, p) or their ``gram`` matrix (N, N), targets (N,).

    ``groups`` (N,) holds a number per sample; samples of one group are left out together.
    """

    def __init__(
        self,
        target: Array,
        weights: Array,
        groups: Integers,
        *,
        columns: Array | None = None,
        gram: Array | None = None,
    ) -> None:
        self._root = root = np.sqrt(weights)
        self._target, self._weights = target, weights
        self._n = len(target)
        if columns is not None and columns.shape[1] < self._n:
            scaled = columns * root[:, None]
            eigen, right = np.linalg.eigh(scaled.T @ scaled)
            kept = eigen > _RANK * max(float(eigen.max(initial=0.0)), 1e-300)
            eigen = eigen[kept]
            vectors = scaled @ right[:, kept] / np.sqrt(eigen)
        else:
            if gram is None:
                gram = np.zeros((self._n, self._n)) if columns is None else columns @ columns.T
            eigen, vectors = np.linalg.eigh(gram * np.outer(root, root))
            kept = eigen > _RANK * max(float(eigen.max(initial=0.0)), 1e-300)
            eigen, vectors = eigen[kept], vectors[:, kept]
        self._eigen: Array = eigen
        self._vectors: Array = vectors
        scaled_target = root * target
        self._b, self._u = vectors.T @ scaled_target, vectors.T @ root
        # what lies outside of the span of the columns: seen by the noise only
        self._rest_bb = max(float(scaled_target @ scaled_target - self._b @ self._b), 0.0)
        self._rest_uu = max(float(root @ root - self._u @ self._u), 0.0)
        self._rest_ub = float(root @ scaled_target - self._u @ self._b)
        self._squares: Array = vectors**2
        members: dict[int, list[int]] = {}
        for i, group in enumerate(groups.tolist()):
            members.setdefault(group, []).append(i)
        self._repeated = [np.array(found) for found in members.values() if len(found) > 1]

    def log_evidence(self, strengths: Sequence[float]) -> Array:
        """Logarithm of the marginal likelihood of the targets per strength, up to a constant."""
        noise = np.asarray(strengths)[:, None]
        inverse = 1.0 / (self._eigen + noise)  # (strengths, rank)
        flat = noise[:, 0]
        uu = inverse @ self._u**2 + self._rest_uu / flat
        ub = inverse @ (self._u * self._b) + self._rest_ub / flat
        bb = inverse @ self._b**2 + self._rest_bb / flat
        squares = np.maximum(bb - ub**2 / uu, 1e-300)
        n, rank = self._n, len(self._eigen)
        determinant = np.log(self._eigen + noise).sum(axis=1) + (n - rank) * np.log(flat)
        evidence: Array = (
            -0.5 * determinant
            - 0.5 * np.log(uu)
            - 0.5 * (n - 1) * np.log(squares)
            + 0.5 * float(np.log(self._weights).sum())
        )
        return evidence

    def solve(self, strength: float) -> Solution:
        """The posterior for one strength λ > 0."""
        inverse = 1.0 / (self._eigen + strength)
        share = inverse - 1.0 / strength  # on the span of the columns, beside the rest
        uu = float(inverse @ self._u**2) + self._rest_uu / strength
        ub = float(inverse @ (self._u * self._b)) + self._rest_ub / strength
        mean = ub / uu
        centred = self._root * (self._target - mean)
        dual = self._vectors @ (share * (self._vectors.T @ centred)) + centred / strength
        ones = self._vectors @ (share * self._u) + self._root / strength  # A⁻¹ W½ 1
        diagonal = self._squares @ share + 1.0 / strength - ones**2 / uu
        residual = dual / np.maximum(diagonal, 1e-300)
        for own in self._repeated:
            vectors = self._vectors[own]
            block = (vectors * share) @ vectors.T + np.eye(len(own)) / strength
            block -= np.outer(ones[own], ones[own]) / uu
            residual[own] = np.linalg.lstsq(block, dual[own])[0]
        return Solution(
            mean=mean,
            dual=self._root * dual,
            left_out=self._target - residual / self._root,
            leverage=np.clip(1.0 - strength * diagonal, 0.0, 1.0),
        )
