"""Columns of the latency model, all of them sums over the factors of a cost table.

Five groups: ``physics`` (costs of the whole network), ``stages`` (the same costs within a stage),
``choices`` (one column per choice of a decision), ``live`` (columns of the cost table about the
operators that a compiler leaves of a cell, named ``live_…``) and ``priors`` (what the additive
models of other devices say). Because every column is a sum over factors, any linear combination is
again a table of factors: :meth:`Features.compile`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from latency_tables.cost_table import Column, CostTable, Factor
from latency_tables.errors import TableError

Array = NDArray[np.float64]
Genes = NDArray[np.int64]

PHYSICS, STAGES, CHOICES, LIVE, PRIORS = range(5)
N_GROUPS = 5
LATENCY_COLUMN = "latency_ms"
LIVE_PREFIX = "live_"


class Features:
    """Turn choice indices into model columns.

    ``stages`` groups factors: name of the stage → names of its factors. ``priors`` are cost tables
    over the same decisions whose one column is another device's additive latency. Only columns of
    the cost table that add up are used, and never a latency column.
    """

    def __init__(
        self,
        table: CostTable,
        stages: Mapping[str, Sequence[str]] | None = None,
        priors: Mapping[str, CostTable] | None = None,
    ) -> None:
        self.table, self.priors = table, dict(priors or {})
        self.stages = {name: tuple(factors) for name, factors in (stages or {}).items()}
        sums = [
            (i, column.name)
            for i, column in enumerate(table.columns)
            if column.reduce == "sum" and column.name != LATENCY_COLUMN
        ]
        self._sums = [i for i, name in sums if not name.startswith(LIVE_PREFIX)]
        self._live = [i for i, name in sums if name.startswith(LIVE_PREFIX)]
        position = {factor.name: i for i, factor in enumerate(table.factors)}
        unknown = sorted({f for names in self.stages.values() for f in names} - set(position))
        if unknown:
            raise TableError(
                f"stages name factors that the cost table does not have: {', '.join(unknown)}; "
                f"it has {', '.join(position)}"
            )
        for name, prior in self.priors.items():
            if prior.decisions != table.decisions or len(prior.columns) != 1:
                raise TableError(
                    f"prior {name!r} is not a latency of these decisions: it must have one column "
                    "and the decisions of the cost table"
                )
        self._stage_factors = [[position[f] for f in names] for names in self.stages.values()]
        names = [table.columns[i].name for i in self._sums]
        self.names = (
            *names,
            *(f"{stage}:{name}" for stage in self.stages for name in names),
            *(f"{d.label}={choice}" for d in table.decisions for choice in d.choices),
            *(table.columns[i].name for i in self._live),
            *(f"prior:{name}" for name in self.priors),
        )
        self.sizes = (
            len(names),
            len(names) * len(self.stages),
            sum(len(d.choices) for d in table.decisions),
            len(self._live),
            len(self.priors),
        )
        self.group: NDArray[np.int64] = np.repeat(np.arange(N_GROUPS), self.sizes)

    def matrix(self, genes: Genes) -> Array:
        """Choice indices (N, n_decisions) → columns (N, len(names))."""
        costs = self.table.batch(genes)
        parts = [costs[:, self._sums]]
        if self._stage_factors:
            values = self.table.factor_values(genes)[:, :, self._sums]  # (N, n_factors, n_sums)
            parts += [values[:, factors].sum(axis=1) for factors in self._stage_factors]
        for i, decision in enumerate(self.table.decisions):
            parts.append(np.eye(len(decision.choices))[genes[:, i]])
        parts.append(costs[:, self._live])
        parts += [prior.batch(genes) for prior in self.priors.values()]
        return np.concatenate(parts, axis=1)

    def physics(self, genes: Genes) -> Array:
        """Whole-network costs (N, n_sums)."""
        costs: Array = self.table.batch(genes)[:, self._sums]
        return costs

    def unseen(self, genes: Genes, seen: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
        """Which of ``genes`` hold a choice that is not marked in ``seen``, per decision: (N,)."""
        missing = np.zeros(len(genes), dtype=np.bool_)
        for i, mask in enumerate(seen):
            missing |= ~mask[genes[:, i]]
        return missing

    def compile(self, intercept: float, coefficients: Array, name: str, unit: str) -> CostTable:
        """The linear function of the columns as a cost table of one column.

        Its factors begin with those of the cost table, in the same order; a constant, decisions
        that no factor looks at, and what priors have beyond these factors follow.
        """
        physics, stages, choices, live, priors = np.split(
            coefficients, np.cumsum(self.sizes)[:-1].tolist()
        )
        n_sums = len(physics)
        weights = [physics.copy() for _ in self.table.factors]
        for stage, members in enumerate(self._stage_factors):
            for factor in members:
                weights[factor] += stages[stage * n_sums : (stage + 1) * n_sums]
        values = [
            factor.values[..., self._sums] @ weight + factor.values[..., self._live] @ live
            for factor, weight in zip(self.table.factors, weights, strict=True)
        ]
        extra = [Factor(name=f"{name} intercept", labels=(), values=np.array([intercept]))]
        start = 0
        for decision in self.table.decisions:
            own = choices[start : start + len(decision.choices)]
            start += len(decision.choices)
            home = self._home(decision.label)
            if home is None:
                labels = (decision.label,)
                extra.append(
                    Factor(name=f"{name} {decision.label}", labels=labels, values=own[:, None])
                )
                continue
            axis = self.table.factors[home].labels.index(decision.label)
            shape = [1] * values[home].ndim
            shape[axis] = -1
            values[home] = values[home] + own.reshape(shape)
        scopes = [factor.labels for factor in self.table.factors]
        for (device, prior), weight in zip(self.priors.items(), priors.tolist(), strict=True):
            for i, told in enumerate(prior.factors):
                part = weight * told.values[..., 0]
                if i < len(values) and told.labels == scopes[i]:
                    values[i] = values[i] + part
                elif weight:
                    named = f"{name} prior:{device} {told.name}"
                    extra.append(Factor(name=named, labels=told.labels, values=part[..., None]))
        factors = [
            Factor(name=factor.name, labels=factor.labels, values=np.asarray(value)[..., None])
            for factor, value in zip(self.table.factors, values, strict=True)
        ]
        return CostTable(self.table.decisions, [Column(name=name, unit=unit)], [*factors, *extra])

    def _home(self, label: str) -> int | None:
        """The smallest factor that looks at a decision."""
        homes = [i for i, factor in enumerate(self.table.factors) if label in factor.labels]
        return min(homes, key=lambda i: self.table.factors[i].values.size, default=None)
