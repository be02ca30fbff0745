"""What an architecture of which only the first decisions are taken costs, and can still cost.

Decisions are taken in the order of the table. After each of them the cost that is settled is known,
and the least and the most that the remaining ones can add are exact: they come from eliminating the
remaining decisions, last one first (:mod:`latency_tables.elimination` chooses its own order; here
it is given). Whatever builds architectures decision by decision can so give up a prefix as soon as
no completion of it fits, and only then.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from latency_tables.cost_table import Array, CostTable, Genes
from latency_tables.elimination import MAX_ENTRIES, Scope, aligned
from latency_tables.errors import SpaceError, TableTooWideError


class CostToGo:
    """Settled cost, and bounds of what follows, of prefixes of architectures.

    Args:
        table: costs of the space.
        column: one that adds up.
        max_entries: bound of the tables on the way.

    Raises:
        SpaceError: the column is not there, or is not a sum.
        TableTooWideError: decisions are coupled over too many others in between.

    >>> from latency_tables.arch import Decision
    >>> from latency_tables.cost_table import Column, Factor
    >>> table = CostTable(
    ...     [Decision(label=x, choices=(0, 1)) for x in "ab"],
    ...     [Column(name="macs", unit="MAC")],
    ...     [Factor(name=x, labels=(x,), values=np.array([[1.0], [3.0]])) for x in "ab"],
    ... )
    >>> costs, prefixes = CostToGo(table, "macs"), np.array([[0], [1]])
    >>> costs.settled(0, prefixes), costs.following(0, prefixes)
    (array([1., 3.]), (array([1., 1.]), array([3., 3.])))
    """

    def __init__(self, table: CostTable, column: str, *, max_entries: int = MAX_ENTRIES) -> None:
        reduce = next((c.reduce for c in table.columns if c.name == column), None)
        if reduce != "sum":
            known = ", ".join(c.name for c in table.columns if c.reduce == "sum")
            raise SpaceError(f"{column!r} is no cost that adds up; there are {known}")
        self._axes = {d.label: axis for axis, d in enumerate(table.decisions)}
        self._sizes = {d.label: len(d.choices) for d in table.decisions}
        self._max_entries = max_entries
        self.base = 0.0
        """Cost of what no decision changes."""
        self._settled: list[list[tuple[Scope, Array]]] = [[] for _ in table.decisions]
        for scope, values in table.scoped(column):
            if scope:  # a factor is settled with the last of its decisions
                self._settled[max(self._axes[v] for v in scope)].append((scope, values))
            else:
                self.base += float(values)
        labels = list(self._axes)
        self._least = self._eliminated(labels, "min")
        self._most = self._eliminated(labels, "max")

    def settled(self, step: int, genes: Genes) -> Array:
        """Cost (N,) that decision number ``step`` settles, of prefixes (N, more than ``step``)."""
        total = np.zeros(len(genes))
        for scope, values in self._settled[step]:
            total += self._at(scope, values, genes)
        return total

    def following(self, step: int, genes: Genes) -> tuple[Array, Array]:
        """Least and most (N,) that the decisions after number ``step`` can add; -1: all of them."""
        return (
            self._at(*self._least[step + 1], genes),
            self._at(*self._most[step + 1], genes),
        )

    def _at(self, scope: Scope, values: Array, genes: Genes) -> Array:
        if not scope:
            return np.full(len(genes), float(values))
        found: Array = values[tuple(genes[:, self._axes[v]] for v in scope)]
        return found

    def _eliminated(
        self, labels: list[str], goal: Literal["min", "max"]
    ) -> list[tuple[Scope, Array]]:
        """Per number of decisions taken: the extreme of what follows, over those it depends on."""
        rest: tuple[Scope, Array] = ((), np.zeros(()))
        found = [rest]
        for step in reversed(range(len(labels))):
            parts = [*self._settled[step], rest]
            needed = {labels[step]}.union(*(scope for scope, _ in parts))
            scope = tuple(label for label in labels if label in needed)  # this decision comes last
            shape = [self._sizes[v] for v in scope]
            if math.prod(shape) > self._max_entries:
                raise TableTooWideError(math.prod(shape), self._max_entries, list(scope))
            table = np.zeros(shape)
            for part, values in parts:
                table = table + aligned(values, part, scope)
            rest = scope[:-1], table.min(axis=-1) if goal == "min" else table.max(axis=-1)
            found.append(rest)
        return found[::-1]
