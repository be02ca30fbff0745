"""Columns of the latency model, all of them sums over the factors of a cost table.

Three groups, from coarse to fine: ``physics`` (costs of the whole network), ``stages`` (the same
costs within a stage) and ``choices`` (one column per choice of a decision). Because every column is
a sum over factors, any linear combination is again a table of factors: :meth:`Features.compile`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from latency_tables.cost_table import Column, CostTable, Factor
from latency_tables.errors import TableError

Array = NDArray[np.float64]
Genes = NDArray[np.int64]

PHYSICS, STAGES, CHOICES = 0, 1, 2
LATENCY_COLUMN = "latency_ms"


class Features:
    """Turn choice indices into model columns.

    ``stages`` groups factors: name of the stage → names of its factors. Only columns of the cost
    table that add up are used, and never a latency column.
    """

    def __init__(self, table: CostTable, stages: Mapping[str, Sequence[str]] | None = None) -> None:
        self.table = table
        self.stages = {name: tuple(factors) for name, factors in (stages or {}).items()}
        self._sums = [
            i
            for i, column in enumerate(table.columns)
            if column.reduce == "sum" and column.name != LATENCY_COLUMN
        ]
        position = {factor.name: i for i, factor in enumerate(table.factors)}
        unknown = sorted({f for names in self.stages.values() for f in names} - set(position))
        if unknown:
            raise TableError(
                f"stages name factors that the cost table does not have: {', '.join(unknown)}; "
                f"it has {', '.join(position)}"
            )
        self._stage_factors = [[position[f] for f in names] for names in self.stages.values()]
        names = [table.columns[i].name for i in self._sums]
        self.names = (
            *names,
            *(f"{stage}:{name}" for stage in self.stages for name in names),
            *(f"{d.label}={choice}" for d in table.decisions for choice in d.choices),
        )
        n_choices = sum(len(d.choices) for d in table.decisions)
        self.group: NDArray[np.int64] = np.repeat(
            [PHYSICS, STAGES, CHOICES], [len(names), len(names) * len(self.stages), n_choices]
        )

    def matrix(self, genes: Genes) -> Array:
        """Choice indices (N, n_decisions) → columns (N, len(names))."""
        physics = self.table.batch(genes)[:, self._sums]
        parts = [physics]
        if self._stage_factors:
            values = self.table.factor_values(genes)[:, :, self._sums]  # (N, n_factors, n_sums)
            parts += [values[:, factors].sum(axis=1) for factors in self._stage_factors]
        for i, decision in enumerate(self.table.decisions):
            parts.append(np.eye(len(decision.choices))[genes[:, i]])
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

        Its factors begin with those of the cost table, in the same order; a constant and decisions
        that no factor looks at follow.
        """
        n_sums = len(self._sums)
        physics, rest = coefficients[:n_sums], coefficients[n_sums:]
        stages, choices = np.split(rest, [n_sums * len(self.stages)])
        weights = [physics.copy() for _ in self.table.factors]
        for stage, members in enumerate(self._stage_factors):
            for factor in members:
                weights[factor] += stages[stage * n_sums : (stage + 1) * n_sums]
        values = [
            factor.values[..., self._sums] @ weight
            for factor, weight in zip(self.table.factors, weights, strict=True)
        ]
        extra = [Factor(name=f"{name} intercept", labels=(), values=np.array([intercept]))]
        start = 0
        for decision in self.table.decisions:
            own = choices[start : start + len(decision.choices)]
            start += len(decision.choices)
            home = self._home(decision.label)
            if home is None:
                values_of = own[:, None]
                extra.append(
                    Factor(
                        name=f"{name} {decision.label}", labels=(decision.label,), values=values_of
                    )
                )
                continue
            axis = self.table.factors[home].labels.index(decision.label)
            shape = [1] * values[home].ndim
            shape[axis] = -1
            values[home] = values[home] + own.reshape(shape)
        factors = [
            Factor(name=factor.name, labels=factor.labels, values=np.asarray(value)[..., None])
            for factor, value in zip(self.table.factors, values, strict=True)
        ]
        return CostTable(self.table.decisions, [Column(name=name, unit=unit)], [*factors, *extra])

    def _home(self, label: str) -> int | None:
        """The smallest factor that looks at a decision."""
        homes = [i for i, factor in enumerate(self.table.factors) if label in factor.labels]
        return min(homes, key=lambda i: self.table.factors[i].values.size, default=None)
