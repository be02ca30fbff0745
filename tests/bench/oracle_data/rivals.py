"""Who competes: hilnas's model, an affine fit to MACs, one-hot ridge, boosting, a Gaussian process.

Every predictor takes (series, training indices, test indices) and gives predictions of the test
networks; ours gives intervals, too. None of them is tuned to a data set.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel
from sklearn.linear_model import RidgeCV

from latency_tables.predictor import LatencyModel
from latency_tables.predictor.blend import FORMS, Form
from tests.bench.oracle_data.series import Series

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
LEVEL = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """Predictions (N,) in ms, with intervals where there are any, and what they took."""

    latency_ms: Array
    low_ms: Array | None = None
    high_ms: Array | None = None
    fit_s: float
    predict_s: float
    note: str = ""


Predictor = Callable[[Series, Integers, Integers], Predicted]


def ours(
    series: Series,
    train: Integers,
    test: Integers,
    priors: Mapping[str, LatencyModel] | None = None,
) -> Predicted:
    """The model that `hilnas tables build` keeps; ``priors`` are models of other devices."""
    began = time.perf_counter()
    model = _fitted(series, train, priors)
    fitted = time.perf_counter()
    found = model.predict_all(series.genes[test], level=LEVEL)
    return Predicted(
        latency_ms=found.latency_ms,
        low_ms=found.low_ms,
        high_ms=found.high_ms,
        fit_s=fitted - began,
        predict_s=time.perf_counter() - fitted,
        note=", ".join(f"{form} {share:.0%}" for form, share in model.diagnostics.forms.items()),
    )


def prior(series: Series, n: int) -> LatencyModel:
    """A model of another device, of ``n`` networks by a fixed seed."""
    chosen = np.random.default_rng(0).permutation(len(series.genes))[:n]
    return _fitted(series, chosen, None, forms=("table",))


def _fitted(
    series: Series,
    train: Integers,
    priors: Mapping[str, LatencyModel] | None,
    forms: Sequence[Form] = FORMS,
) -> LatencyModel:
    table = series.space.table
    return LatencyModel.fit(
        table,
        [table.arch(genes) for genes in series.genes[train]],
        series.latency_ms[train],
        series.groups[train].tolist(),
        stages=series.space.stages,
        priors=priors,
        forms=forms,
    )


def macs(series: Series, train: Integers, test: Integers) -> Predicted:
    """Latency as an affine function of MACs."""
    cost = series.space.table.column("macs", series.genes)[:, None]

    def fit() -> Callable[[Array], Array]:
        design = np.column_stack([np.ones(len(train)), cost[train] / cost.mean()])
        weights = np.linalg.lstsq(design, series.latency_ms[train])[0]
        return lambda x: weights[0] + weights[1] * x[:, 0] / cost.mean()

    return _timed(fit, cost[test], series.latency_ms[train])


def ridge(series: Series, train: Integers, test: Integers) -> Predicted:
    """A plain look-up table: ridge on one column per choice, its strength by leave-one-out."""
    columns = _one_hot(series)

    def fit() -> Callable[[Array], Array]:
        model = RidgeCV(alphas=np.logspace(-3, 2, 16)).fit(columns[train], series.latency_ms[train])
        return lambda x: np.asarray(model.predict(x))

    return _timed(fit, columns[test], series.latency_ms[train])


def boosting(series: Series, train: Integers, test: Integers) -> Predicted:
    """Gradient-boosted trees on choices and MACs."""
    columns = _with_macs(series)

    def fit() -> Callable[[Array], Array]:
        model = GradientBoostingRegressor(
            n_estimators=100, learning_rate=0.1, max_depth=3, subsample=0.8, random_state=0
        ).fit(columns[train], series.latency_ms[train])
        return lambda x: np.asarray(model.predict(x))

    return _timed(fit, columns[test], series.latency_ms[train])


def gaussian_process(series: Series, train: Integers, test: Integers) -> Predicted:
    """RBF plus linear kernel on choices and MACs, by marginal likelihood."""
    columns = _with_macs(series)
    kernel = ConstantKernel(1.0) * RBF(3.0) + DotProduct(1.0) + WhiteKernel(0.01)

    def fit() -> Callable[[Array], Array]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of parameters that end at a bound
            model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
            model.fit(columns[train], series.latency_ms[train])
        return lambda x: np.asarray(model.predict(x))

    return _timed(fit, columns[test], series.latency_ms[train])


PREDICTORS: dict[str, Predictor] = {
    "ours": ours,
    "macs": macs,
    "ridge": ridge,
    "boosting": boosting,
    "gp": gaussian_process,
}


def _timed(fit: Callable[[], Callable[[Array], Array]], asked: Array, seen: Array) -> Predicted:
    began = time.perf_counter()
    predict = fit()
    fitted = time.perf_counter()
    latency = np.maximum(predict(asked), 0.25 * seen.min())  # as our model does
    return Predicted(
        latency_ms=latency, fit_s=fitted - began, predict_s=time.perf_counter() - fitted
    )


def _one_hot(series: Series) -> Array:
    sizes = [len(d.choices) for d in series.space.table.decisions]
    return np.concatenate([np.eye(n)[series.genes[:, i]] for i, n in enumerate(sizes)], axis=1)


def _with_macs(series: Series) -> Array:
    cost = series.space.table.column("macs", series.genes)
    spread = float(cost.std())
    scaled = (cost - cost.mean()) / (spread if spread > 0 else 1.0)
    return np.column_stack([_one_hot(series), scaled])
