"""What every conditional sampler of :mod:`latency_tables.sampler` offers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from latency_tables.arch import Arch
from latency_tables.cost_table import Array, CostTable, Genes
from latency_tables.errors import LimitError, SpaceError, TableTooWideError
from latency_tables.sampler_single import SingleCost

_PATIENCE = 2_000_000
_RARE = 0.05
_SINGLY = 4
"""Up to so many architectures are drawn one by one: array calls cost more than they save."""
_SINGLE_TRIES = 64
_LAST_DIGITS = 1e-9
"""Costs this near to an end of the range, relatively, are computed as the table computes them."""

Method = Literal["enumeration", "elimination", "rejection"]


class CostSampler(ABC):
    """Draws architectures by one cost of a table. Make one with :func:`make_sampler`.

    ``exact`` says whether every draw is guaranteed; ``counts_are_exact`` whether :meth:`count` is
    free of binning errors.
    """

    method: Method
    exact = True
    counts_are_exact = True

    def __init__(self, table: CostTable, column: str) -> None:
        self.table, self.column = table, column

    @abstractmethod
    def count(self, low: float = -math.inf, high: float = math.inf) -> float:
        """Number of genomes whose cost is in [low, high]."""

    @abstractmethod
    def quantiles(self, levels: ArrayLike) -> Array:
        """Costs below which these fractions (0 … 1) of all genomes lie."""

    @abstractmethod
    def _proposals(
        self, rng: np.random.Generator, low: float, high: float, n: int
    ) -> tuple[Genes, bool]:
        """About ``n`` genomes, uniform over a set that holds all of the range; and whether the
        set can hold any of it."""

    def probability(self, low: float = -math.inf, high: float = math.inf) -> float:
        """Share of all genomes whose cost is in [low, high]."""
        return self.count(low, high) / self.table.n_archs

    def sample(self, rng: np.random.Generator, low: float, high: float, n: int) -> Genes:
        """Draw ``n`` genomes, each uniform over all whose cost is in [low, high].

        Returns:
            Choice indices (n, n_decisions), repetitions possible.

        Raises:
            LimitError: no architecture has such a cost; names the range that exists.
        """
        if not low <= high:
            raise SpaceError(f"a range of costs goes from low to high, not from {low} to {high}")
        if 0 < n <= _SINGLY:
            singles = [self._one(rng, low, high) for _ in range(n)]
            if all(genes is not None for genes in singles):
                return np.array(singles, dtype=np.int64)
        found: list[Genes] = []
        n_found = n_tried = 0
        while n_found < n:
            wanted = n if not n_found else math.ceil(1.2 * (n - n_found) * n_tried / n_found)
            wanted = min(max(wanted, 32), 65_536)
            genes, possible = self._proposals(rng, low, high, wanted)
            found.append(self._fitting(genes, low, high))
            n_found, n_tried = n_found + len(found[-1]), n_tried + wanted
            if not possible or (not n_found and n_tried > _PATIENCE):
                raise self._empty(low, high)
            if n_found < _RARE * n_tried and (listed := self._listed(low, high)) is not None:
                listed = self._fitting(listed, low, high)
                if not len(listed):
                    raise self._empty(low, high)
                found, n_found = [listed[rng.integers(len(listed), size=n)]], n
        return np.concatenate(found)[:n] if found else np.empty((0, len(self.table.decisions)), int)

    def _proposal(self, rng: np.random.Generator, low: float, high: float) -> list[int] | None:
        """One of :meth:`_proposals` on plain numbers, where a sampler can do that faster."""
        return None

    def _one(self, rng: np.random.Generator, low: float, high: float) -> list[int] | None:
        """One genome whose cost is in [low, high]; None where other ways have to be tried."""
        for _ in range(_SINGLE_TRIES):
            genes = self._proposal(rng, low, high)
            if genes is None:
                return None
            cost = self._cost_of(genes)
            margin = _LAST_DIGITS * abs(cost)
            if low + margin <= cost <= high - margin:
                return genes
            near = low - margin <= cost <= high + margin
            if near and len(self._fitting(np.array([genes]), low, high)):
                return genes
        return None

    @cached_property
    def _cost_of(self) -> SingleCost:
        return SingleCost(self.table, self.column)

    def _fitting(self, genes: Genes, low: float, high: float) -> Genes:
        """Those whose exact cost is in [low, high]."""
        costs = self.table.column(self.column, genes)
        return genes[(costs >= low) & (costs <= high)]

    def _listed(self, low: float, high: float) -> Genes | None:
        """A list that holds every genome of the range, if there is one of bearable length."""
        return None

    def sample_archs(self, rng: np.random.Generator, low: float, high: float, n: int) -> list[Arch]:
        """Like :meth:`sample`, as architectures."""
        return [self.table.arch(genes) for genes in self.sample(rng, low, high, n)]

    def _empty(self, low: float, high: float) -> LimitError:
        try:
            ends = (
                f"{self.table.minimum(self.column)[0]:g} to {self.table.maximum(self.column)[0]:g}"
            )
        except TableTooWideError:
            ends = "unknown"
        return LimitError(
            f"no architecture with {self.column} between {low:g} and {high:g} was found; the space "
            f"reaches from {ends}",
            hint="hilnas space profile",
        )
