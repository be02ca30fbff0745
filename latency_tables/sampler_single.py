"""One conditional draw on plain numbers, for who needs architectures one at a time.

Drawing a thousand at once costs a few microseconds each; a single draw done that way costs half a
millisecond, nearly all of it the overhead of array calls on one element. Level sampling draws one
architecture per training step, so the walk back through the tables of
:class:`~latency_tables.sampler_elimination.EliminationSampler` is done here element by element.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from latency_tables.cost_table import Array, CostTable

_PLAIN = 16
"""Up to so many options a loop is faster than array calls."""

Row = tuple[list[int], NDArray[np.int64], list[tuple[int, ...]]]


class Stage(Protocol):
    """A stage of the elimination, as the sampler keeps it."""

    @property
    def frontier(self) -> tuple[str, ...]: ...
    @property
    def joint(self) -> tuple[str, ...]: ...
    @property
    def forgotten(self) -> tuple[str, ...]: ...
    @property
    def after(self) -> tuple[str, ...]: ...
    @property
    def shift(self) -> NDArray[np.int64]: ...
    @property
    def before(self) -> Array: ...


class SingleWalk:
    """Walks back from a total to one genome, uniform among the genomes of that total.

    Args:
        steps: stages of the elimination, first one first.
        labels: all decisions, in the order of the genes.
    """

    def __init__(self, steps: Sequence[Stage], labels: Sequence[str]) -> None:
        axes = {label: axis for axis, label in enumerate(labels)}
        self._n_genes = len(labels)
        self._steps = [_Step(step, axes) for step in reversed(steps)]

    def genes(self, rng: np.random.Generator, total: int) -> list[int]:
        """Choice indices of one genome whose bins add up to ``total``."""
        chosen = [0] * self._n_genes
        for step, pick in zip(self._steps, rng.random(len(self._steps)).tolist(), strict=True):
            total = step.choose(chosen, total, pick)
        return chosen


class _Step:
    """What a stage forgot, by what it handed on (its context), the cheapest option first."""

    def __init__(self, step: Stage, axes: dict[str, int]) -> None:
        sizes = dict(zip(step.joint, step.shift.shape, strict=True))
        after, forgotten = step.after, step.forgotten
        order = [step.joint.index(v) for v in (*after, *forgotten)]
        n_contexts = math.prod(sizes[v] for v in after)
        at = np.arange(math.prod(sizes[v] for v in step.frontier)).reshape(
            [sizes[v] if v in step.frontier else 1 for v in step.joint]
        )  # the joint begins with the frontier: where its table of counts starts
        starts = np.broadcast_to(at * step.before.shape[-1], step.shift.shape)
        self._shift = step.shift.transpose(order).reshape(n_contexts, -1)
        self._start = starts.transpose(order).reshape(n_contexts, -1)
        self._context: list[tuple[int, int]] = []
        stride = n_contexts
        for label in after:
            stride //= sizes[label]
            self._context.append((axes[label], stride))
        self._forgotten = [axes[label] for label in forgotten]
        self._options = list(np.ndindex(*(sizes[label] for label in forgotten)))
        self._flat: Array = np.ascontiguousarray(step.before).reshape(-1)
        self._counts = self._flat.data
        self._rows: dict[int, Row] = {}

    def choose(self, chosen: list[int], total: int, pick: float) -> int:
        """Set the forgotten decisions in ``chosen``; gives the total that is left."""
        context = 0
        for axis, stride in self._context:
            context += chosen[axis] * stride
        row = self._rows.get(context)
        if row is None:
            row = self._rows[context] = self._row(context)
        shifts, where, options = row
        n = bisect_right(shifts, total)
        if n <= _PLAIN:
            counts, here = self._counts, where[:n].tolist()
            cumulative = list(accumulate([counts[i + total] for i in here]))
            taken = bisect_right(cumulative, pick * cumulative[-1])
        else:
            summed = self._flat.take(where[:n] + total).cumsum()
            taken = int(summed.searchsorted(pick * summed[-1], side="right"))
        for axis, gene in zip(self._forgotten, options[taken], strict=True):
            chosen[axis] = gene
        return total - shifts[taken]

    def _row(self, context: int) -> Row:
        """Shifts in rising order, where to find each one's count for total 0, and its genes."""
        shift = self._shift[context]
        order = np.argsort(shift, kind="stable")
        where = (self._start[context] - shift)[order]
        return shift[order].tolist(), where, [self._options[i] for i in order]


class SingleCost:
    """The cost of one genome in one column that adds up, on plain numbers.

    It may differ from :meth:`CostTable.column` in the last digits, since it adds in another order.
    """

    def __init__(self, table: CostTable, column: str) -> None:
        axes = {d.label: axis for axis, d in enumerate(table.decisions)}
        self._base = 0.0
        self._parts: list[tuple[int, list[float]]] = []
        self._coupled: list[tuple[list[tuple[int, int]], list[float]]] = []
        for scope, values in table.scoped(column):
            flat = values.ravel().tolist()
            strides = np.cumprod([1, *values.shape[:0:-1]])[::-1].tolist()
            if not scope:
                self._base += flat[0]
            elif len(scope) == 1:
                self._parts.append((axes[scope[0]], flat))
            else:
                self._coupled.append(
                    ([(axes[v], n) for v, n in zip(scope, strides, strict=True)], flat)
                )

    def __call__(self, genes: Sequence[int]) -> float:
        """Cost of the choice indices (n_decisions,)."""
        total = self._base
        for axis, values in self._parts:
            total += values[genes[axis]]
        for scope, values in self._coupled:
            index = 0
            for axis, stride in scope:
                index += genes[axis] * stride
            total += values[index]
        return total
