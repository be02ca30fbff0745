"""Variable elimination: exact minima and maxima of a function that is made of small tables.

The function is ``combine`` (a sum, or the largest) over *factors*; a factor depends on a few
variables. Variables leave one after the other: the factors that mention a variable are combined
into one table, the variable is optimised away, and what is left is a smaller factor. For a chain of
factors of one variable each this is one look at every entry; couplings cost as much as the largest
table on the way, which is why :data:`MAX_ENTRIES` bounds it.

Koller and Friedman, *Probabilistic Graphical Models*, 2009, algorithms 9.1 and 13.1 (max-product in
the logarithm).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from latency_tables.errors import TableTooWideError

Array = NDArray[np.float64]
Scope = tuple[str, ...]

MAX_ENTRIES = 1_000_000
"""Largest table that an exact answer may build (8 MB of float64)."""


def elimination_order(
    scopes: Sequence[Scope], sizes: Mapping[str, int], *, max_entries: int = MAX_ENTRIES
) -> list[str]:
    """Variables in the order in which to eliminate them: the smallest next table first.

    Raises:
        TableTooWideError: a table on the way would have more than ``max_entries`` entries.

    >>> elimination_order([("a", "b"), ("b", "c")], {"a": 2, "b": 9, "c": 3})
    ['a', 'b', 'c']
    """
    remaining = [frozenset(scope) for scope in scopes]
    order, left = [], list(sizes)
    while left:
        unions = {
            v: frozenset().union(*(scope for scope in remaining if v in scope)) | {v} for v in left
        }
        best = min(left, key=lambda v: math.prod(sizes[u] for u in unions[v]))
        entries = math.prod(sizes[u] for u in unions[best])
        if entries > max_entries:
            raise TableTooWideError(entries, max_entries, sorted(unions[best]))
        remaining = [scope for scope in remaining if best not in scope]
        remaining.append(unions[best] - {best})
        order.append(best)
        left.remove(best)
    return order


def aligned(values: NDArray[np.float64], scope: Scope, target: Scope) -> Array:
    """View ``values`` (one axis per variable of ``scope``) with the axes of ``target``.

    Variables of ``target`` that ``scope`` lacks become axes of length one, so the result
    broadcasts.
    """
    order = sorted(range(len(scope)), key=lambda axis: target.index(scope[axis]))
    turned = values.transpose(order)
    shape = [1] * len(target)
    for axis, size in zip(order, turned.shape, strict=True):
        shape[target.index(scope[axis])] = size
    return turned.reshape(shape)


def optimise(
    factors: Sequence[tuple[Scope, Array]],
    sizes: Mapping[str, int],
    *,
    goal: Literal["min", "max"],
    combine: Literal["sum", "max"] = "sum",
    max_entries: int = MAX_ENTRIES,
) -> tuple[float, dict[str, int]]:
    """Best value of the combined factors and an assignment that reaches it.

    Args:
        factors: (scope, values) with one axis per variable of the scope.
        sizes: number of values of every variable, also of those that no factor mentions.
        goal: look for the smallest or the largest value.
        combine: whether factors add up or the largest counts.
        max_entries: bound of the tables on the way.

    Returns:
        (value, variable → index). Of equal assignments the one with lower indices wins.

    >>> optimise([(("a",), np.array([3.0, 1.0])), ((), np.array(5.0))], {"a": 2}, goal="min")
    (6.0, {'a': 1})
    """
    join = np.add if combine == "sum" else np.maximum
    neutral = 0.0 if combine == "sum" else -math.inf
    pool = [(scope, np.asarray(values, dtype=np.float64)) for scope, values in factors]
    traces: list[tuple[str, Scope, NDArray[np.intp]]] = []
    for variable in elimination_order([s for s, _ in pool], sizes, max_entries=max_entries):
        touched = [(s, v) for s, v in pool if variable in s]
        pool = [(s, v) for s, v in pool if variable not in s]
        others = tuple(sorted({u for s, _ in touched for u in s} - {variable}))
        scope = (*others, variable)
        table = np.full([sizes[u] for u in scope], neutral)
        for factor_scope, values in touched:
            table = join(table, aligned(values, factor_scope, scope))
        choice = table.argmin(axis=-1) if goal == "min" else table.argmax(axis=-1)
        traces.append((variable, others, choice))
        pool.append((others, np.take_along_axis(table, choice[..., None], axis=-1)[..., 0]))
    value = neutral
    for _, rest in pool:
        value = float(join(value, rest))
    assignment: dict[str, int] = {}
    for variable, others, choice in reversed(traces):
        assignment[variable] = int(choice[tuple(assignment[u] for u in others)])
    return value, {variable: assignment[variable] for variable in sizes}
