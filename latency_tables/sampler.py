"""Exact conditional sampling: architectures drawn uniformly among those whose cost lies in a range.

The obvious way draws until one fits, which is slow in the tails: a budget of 1 % of a space costs a
hundred draws. Here the number of genomes per cost is tabulated once, and every draw then fits.

Three ways, chosen by :func:`make_sampler`: spaces of at most a million genomes are enumerated;
larger ones are counted by variable elimination (:mod:`latency_tables.sampler_elimination`), under
each choice of one decision alone where that is coupled with nearly everything
(:mod:`latency_tables.sampler_conditioned`); couplings that are too wide for a table even so are
refused unless rejection is asked for, which says ``exact = False``, because its probabilities are
estimates and a draw may fail.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latency_tables.cost_table import Array, CostTable, Genes
from latency_tables.elimination import MAX_ENTRIES
from latency_tables.errors import TableTooWideError
from latency_tables.sampler_base import CostSampler, Method
from latency_tables.sampler_conditioned import ConditionedSampler
from latency_tables.sampler_elimination import EliminationSampler

__all__ = [
    "ConditionedSampler",
    "CostSampler",
    "EliminationSampler",
    "EnumerationSampler",
    "RejectionSampler",
    "make_sampler",
]

_PROBE = 100_000


class EnumerationSampler(CostSampler):
    """Knows every genome of a small space by its cost."""

    method: Method = "enumeration"

    def __init__(self, table: CostTable, column: str) -> None:
        super().__init__(table, column)
        self._shape = tuple(len(d.choices) for d in table.decisions)
        costs = np.empty(table.n_archs)
        for start in range(0, table.n_archs, _PROBE):
            index = np.arange(start, min(start + _PROBE, table.n_archs))
            costs[index] = table.column(column, self._genes(index))
        self._order = np.argsort(costs, kind="stable")
        self._sorted = costs[self._order]

    def _genes(self, index: NDArray[np.intp]) -> Genes:
        if not self._shape:
            return np.zeros((len(index), 0), dtype=np.int64)
        return np.stack(np.unravel_index(index, self._shape), axis=1).astype(np.int64)

    def _span(self, low: float, high: float) -> tuple[int, int]:
        first = np.searchsorted(self._sorted, low, side="left")
        return int(first), int(np.searchsorted(self._sorted, high, side="right"))

    def count(self, low: float = -np.inf, high: float = np.inf) -> float:
        """Number of genomes whose cost is in [low, high]."""
        first, end = self._span(low, high)
        return float(end - first)

    def quantiles(self, levels: ArrayLike) -> Array:
        """Costs at these fractions of all genomes."""
        return _quantiles(self._sorted, levels)

    def _proposals(
        self, rng: np.random.Generator, low: float, high: float, n: int
    ) -> tuple[Genes, bool]:
        first, end = self._span(low, high)
        index = rng.integers(first, end, size=n) if end > first else np.empty(0, dtype=np.int64)
        return self._genes(self._order[index]), end > first


class RejectionSampler(CostSampler):
    """Draws until one fits: works for any table, says so, and may give up in a tail."""

    method: Method = "rejection"
    exact = False
    counts_are_exact = False

    def __init__(self, table: CostTable, column: str) -> None:
        super().__init__(table, column)
        probe = self._uniform(np.random.default_rng(0), _PROBE)
        self._sorted = np.sort(table.column(column, probe))

    def _uniform(self, rng: np.random.Generator, n: int) -> Genes:
        sizes = [len(d.choices) for d in self.table.decisions]
        return rng.integers(0, sizes, size=(n, len(sizes)))

    def count(self, low: float = -np.inf, high: float = np.inf) -> float:
        """Estimate of the number of genomes in [low, high], from 100,000 draws."""
        first = np.searchsorted(self._sorted, low, side="left")
        end = np.searchsorted(self._sorted, high, side="right")
        return float(end - first) / len(self._sorted) * self.table.n_archs

    def quantiles(self, levels: ArrayLike) -> Array:
        """Estimates of the costs at these fractions."""
        return _quantiles(self._sorted, levels)

    def _proposals(
        self, rng: np.random.Generator, low: float, high: float, n: int
    ) -> tuple[Genes, bool]:
        return self._uniform(rng, n), True


def _quantiles(ordered: Array, levels: ArrayLike) -> Array:
    """Entries of a sorted array at these fractions of its length."""
    fractions = np.asarray(levels, dtype=np.float64)
    found: Array = np.quantile(ordered, fractions, method="inverted_cdf")
    return found


def _eliminating(table: CostTable, column: str) -> CostSampler:
    try:
        return EliminationSampler(table, column)
    except TableTooWideError as error:
        try:
            return ConditionedSampler(table, column)
        except TableTooWideError:
            raise error from None


def make_sampler(table: CostTable, column: str, *, approximate: bool = False) -> CostSampler:
    """The best sampler for one column: enumeration, elimination, or (if allowed) rejection.

    Args:
        table: costs of the space.
        column: by what to choose, ``"macs"`` for example, or a latency column.
        approximate: allow rejection where no exact way fits.

    Raises:
        TableTooWideError: no exact way fits and ``approximate`` is False.

    >>> from latency_tables.arch import Decision
    >>> from latency_tables.cost_table import Column, Factor
    >>> table = CostTable(
    ...     [Decision(label="a", choices=(0, 1)), Decision(label="b", choices=(0, 1))],
    ...     [Column(name="macs", unit="MAC")],
    ...     [Factor(name=x, labels=(x,), values=np.array([[1.0], [3.0]])) for x in "ab"],
    ... )
    >>> sampler = make_sampler(table, "macs")
    >>> sampler.count(0, 4), sampler.sample_archs(np.random.default_rng(0), 6, 6, 1)
    (3.0, [Arch({'a': 1, 'b': 1})])
    """
    if table.n_archs <= MAX_ENTRIES:
        return EnumerationSampler(table, column)
    adds_up = any(c.name == column and c.reduce == "sum" for c in table.columns)
    try:
        if adds_up:
            return _eliminating(table, column)
        if column not in table.column_names():
            table.minimum(column)  # raises, naming the columns that exist
        raise TableTooWideError(table.n_archs, MAX_ENTRIES, [d.label for d in table.decisions])
    except TableTooWideError:
        if approximate:
            return RejectionSampler(table, column)
        raise
