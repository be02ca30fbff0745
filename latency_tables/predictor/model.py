"""Latency of networks that nobody measured, from a few networks that somebody did.

A :class:`LatencyModel` blends forms of predictor by cross-validated errors: a hierarchical look-up
table (:mod:`.hierarchical`), the same on a logarithmic scale, a bottleneck model
(:mod:`.bottleneck`), a Gaussian process (:mod:`.process`) and boosted residuals (:mod:`.boosted`);
see :mod:`.blend`. Its intervals are conformal (:mod:`.intervals`), and its table is an additive
cost table for samplers and generators.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latency_tables.arch import Choice
from latency_tables.cost_table import Column, CostTable, Factor
from latency_tables.errors import TableError
from latency_tables.estimate import Estimate
from latency_tables.files import sha256_json
from latency_tables.pooling import by_key, pool
from latency_tables.predictor import blend, kept
from latency_tables.predictor.blend import FORMS, Blend, Form, Hyper, Progress
from latency_tables.predictor.features import LATENCY_COLUMN, Features
from latency_tables.predictor.intervals import Intervals, Novelty
from latency_tables.predictor.problem import Problem, Training, one_thread, relative_errors
from latency_tables.ranking import kendall_tau
from latency_tables.records import Measurement

MIN_NETWORKS = 8
"""Fewer networks than this say nothing about the others."""

Array = NDArray[np.float64]
Genes = NDArray[np.int64]

_SUPPORT_MARGIN = 0.1
"""Costs may leave the range of the training networks by this share of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostics:
    """How well the model predicts networks that it was not fitted on (left out, one group a time).

    ``loo_mape`` is the mean absolute relative error, ``within_5`` and ``within_10`` are the shares
    of networks predicted within ±5 % and ±10 %. ``n_outliers`` networks were given less than half
    their weight. ``additive_gap`` is the mean relative distance between a prediction and the sum
    of :meth:`LatencyModel.with_latency_column`. ``forms`` are the shares of the blended forms,
    ``priors`` the devices that cross-validation found worth listening to.
    """

    n: int
    loo_mape: float
    within_5: float
    within_10: float
    kendall_tau: float
    n_outliers: int
    additive_gap: float
    forms: Mapping[str, float]
    priors: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Predictions of N networks as arrays (N,), in milliseconds."""

    latency_ms: Array
    low_ms: Array
    high_ms: Array
    in_support: NDArray[np.bool_]
    level: float


class LatencyModel:
    """Predict latencies from costs and choices; made by :meth:`fit`.

    >>> from latency_tables.arch import Arch, Decision
    >>> table = CostTable(
    ...     decisions=[Decision(label=f"block{i}", choices=("k3", "k5")) for i in range(4)],
    ...     columns=[Column(name="macs", unit="MAC")],
    ...     factors=[
    ...         Factor(name=f"block{i}", labels=(f"block{i}",), values=np.array([[1.0], [3.0]]))
    ...         for i in range(4)
    ...     ],
    ... )
    >>> archs = [Arch.from_genes(table.decisions, [n >> i & 1 for i in range(4)]) for n in range(9)]
    >>> model = LatencyModel.fit(table, archs, [0.5 + table.cost(arch, "macs") for arch in archs])
    >>> round(model.predict([Arch({f"block{i}": "k5" for i in range(4)})])[0].latency_ms, 1)
    12.5
    """

    def __init__(self, fitted: Blend) -> None:
        self._blend = fitted
        self._problem = problem = fitted.problem
        self._features, self._training = problem.features, problem.training
        table = fitted.table
        self._score = self._features.compile(table.intercept, table.coefficients, "score", "ms")
        self._intervals = Intervals(self._training.latency_ms, fitted.left_out_ms, table.leverage)
        self._novelty = Novelty(problem, table)
        costs = self._features.physics(self._training.genes)
        margin = _SUPPORT_MARGIN * (costs.max(axis=0) - costs.min(axis=0)) + 1e-9
        self._range = costs.min(axis=0) - margin, costs.max(axis=0) + margin
        self._seen = [
            np.bincount(self._training.genes[:, i], minlength=len(d.choices)) > 0
            for i, d in enumerate(self._features.table.decisions)
        ]
        self.floor_ms = problem.floor_ms
        self.diagnostics = self._diagnose()

    @property
    def hyper(self) -> Hyper:
        """What cross-validation chose."""
        return self._blend.hyper

    # --- fitting

    @classmethod
    def fit(
        cls,
        cost_table: CostTable,
        archs: Sequence[Mapping[str, Choice]],
        latency_ms: ArrayLike,
        groups: Sequence[object] | None = None,
        *,
        stages: Mapping[str, Sequence[str]] | None = None,
        priors: Mapping[str, LatencyModel | CostTable] | None = None,
        forms: Sequence[Form] = FORMS,
        progress: Progress | None = None,
    ) -> LatencyModel:
        """Fit on whole networks: ``archs`` (N) and their latencies (N,) in milliseconds.

        ``groups`` names each network up to isomorphism (a graph key or net_id): equal ones are
        left out together; by default equal genomes are. ``stages`` groups factors of the cost
        table. ``priors`` are models of other devices over the same decisions, or cost tables of
        one column that foretell latencies, used where cross-validation says that they help. Of
        ``forms`` those that apply take part. ``progress`` is told how many forms of how many were
        tried. Raises TableError for fewer than 8 different networks or unusable latencies.
        """
        training = _training(cost_table, archs, latency_ms, groups)
        told = {
            name: prior if isinstance(prior, CostTable) else prior.additive
            for name, prior in (priors or {}).items()
        }
        problem = Problem(features=Features(cost_table, stages, told), training=training)
        with one_thread():
            return cls(blend.choose(problem, forms, progress))

    @classmethod
    def fit_measurements(
        cls,
        cost_table: CostTable,
        measurements: Iterable[Measurement],
        *,
        stages: Mapping[str, Sequence[str]] | None = None,
        priors: Mapping[str, LatencyModel | CostTable] | None = None,
        forms: Sequence[Form] = FORMS,
        progress: Progress | None = None,
    ) -> LatencyModel:
        """Fit on the usable records of one device, sessions pooled, isomorphic networks grouped."""
        archs, latency, nets = _pooled(measurements)
        return cls.fit(
            cost_table,
            archs,
            latency,
            nets,
            stages=stages,
            priors=priors,
            forms=forms,
            progress=progress,
        )

    def refit(
        self,
        archs: Sequence[Mapping[str, Choice]],
        latency_ms: ArrayLike,
        groups: Sequence[object] | None = None,
    ) -> LatencyModel:
        """The same choices of forms and scales, solved for other networks: much faster than fit.

        Raises TableError as :meth:`fit` does.
        """
        training = _training(self._features.table, archs, latency_ms, groups)
        problem = Problem(features=self._features, training=training)
        with one_thread():
            return LatencyModel(blend.solve(problem, self.hyper))

    def relearn_measurements(self, measurements: Iterable[Measurement]) -> LatencyModel:
        """Choose anew on the usable records of one device: same cost table, stages and priors.

        For when the new networks may not be like those that the choice was made on.
        """
        features = self._features
        return LatencyModel.fit_measurements(
            features.table, measurements, stages=features.stages, priors=features.priors
        )

    def refit_measurements(self, measurements: Iterable[Measurement]) -> LatencyModel:
        """:meth:`refit` on the usable records of one device."""
        return self.refit(*_pooled(measurements))

    # --- predicting

    def predict_ms(self, genes: ArrayLike) -> Array:
        """Latencies (N,) in milliseconds of choice indices (N, n_decisions); always positive."""
        return np.maximum(self._raw_ms(np.asarray(genes, dtype=np.int64)), self.floor_ms)

    def predict_all(self, genes: ArrayLike, *, level: float = 0.9) -> Prediction:
        """Latencies with intervals of choice indices (N, n_decisions)."""
        array = np.asarray(genes, dtype=np.int64)
        columns = self._features.matrix(array)
        raw = self._raw_ms(array, columns)
        latency = np.maximum(raw, self.floor_ms)
        novelty = self._novelty.of(columns, latency)
        half = self._intervals.half_widths(latency, novelty, level)
        low, high = self._range
        costs = columns[:, : len(low)]
        supported = ((costs >= low) & (costs <= high)).all(axis=1) & (raw >= self.floor_ms)
        supported &= ~self._features.unseen(array, self._seen)
        return Prediction(
            latency_ms=latency,
            low_ms=latency * np.maximum(1.0 - half, 0.0),
            high_ms=latency * (1.0 + half),
            in_support=supported,
            level=level,
        )

    def predict(
        self, archs: Sequence[Mapping[str, Choice]], *, level: float = 0.9
    ) -> list[Estimate]:
        """One Estimate per architecture, with source "predicted" and the model's hash as key."""
        if not archs:
            return []
        found = self.predict_all(self._features.table.genes(archs), level=level)
        columns = (found.latency_ms, found.low_ms, found.high_ms, found.in_support)
        return [
            Estimate(
                latency_ms=latency,
                low_ms=low,
                high_ms=high,
                key=self.model_hash,
                source="predicted",
                n=self.diagnostics.n,
                level=level,
                in_support=supported,
            )
            for latency, low, high, supported in zip(*(c.tolist() for c in columns), strict=True)
        ]

    # --- the additive part

    @cached_property
    def additive(self) -> CostTable:
        """One column ``latency_ms``: the hierarchical table alone, a sum over blocks."""
        table = self._blend.table
        return self._features.compile(table.intercept, table.coefficients, LATENCY_COLUMN, "ms")

    def with_latency_column(self, cost_table: CostTable) -> CostTable:
        """The cost table with a column ``latency_ms`` whose sum is the additive prediction.

        Exactly the prediction (but for the floor) where the blend is the table alone; else off by
        ``diagnostics.additive_gap`` on average. Raises ForeignTableError for a cost table that the
        model was not fitted on.
        """
        kept.require_table(self._features.table.table_hash, cost_table)
        known = [c for c in cost_table.columns if c.name != LATENCY_COLUMN]
        at = [i for i, c in enumerate(cost_table.columns) if c.name != LATENCY_COLUMN]
        factors = []
        for i, latency in enumerate(self.additive.factors):
            if i < len(cost_table.factors):
                costs = cost_table.factors[i].values[..., at]
            else:
                costs = np.zeros((*latency.values.shape[:-1], len(known)))
            values = np.concatenate([costs, latency.values], axis=-1)
            factors.append(Factor(name=latency.name, labels=latency.labels, values=values))
        columns = [*known, Column(name=LATENCY_COLUMN, unit="ms")]
        return CostTable(cost_table.decisions, columns, factors)

    # --- keeping

    @cached_property
    def model_hash(self) -> str:
        """SHA-256 of what the model follows from."""
        return sha256_json(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary: training networks and choices made; no coefficients.

        Solving again takes a fraction of a second and cannot disagree with the data.
        """
        return kept.to_dict(self._problem, self.hyper)

    @classmethod
    def from_dict(cls, data: object, cost_table: CostTable) -> LatencyModel:
        """Read what :meth:`to_dict` wrote.

        Raises ForeignTableError for another cost table, CorruptTableError naming the field.
        """
        problem, hyper = kept.from_dict(data, cost_table, least=MIN_NETWORKS)
        with one_thread():
            return cls(blend.solve(problem, hyper))

    # --- inside

    def _raw_ms(self, genes: Genes, columns: Array | None = None) -> Array:
        table_ms = self._score.batch(genes)[:, 0]
        if columns is None and self.hyper.additive:
            return table_ms
        if columns is None:
            columns = self._features.matrix(genes)
        return self._blend.predict_raw_ms(genes, columns, table_ms)

    def _diagnose(self) -> Diagnostics:
        latency, left_out = self._training.latency_ms, self._blend.left_out_ms
        errors = relative_errors(left_out, latency)
        predicted = self.predict_ms(self._training.genes)
        summed = self._score.batch(self._training.genes)[:, 0]
        return Diagnostics(
            n=len(latency),
            loo_mape=float(errors.mean()),
            within_5=float((errors <= 0.05).mean()),
            within_10=float((errors <= 0.10).mean()),
            kendall_tau=kendall_tau(left_out, latency),
            n_outliers=int((self._blend.table.weights < 0.5).sum()),
            additive_gap=float(np.abs(summed / predicted - 1.0).mean()),
            forms={str(form): share for form, share in self.hyper.shares.items()},
            priors=self.hyper.priors,
        )


def _pooled(
    measurements: Iterable[Measurement],
) -> tuple[list[Mapping[str, Choice]], list[float], list[str]]:
    """Architectures, latencies in ms and net_ids of usable records, sessions pooled."""
    pooled = [(m[-1], pool(m)) for m in by_key(measurements).values()]
    known = [(m.arch, e.latency_ms, m.net_id) for m, e in pooled if m.arch is not None]
    archs: list[Mapping[str, Choice]] = [arch for arch, _, _ in known]
    return archs, [latency for _, latency, _ in known], [net for _, _, net in known]


def _training(
    cost_table: CostTable,
    archs: Sequence[Mapping[str, Choice]],
    latency_ms: ArrayLike,
    groups: Sequence[object] | None,
) -> Training:
    latency = np.asarray(latency_ms, dtype=np.float64)
    genes = cost_table.genes(archs)
    names: Sequence[object] = groups if groups is not None else [tuple(g) for g in genes]
    if latency.shape != (len(genes),) or len(names) != len(genes):
        raise TableError(
            f"{len(genes)} networks need as many latencies and groups, not "
            f"{latency.shape} and {len(names)}"
        )
    if not np.isfinite(latency).all() or (latency <= 0).any():
        bad = int(np.flatnonzero(~(np.isfinite(latency) & (latency > 0)))[0])
        raise TableError(f"network {bad} has a latency of {latency[bad]} ms; must be positive")
    numbers: dict[object, int] = {}
    index = np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)
    if len(numbers) < MIN_NETWORKS:
        raise TableError(
            f"{len(numbers)} different networks are too few for a latency model; "
            f"at least {MIN_NETWORKS} are needed",
            hint="a larger latency.samples, as in --set latency.samples=40",
        )
    return Training(genes=genes, latency_ms=latency, groups=index)
