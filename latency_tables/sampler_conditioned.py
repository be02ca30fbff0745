"""Exact sampling where one decision is coupled with nearly everything, such as the resolution.

Every choice of that decision gets a sampler of its own over the rest of the space, whose tables
are smaller by the number of choices. Counts add up; a draw first takes the choice with the weight
of what the range holds under it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from itertools import accumulate

import numpy as np
from numpy.typing import ArrayLike

from latency_tables.cost_table import Array, CostTable, Genes
from latency_tables.elimination import MAX_ENTRIES
from latency_tables.sampler_base import CostSampler, Method
from latency_tables.sampler_elimination import EliminationSampler


class ConditionedSampler(CostSampler):
    """One :class:`EliminationSampler` for every choice of a decision.

    Args:
        label: the decision; the one that most factors look at where not given.

    Raises:
        TableTooWideError: a coupling is too wide even so.
    """

    method: Method = "elimination"

    def __init__(
        self,
        table: CostTable,
        column: str,
        label: str | None = None,
        *,
        max_entries: int = MAX_ENTRIES,
    ) -> None:
        super().__init__(table, column)
        self.label = label or most_coupled(table)
        labels = [d.label for d in table.decisions]
        self._axis = labels.index(self.label)
        self._parts = [
            EliminationSampler(table.given(self.label, choice), column, max_entries=max_entries)
            for choice in table.decisions[self._axis].choices
        ]
        self.counts_are_exact = all(part.counts_are_exact for part in self._parts)
        costs, counts = zip(*(part.distribution() for part in self._parts), strict=True)
        order = np.argsort(np.concatenate(costs), kind="stable")
        self._costs = np.concatenate(costs)[order]
        self._cumulative = np.cumsum(np.concatenate(counts)[order])

    def count(self, low: float = -math.inf, high: float = math.inf) -> float:
        """Number of genomes whose cost is in [low, high]."""
        return sum(part.count(low, high) for part in self._parts)

    def quantiles(self, levels: ArrayLike) -> Array:
        """Costs at these fractions of all genomes (of their bins)."""
        targets = np.asarray(levels, dtype=np.float64) * self._cumulative[-1] * (1 - 1e-12)
        found = np.searchsorted(self._cumulative, np.maximum(targets, 0.5), side="left")
        quantiles: Array = self._costs[np.minimum(found, len(self._costs) - 1)]
        return quantiles

    def _proposals(
        self, rng: np.random.Generator, low: float, high: float, n: int
    ) -> tuple[Genes, bool]:
        weights = np.array([part.weight(low, high) for part in self._parts])
        if not weights.any():
            return np.empty((0, len(self.table.decisions)), dtype=np.int64), False
        drawn = [
            self._placed(part._proposals(rng, low, high, int(share))[0], choice)
            for choice, (part, share) in enumerate(
                zip(self._parts, rng.multinomial(n, weights / weights.sum()), strict=True)
            )
        ]
        # the caller takes the first ones: choices must not come in blocks
        return rng.permutation(np.concatenate(drawn)), True

    def _proposal(self, rng: np.random.Generator, low: float, high: float) -> list[int] | None:
        cumulative = list(accumulate(part.weight(low, high) for part in self._parts))
        if not cumulative[-1]:
            return None
        choice = bisect_right(cumulative, rng.random() * cumulative[-1])
        genes = self._parts[choice]._proposal(rng, low, high)
        if genes is not None:
            genes[self._axis] = choice
        return genes

    def _listed(self, low: float, high: float) -> Genes | None:
        listed = [part._listed(low, high) for part in self._parts]
        found = [self._placed(g, i) for i, g in enumerate(listed) if g is not None]
        return np.concatenate(found) if len(found) == len(listed) else None

    def _placed(self, genes: Genes, choice: int) -> Genes:
        """Genomes of a part, where the decision has one choice, as genomes of the whole space."""
        genes = genes.copy()
        genes[:, self._axis] = choice
        return genes


def most_coupled(table: CostTable) -> str:
    """The decision that most factors look at; of several the one with the most choices."""
    seen = Counter(label for factor in table.factors for label in factor.labels)
    decision = max(table.decisions, key=lambda d: (seen[d.label], len(d.choices)))
    return decision.label
