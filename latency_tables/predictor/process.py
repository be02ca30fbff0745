"""A Gaussian process: the hierarchical table plus a smooth function of costs and choices.

What a sum cannot say (caches that overflow, branches that a compiler drops, operators that fuse)
goes into one more kernel, a squared exponential of costs or of the number of choices that two
networks do not share. Its scale and length, as the table's, are averaged over by their marginal
likelihood; the table alone is one of the candidates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from latency_tables.predictor.features import CHOICES, LIVE, PHYSICS
from latency_tables.predictor.hierarchical import STRENGTHS, Linear, Scales, group_scale
from latency_tables.predictor.problem import Problem, relative_weights, robust_weights
from latency_tables.predictor.regression import Regression

Array = NDArray[np.float64]
Kind = Literal["costs", "choices", "live"]

KINDS: tuple[Kind, ...] = ("costs", "choices", "live")
SCALES = (0.3, 1.0, 3.0)
LENGTHS = (0.5, 1.0, 2.0)
MAX_NETWORKS = 1_000
"""A process is not fitted on more: solving takes time with the cube of their number."""
MAX_CHOOSING = 300
"""Kernels are chosen on at most this many networks: time grows with the cube of their number."""

_TABLES = 2
"""Scales of the table that take part: the most likely ones."""
_KEPT_SHARE = 0.1
_KEPT_AT_MOST = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """``scale``² times a squared exponential; ``length`` is in typical distances of networks."""

    kind: Kind
    scale: float
    length: float


Candidate = tuple[Scales, Kernel]


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A fitted process: an additive part and one dual vector (N,) per kept kernel."""

    intercept: float
    coefficients: Array
    duals: tuple[tuple[Kernel, Array], ...]
    left_out_ms: Array
    weights: Array
    kept: tuple[Candidate, ...]

    def predict_raw_ms(self, problem: Problem, columns: Array) -> Array:
        """Latencies (M,) of networks with raw columns (M, p), before the floor."""
        value: Array = columns @ self.coefficients + self.intercept
        for kind in dict.fromkeys(kernel.kind for kernel, _ in self.duals):
            distance = _distances(problem, kind, columns)
            for kernel, dual in self.duals:
                if kernel.kind == kind:
                    value = value + _covariance(kernel, distance) @ dual
        return value


def fit(problem: Problem, table: Linear, *, kept: Iterable[Candidate] | None = None) -> Process:
    """Average over kernels (default: all) beside the scales that ``table`` found."""
    candidates = list(kept) if kept is not None else _chosen(problem, table)
    latency = problem.training.latency_ms
    cache = _Distances(problem)
    weights = robust_weights(latency, lambda w: _average(problem, candidates, w, cache).left_out_ms)
    # all that the weights of outliers follow from is kept, so that solving again gives the same
    return replace(_average(problem, candidates, weights, cache), kept=tuple(candidates))


def _chosen(problem: Problem, table: Linear) -> list[Candidate]:
    """The most likely kernels, judged with the table's weights of outliers."""
    n = len(problem.training.genes)
    few, weights = problem, table.weights
    if n > MAX_CHOOSING:
        chosen = np.zeros(n, dtype=np.bool_)
        chosen[np.random.default_rng(0).permutation(n)[:MAX_CHOOSING]] = True
        few = Problem(features=problem.features, training=problem.training.part(chosen))
        weights = table.weights[chosen]
    return list(_average(few, _candidates(few, table), weights, _Distances(few)).kept)


def _candidates(problem: Problem, table: Linear) -> list[Candidate]:
    kinds = KINDS if problem.features.sizes[LIVE] else KINDS[:2]
    kernels = [
        Kernel(kind=kind, scale=scale, length=length)
        for kind, scale, length in product(kinds, SCALES, LENGTHS)
    ]
    return list(product(table.kept[:_TABLES], kernels))


class _Distances:
    """Squared distances of training networks, by kind."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._known: dict[Kind, Array] = {}

    def of(self, kind: Kind) -> Array:
        if kind not in self._known:
            self._known[kind] = _distances(self._problem, kind, self._problem.raw)
        return self._known[kind]


def _distances(problem: Problem, kind: Kind, raw: Array) -> Array:
    """Mean squared difference of networks (M, p) and training networks (N): (M, N)."""
    group = problem.features.group
    if kind == "choices":  # two differing choices of a decision differ in two columns
        one_hot = group == CHOICES
        common = raw[:, one_hot] @ problem.raw[:, one_hot].T
        n = problem.training.genes.shape[1]
        return np.asarray(2.0 * (n - common) / n, dtype=np.float64)
    at = np.flatnonzero((problem.scale > 0) & (group == (PHYSICS if kind == "costs" else LIVE)))
    mine, known = (raw[:, at] - problem.centre[at]) * problem.scale[at], problem.columns[:, at]
    squares = (mine**2).sum(axis=1)[:, None] + (known**2).sum(axis=1)[None]
    squares = np.maximum(squares - 2.0 * mine @ known.T, 0.0)
    return np.asarray(squares / max(len(at), 1), dtype=np.float64)


def _covariance(kernel: Kernel, distance: Array) -> Array:
    covariance: Array = kernel.scale**2 * np.exp(-distance / (2.0 * kernel.length**2))
    return covariance


def _average(
    problem: Problem, candidates: list[Candidate], weights: Array, cache: _Distances
) -> Process:
    training = problem.training
    latency, n = training.latency_ms, len(training.latency_ms)
    total = relative_weights("latency", latency) * weights
    strengths = [s * n for s in STRENGTHS]
    unit = max(float((problem.scale[problem.features.group == PHYSICS] > 0).sum()), 1.0)

    def regression(candidate: Candidate) -> Regression:
        scales, kernel = candidate
        joint = np.tensordot(np.square(scales), problem.grams(), axes=1)
        joint = joint + unit * _covariance(kernel, cache.of(kernel.kind))
        return Regression(latency, total, training.groups, gram=joint)

    solvers = [regression(candidate) for candidate in candidates]
    evidence = np.stack([solver.log_evidence(strengths) for solver in solvers])
    share = np.exp(evidence - evidence.max())
    each = share.sum(axis=1)
    order = np.argsort(-each, kind="stable")[:_KEPT_AT_MOST]
    order = order[each[order] >= _KEPT_SHARE * float(each.max())]
    total_share = float(share[order].sum())
    intercept, coefficients = 0.0, np.zeros(problem.columns.shape[1])
    left_out = np.zeros(n)
    duals: list[tuple[Kernel, Array]] = []
    for i in order.tolist():
        scales, kernel = candidates[i]
        own = np.zeros(n)
        for j in np.flatnonzero(share[i] > 1e-3 * total_share).tolist():
            part = float(share[i, j]) / total_share
            solution = solvers[i].solve(strengths[j])
            intercept += part * solution.mean
            own += part * solution.dual
            left_out += part * solution.left_out
        coefficients += group_scale(problem, scales) ** 2 * (problem.columns.T @ own)
        duals.append((kernel, unit * own))
    raw = coefficients * problem.scale
    return Process(
        intercept=intercept - float(problem.centre @ raw),
        coefficients=raw,
        duals=tuple(duals),
        left_out_ms=problem.above_floor(left_out),
        weights=weights,
        kept=tuple(candidates[i] for i in order.tolist()),
    )
