"""Latency of networks that nobody measured: an additive model calibrated on whole networks.

A hierarchical look-up table. One generalised ridge stands on three groups of columns: costs of the
whole network (physics, scale 1), the same costs per stage (scale 0.1 to 1) and one column per
choice (scale 0.03 to 0.3). Where samples are few, shrinkage falls back to physics; where they are
many, the model becomes a look-up table whose entries were calibrated in the context of whole
networks, which tables of isolated operators are not.

* Columns are standardised over the training networks, then multiplied by the scale of their group.
* Ridge strength, scales and the target (latency itself with relative weights, or its logarithm)
  are chosen by leave-one-out error in closed form; isomorphic networks are left out together.
  The logarithm must win by 5 %, because only the latency itself adds up over blocks.
* Outliers: Huber weights on leave-one-out residuals beyond 3 robust standard deviations.
* Intervals: normalised conformal. The score of a training network is its relative leave-one-out
  error times √(1 − leverage); a prediction is widened by √(1 + leverage), so networks far from the
  training set get wider intervals. Below 9 networks the largest score is inflated instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latency_tables.arch import Choice
from latency_tables.calibration import Calibration, Genes, Hyper, Target, Training
from latency_tables.cost_table import Column, CostTable, Factor
from latency_tables.errors import CorruptTableError, ForeignTableError, TableError
from latency_tables.estimate import Estimate
from latency_tables.features import LATENCY_COLUMN, Features
from latency_tables.fields import Fields
from latency_tables.files import sha256_json
from latency_tables.pooling import by_key, pool
from latency_tables.ranking import kendall_tau
from latency_tables.records import Measurement

SCHEMA = 1
MIN_NETWORKS = 8
"""Fewer networks than this say nothing about the others."""

Array = NDArray[np.float64]

_SUPPORT_MARGIN = 0.1
"""Costs may leave the range of the training networks by this share of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostics:
    """How well the model predicts networks that it was not fitted on (leave-one-out).

    ``loo_mape`` is the mean absolute relative error, ``within_5`` and ``within_10`` are the shares
    of networks predicted within ±5 % and ±10 %. ``n_outliers`` networks were given less than half
    their weight. ``additive_gap`` is the mean relative distance between a prediction and the sum
    of :meth:`LatencyModel.with_latency_column`.
    """

    n: int
    loo_mape: float
    within_5: float
    within_10: float
    kendall_tau: float
    n_outliers: int
    additive_gap: float
    hyper: Hyper

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
    >>> round(model.predict([Arch({f"block{i}": "k5" for i in range(4)})])[0].latency_ms)  # 12.5
    12
    """

    def __init__(
        self, features: Features, training: Training, hyper: Hyper, weights: Array
    ) -> None:
        self._features, self._training, self._weights = features, training, weights
        self.hyper = hyper
        self._problem = problem = Calibration(features, training)
        self._ridge, self._strength = problem.ridge(hyper, weights)
        self._fit = self._ridge.fit(self._strength)
        self._coefficients = problem.unscaled(self._fit, hyper)
        self._score = features.compile(*self._coefficients, "score", "1")
        self._inverse, self._centre, self._share = self._ridge.spread(self._strength)
        latency = training.latency_ms
        self.floor_ms = problem.floor_ms
        self._loo_ms = problem.left_out_ms(hyper.target, self._fit)
        errors = np.abs(latency / self._loo_ms - 1.0)
        self._scores = np.sort(errors * np.sqrt(np.clip(1.0 - self._fit.leverage, 1e-6, 1.0)))
        costs = features.physics(training.genes)
        margin = _SUPPORT_MARGIN * (costs.max(axis=0) - costs.min(axis=0)) + 1e-9
        self._range = costs.min(axis=0) - margin, costs.max(axis=0) + margin
        self._seen = [
            np.bincount(training.genes[:, i], minlength=len(d.choices)) > 0
            for i, d in enumerate(features.table.decisions)
        ]
        self.diagnostics = self._diagnose()

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
    ) -> LatencyModel:
        """Fit on whole networks: ``archs`` (N) and their latencies (N,) in milliseconds.

        ``groups`` names each network up to isomorphism (a graph key or net_id): equal ones are
        left out together; by default equal genomes are. ``stages`` groups factors of the cost
        table. Raises TableError for fewer than 8 different networks or unusable latencies.
        """
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
        features = Features(cost_table, stages)
        training = Training(genes=genes, latency_ms=latency, groups=index)
        hyper, weights = Calibration(features, training).select()
        return cls(features, training, hyper, weights)

    @classmethod
    def fit_measurements(
        cls,
        cost_table: CostTable,
        measurements: Iterable[Measurement],
        *,
        stages: Mapping[str, Sequence[str]] | None = None,
    ) -> LatencyModel:
        """Fit on the usable records of one device, sessions pooled, isomorphic networks grouped."""
        pooled = [(m[-1], pool(m)) for m in by_key(measurements).values()]
        chosen = [(m.arch, m.net_id, e.latency_ms) for m, e in pooled if m.arch is not None]
        return cls.fit(
            cost_table,
            [arch for arch, _, _ in chosen if arch is not None],
            [latency for _, _, latency in chosen],
            [net_id for _, net_id, _ in chosen],
            stages=stages,
        )

    # --- predicting

    def predict_ms(self, genes: ArrayLike) -> Array:
        """Latencies (N,) in milliseconds of choice indices (N, n_decisions); always positive."""
        return np.maximum(self._raw_ms(genes), self.floor_ms)

    def predict_all(self, genes: ArrayLike, *, level: float = 0.9) -> Prediction:
        """Latencies with intervals of choice indices (N, n_decisions)."""
        raw = self._raw_ms(genes)
        array = np.asarray(genes, dtype=np.int64)
        latency = np.maximum(raw, self.floor_ms)
        half = self._quantile(level) * np.sqrt(1.0 + self._leverage(array, latency))
        costs, (low, high) = self._features.physics(array), self._range
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

    def with_latency_column(self, cost_table: CostTable) -> CostTable:
        """The cost table with a column ``latency_ms`` whose sum is the prediction.

        Exactly so (but for the floor) where the target is the latency; where the logarithm was
        chosen it is the best additive fit, off by ``diagnostics.additive_gap`` on average.
        Raises ForeignTableError for a cost table that the model was not fitted on.
        """
        _same_table(self._features.table, cost_table)
        kept = [c for c in cost_table.columns if c.name != LATENCY_COLUMN]
        at = [i for i, c in enumerate(cost_table.columns) if c.name != LATENCY_COLUMN]
        factors = []
        for i, latency in enumerate(self._additive.factors):
            if i < len(cost_table.factors):
                known = cost_table.factors[i].values[..., at]
            else:
                known = np.zeros((*latency.values.shape[:-1], len(kept)))
            values = np.concatenate([known, latency.values], axis=-1)
            factors.append(Factor(name=latency.name, labels=latency.labels, values=values))
        columns = [*kept, Column(name=LATENCY_COLUMN, unit="ms")]
        return CostTable(cost_table.decisions, columns, factors)

    # --- keeping

    @cached_property
    def model_hash(self) -> str:
        """SHA-256 of what the model follows from."""
        return sha256_json(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary: training networks and choices made; no coefficients.

        Solving again takes milliseconds and cannot disagree with the data it came from.
        """
        return {
            "schema": SCHEMA,
            "cost_table_hash": self._features.table.table_hash,
            "stages": {name: list(names) for name, names in self._features.stages.items()},
            "hyper": asdict(self.hyper),
            "genes": self._training.genes.tolist(),
            "latency_ms": self._training.latency_ms.tolist(),
            "groups": self._training.groups.tolist(),
            "weights": self._weights.tolist(),
        }

    @classmethod
    def from_dict(cls, data: object, cost_table: CostTable) -> LatencyModel:
        """Read what :meth:`to_dict` wrote.

        Raises ForeignTableError for another cost table, CorruptTableError naming the field.
        """
        fields = Fields(data, "latency model")
        fields.schema(SCHEMA)
        found = fields.text("cost_table_hash")
        if found != cost_table.table_hash:
            raise ForeignTableError(
                f"the latency model belongs to cost table {found[:12]}, "
                f"not to {cost_table.table_hash[:12]}",
                hint="hilnas tables build FILE",
            )
        hyper = Fields(fields.take("hyper"), "latency model, hyper")
        chosen = Hyper(
            target=cast(Target, hyper.one_of("target", ("latency", "log"))),
            ridge=hyper.number("ridge"),
            stage_scale=hyper.number("stage_scale"),
            choice_scale=hyper.number("choice_scale"),
        )
        hyper.end()
        try:
            training = Training(
                genes=np.array(fields.items("genes"), dtype=np.int64),
                latency_ms=np.array(fields.items("latency_ms"), dtype=np.float64),
                groups=np.array(fields.items("groups"), dtype=np.int64),
            )
            weights = np.array(fields.items("weights"), dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise CorruptTableError(f"latency model: training data are not numbers: {error}") from (
                None
            )
        features = Features(cost_table, fields.object("stages"))
        fields.end()
        n = len(training.genes)
        shapes = {a.shape for a in (training.latency_ms, training.groups, weights)}
        positive = (training.latency_ms > 0).all() and (weights > 0).all() and chosen.ridge > 0
        if n < MIN_NETWORKS or shapes != {(n,)} or not positive:
            raise CorruptTableError("latency model: training data do not fit together")
        return cls(features, training, chosen, weights)

    # --- inside

    @cached_property
    def _additive(self) -> CostTable:
        if self.hyper.target == "latency":
            intercept, coefficients = self._coefficients
        else:
            hyper = Hyper(**{**asdict(self.hyper), "target": "latency"})
            ridge, strength = self._problem.ridge(hyper, self._weights)
            intercept, coefficients = self._problem.unscaled(ridge.fit(strength), hyper)
        return self._features.compile(intercept, coefficients, LATENCY_COLUMN, "ms")

    def _raw_ms(self, genes: ArrayLike) -> Array:
        score = self._score.batch(genes)[:, 0]
        if self.hyper.target == "log":
            return np.exp(np.clip(score, -700.0, 700.0))
        return score

    def _leverage(self, genes: Genes, latency_ms: Array) -> Array:
        """How far networks lie from the training set; of the order p/N inside of it."""
        columns = self._problem.standardised(self._features.matrix(genes), self.hyper)
        offset = columns - self._centre
        distance = self._share + np.einsum("np,np->n", offset @ self._inverse, offset)
        weight = self._problem.base_weight(self.hyper.target, latency_ms)
        return cast(Array, weight * distance)

    def _quantile(self, level: float) -> float:
        n = len(self._scores)
        rank = int(np.ceil((n + 1) * level))
        if rank <= n:
            return float(self._scores[rank - 1])
        return float(self._scores[-1]) * (n + 1) * level / n * 1.5

    def _diagnose(self) -> Diagnostics:
        latency = self._training.latency_ms
        errors = np.abs(self._loo_ms / latency - 1.0)
        predicted = self.predict_ms(self._training.genes)
        summed = self._additive.batch(self._training.genes)[:, 0]
        return Diagnostics(
            n=len(latency),
            loo_mape=float(errors.mean()),
            within_5=float((errors <= 0.05).mean()),
            within_10=float((errors <= 0.10).mean()),
            kendall_tau=kendall_tau(self._loo_ms, latency),
            n_outliers=int((self._weights < 0.5).sum()),
            additive_gap=float(np.abs(summed / predicted - 1.0).mean()),
            hyper=self.hyper,
        )


def _same_table(fitted: CostTable, given: CostTable) -> None:
    if fitted.table_hash != given.table_hash:
        raise ForeignTableError(
            f"the latency model belongs to cost table {fitted.table_hash[:12]}, "
            f"not to {given.table_hash[:12]}",
            hint="hilnas tables build FILE",
        )
