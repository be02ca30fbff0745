"""What a predictor is fitted on, and what all forms of it share.

Columns are standardised over the training networks; a column that did not move there says nothing
and gets no weight. Residuals count relative to the latency, because noise is proportional to it,
and with the weights of a Student-t likelihood, so that outliers do not decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from latency_tables.predictor.features import N_GROUPS, PRIORS, Features

Target = Literal["latency", "log"]
Array = NDArray[np.float64]
Genes = NDArray[np.int64]
Integers = NDArray[np.int64]

FLOOR = 0.25
"""No prediction falls below this share of the fastest training network."""
DEGREES_OF_FREEDOM = 4.0
"""Of the Student-t likelihood (Lange, Little and Taylor 1989 recommend 4)."""
REWEIGHTINGS = 2

_SCALE_STEPS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Networks (N, n_decisions), latencies (N,) in ms, and a number per isomorphism class (N,)."""

    genes: Genes
    latency_ms: Array
    groups: Integers

    def part(self, chosen: NDArray[np.bool_]) -> Training:
        """The networks that are marked."""
        return Training(
            genes=self.genes[chosen],
            latency_ms=self.latency_ms[chosen],
            groups=self.groups[chosen],
        )


@dataclass(slots=True, kw_only=True)
class Problem:
    """Training networks with their columns, raw and standardised: (N, p)."""

    features: Features
    training: Training
    raw: Array = field(init=False)
    columns: Array = field(init=False)
    centre: Array = field(init=False)
    scale: Array = field(init=False)
    floor_ms: float = field(init=False)
    _grams: Array | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.raw = self.features.matrix(self.training.genes)
        self.centre, spread = self.raw.mean(axis=0), self.raw.std(axis=0)
        moved = spread > 1e-9 * (np.abs(self.centre) + 1e-300)
        self.scale = np.where(moved, 1.0 / np.where(moved, spread, 1.0), 0.0)
        self.floor_ms = FLOOR * float(self.training.latency_ms.min())
        self.columns = self.standardised(self.raw)

    def without_priors(self) -> Problem:
        """The same problem for a device that has no others to learn from."""
        alone = Features(self.features.table, self.features.stages)
        return Problem(features=alone, training=self.training)

    def standardised(self, raw: Array) -> Array:
        """Columns of any networks as the training networks' were standardised."""
        standard: Array = (raw - self.centre) * self.scale
        return standard

    def grams(self) -> Array:
        """Z Zᵀ of each group of columns, computed once: (N_GROUPS, N, N); priors share theirs."""
        if self._grams is None:
            group = self.features.group
            parts = [self.columns[:, group == g] for g in range(N_GROUPS)]
            parts[PRIORS] = parts[PRIORS] / np.sqrt(max(self.features.sizes[PRIORS], 1))
            self._grams = np.stack([part @ part.T for part in parts])
        return self._grams

    def above_floor(self, latency_ms: Array) -> Array:
        """Latencies, none of them below the floor."""
        raised: Array = np.maximum(latency_ms, self.floor_ms)
        return raised


def relative_weights(target: Target, latency_ms: Array) -> Array:
    """Weights (N,) that make residuals of a target relative to the latency; their mean is 1."""
    if target == "log":
        return np.ones_like(latency_ms)
    weights: Array = (1.0 / latency_ms**2) / float((1.0 / latency_ms**2).mean())
    return weights


def relative_errors(predicted_ms: Array, latency_ms: Array) -> Array:
    """|prediction / latency - 1|."""
    errors: Array = np.abs(predicted_ms / latency_ms - 1.0)
    return errors


def student_weights(errors: Array) -> Array:
    """Weights (N,) in (0, 1] of a Student-t likelihood; the scale is the median deviation."""
    scale = max(1.4826 * float(np.median(errors)), 1e-6)
    nu = DEGREES_OF_FREEDOM
    weights: Array = np.minimum((nu + 1.0) / (nu + (errors / scale) ** 2), 1.0)
    return weights


def student_likelihood(errors: Array) -> float:
    """Log-likelihood of errors (N,) under a Student-t around zero whose scale fits them best."""
    nu, square = DEGREES_OF_FREEDOM, np.maximum(errors, 1e-9) ** 2
    scale = float(np.median(square))
    for _ in range(_SCALE_STEPS):  # expectation maximisation
        scale = float(((nu + 1.0) / (nu + square / scale) * square).mean())
    density = -0.5 * (nu + 1.0) * np.log1p(square / (nu * scale)) - 0.5 * np.log(scale)
    return float(density.sum())


def robust_weights(latency_ms: Array, left_out: Callable[[Array], Array]) -> Array:
    """Weights of outliers (N,): ``left_out`` takes weights and gives left-out predictions (N,).

    All weights are one where networks are foretold better that way: a few that differ from all
    others for a reason are no outliers.
    """
    equal = np.ones_like(latency_ms)
    plain = errors = relative_errors(left_out(equal), latency_ms)
    for _ in range(REWEIGHTINGS):
        weights = student_weights(errors)
        errors = relative_errors(left_out(weights), latency_ms)
    return weights if student_likelihood(errors) > student_likelihood(plain) else equal


@contextmanager
def one_thread() -> Iterator[None]:
    """Linear algebra of a few hundred networks in one thread.

    On busy cores threads that wait for each other take a hundred times as long.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


def folds_of(groups: Integers, n_folds: int) -> Integers:
    """A fold for each sample (N,); samples of one group share it. The same on every machine."""
    names, index = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(names)) % min(n_folds, len(names))
    return np.asarray(order[index.reshape(-1)], dtype=np.int64)
