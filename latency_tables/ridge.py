"""Weighted ridge regression with exact leave-one-group-out residuals in closed form.

For fixed weights and columns the fit is linear in the targets, ŷ = H y, so that leaving out the
group g gives the residuals (I − H_gg)⁻¹ (y − ŷ)_g (Allen 1974; for groups: Cook and Weisberg 1982,
section 3.6). One eigendecomposition serves every ridge strength.

Symbols: N samples, p columns, w weights, Z columns with the weighted mean removed and rows scaled
by √w, λ ridge strength, u the unit vector along √w (the intercept, not penalised).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RidgeFit:
    """Solution for one ridge strength.

    ``loo`` (N,) are leave-one-group-out residuals in units of the target, ``leverage`` (N,) the
    diagonal of H.
    """

    intercept: float
    coefficients: Array  # (p,)
    loo: Array
    leverage: Array


class Ridge:
    """A weighted ridge problem, decomposed once: columns (N, p), targets (N,), weights (N,).

    ``groups`` (N,) holds a number per sample; samples of one group are left out together.
    """

    def __init__(self, columns: Array, target: Array, weights: Array, groups: Integers) -> None:
        self._weights = weights
        self._root = np.sqrt(weights)
        self._unit = self._root / np.linalg.norm(self._root)
        scaled = columns * self._root[:, None]
        self._z = scaled - np.outer(self._unit, self._unit @ scaled)
        self._mean = weights @ columns / weights.sum()
        self._mean_target = float(weights @ target / weights.sum())
        self._centred = self._root * (target - self._mean_target)
        self._repeated = [
            members
            for members in (np.flatnonzero(groups == g) for g in np.unique(groups))
            if len(members) > 1
        ]
        n, p = columns.shape
        if p <= n:
            eigen, self._vectors = np.linalg.eigh(self._z.T @ self._z)
            self._basis = self._z @ self._vectors  # H = u uᵀ + B diag(1/(e + λ)) Bᵀ
        else:
            eigen, left = np.linalg.eigh(self._z @ self._z.T)
            eigen = np.maximum(eigen, 0.0)
            self._basis = left * np.sqrt(eigen)
            safe = np.where(eigen > 1e-12 * max(eigen[-1], 1e-300), eigen, np.inf)
            self._vectors = self._z.T @ (left / np.sqrt(safe))
        self._eigen = np.maximum(eigen, 0.0)
        self._projected = self._basis.T @ self._centred

    def fit(self, strength: float) -> RidgeFit:
        """Solve for the ridge strength λ > 0."""
        inverse = 1.0 / (self._eigen + strength)
        coefficients = self._vectors @ (inverse * self._projected)
        residual = self._centred - self._basis @ (inverse * self._projected)
        leverage = self._unit**2 + self._squares @ inverse
        loo = residual / np.maximum(1.0 - leverage, 1e-9)
        for members in self._repeated:
            basis, unit = self._basis[members], self._unit[members]
            hat = np.outer(unit, unit) + (basis * inverse) @ basis.T
            loo[members] = np.linalg.lstsq(np.eye(len(members)) - hat, residual[members])[0]
        return RidgeFit(
            intercept=self._mean_target - float(self._mean @ coefficients),
            coefficients=coefficients,
            loo=loo / self._root,
            leverage=leverage,
        )

    @cached_property
    def _squares(self) -> Array:
        squares: Array = self._basis**2
        return squares

    def spread(self, strength: float) -> tuple[Array, Array, float]:
        """(M, mean, 1/Σw) of the leverage w (1/Σw + (x − mean)ᵀ M (x − mean)) of a new sample."""
        p = self._z.shape[1]
        gram = self._z.T @ self._z + strength * np.eye(p)
        inverse: Array = np.asarray(np.linalg.inv(gram), dtype=np.float64)
        return inverse, self._mean, float(1.0 / self._weights.sum())
