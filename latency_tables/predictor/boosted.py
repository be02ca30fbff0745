"""Boosted residuals: trees on what the hierarchical table leaves over, where networks are many.

The trees see choices and costs and learn the logarithm of measured by left-out latency, so that
they correct errors that the table makes on networks it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latency_tables.predictor.features import LIVE, PHYSICS, Features
from latency_tables.predictor.hierarchical import Linear
from latency_tables.predictor.problem import Problem, folds_of, one_thread

Array = NDArray[np.float64]
Genes = NDArray[np.int64]

MIN_NETWORKS = 100
"""Fewer networks teach trees nothing that a table does not know."""
N_FOLDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Boosted:
    """A fitted table with trees on top."""

    table: Linear
    trees: Any
    left_out_ms: Array

    def predict_raw_ms(self, problem: Problem, genes: Genes, columns: Array) -> Array:
        """Latencies (M,) of choice indices with raw columns (M, p), before the floor."""
        seen = _columns(problem.features, columns, genes)
        found: Array = self.table.predict_raw_ms(columns) * np.exp(self.trees.predict(seen))
        return found


def fit(problem: Problem, table: Linear) -> Boosted:
    """Boost the residuals of ``table``, judged by folds that trees did not see."""
    features, training = problem.features, problem.training
    columns = _columns(features, problem.raw, training.genes)
    rest = np.log(training.latency_ms / table.left_out_ms)
    fold = folds_of(training.groups, N_FOLDS)
    corrected = np.empty_like(rest)
    for number in range(int(fold.max()) + 1):
        out = fold == number
        corrected[out] = _trees(columns[~out], rest[~out], table.weights[~out]).predict(
            columns[out]
        )
    return Boosted(
        table=table,
        trees=_trees(columns, rest, table.weights),
        left_out_ms=problem.above_floor(table.left_out_ms * np.exp(corrected)),
    )


def _columns(features: Features, raw: Array, genes: Genes) -> Array:
    seen = np.isin(features.group, (PHYSICS, LIVE))
    return np.concatenate([raw[:, seen], genes.astype(np.float64)], axis=1)


def _trees(columns: Array, rest: Array, weights: Array) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    trees = HistGradientBoostingRegressor(
        max_iter=150,
        learning_rate=0.08,
        max_leaf_nodes=8,
        min_samples_leaf=10,
        early_stopping=False,
        random_state=0,
    )
    with one_thread():  # also where the trees were the first to load their threads
        return trees.fit(columns, rest, sample_weight=weights)
