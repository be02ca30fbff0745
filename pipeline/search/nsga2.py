"""NSGA-II: a front of subnets under several objectives.

Deb et al., "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", 2002: fast
non-dominated sorting (III-A), crowding distance (III-B1), binary tournament by (rank, -crowding)
(III-B2), elitism over parents and children (III-C), constrained domination (VI-A). Sorting is
moocore's; uniform crossover and mutation are those of :mod:`.operators`.

Deviations:

* genomes are choices, so crossover is uniform per gene, and each gene is drawn anew with
  probability max(``mutation_probability``, 1 / genes);
* survivors are the best of *everything* evaluated, not of the last parents and children: the same
  for one objective, and for several it keeps what crowding dropped in a generation that had too
  many good ones. They follow from the archive alone, so a resumed search and one whose
  latencies were revised need nothing else;
* a canonical form is asked once; candidates that break a limit are not asked at all, so constrained
  domination decides about those that turned out to break one after they were told;
* what was given up before it saw all images (successive halving) is behind what was not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import moocore
import numpy as np
from numpy.typing import NDArray

from latency_tables.arch import Arch
from pipeline.search.breeding import BreedingSearch
from pipeline.search.evaluation import Evaluation
from pipeline.search.objectives import Objectives
from pipeline.search.operators import Genes, crossover, genes_of, mutate, pairs

Array = NDArray[np.float64]
Integers = NDArray[np.int64]


class NSGA2(BreedingSearch):
    """``population`` survivors have ``population`` children per generation."""

    name = "nsga2"

    def __init__(self, *args: Any, objectives: Objectives, **options: Any) -> None:
        super().__init__(*args, **options)
        self.objectives = objectives

    def ordered(self, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
        """By (constrained rank, -crowding), then first come."""
        return self._first(evaluations, len(evaluations))

    def best(self, n: int) -> list[Evaluation]:
        """The n best so far; crowding is worked out for the fronts that they are on only."""
        return self._first(self._current(), n)

    def _first(self, evaluations: Sequence[Evaluation], n: int) -> list[Evaluation]:
        ranks, crowded = standings(evaluations, self.objectives, n)
        return [evaluations[i] for i in np.lexsort((-crowded, ranks))[:n].tolist()]

    def _children(self, taken: dict[Arch, Arch], n: int) -> None:
        survivors = self.best(self.config.population)  # the first wins a tournament
        genes = genes_of(self.space.decisions, [e.arch for e in survivors])
        rate = max(self.config.mutation_probability, 1.0 / len(self.sizes))
        rng = self._rng("children")

        def winners(k: int) -> Integers:
            return np.minimum(*pairs(rng, len(survivors), k))

        def children(k: int) -> Genes:
            mixed = crossover(rng, genes[winners(k)], genes[winners(k)])
            return mutate(rng, mixed, self.sizes, rate)

        self._draw(children, taken, n)


def standings(
    evaluations: Sequence[Evaluation], objectives: Objectives, n: int | None = None
) -> tuple[Integers, Array]:
    """Constrained rank and crowding distance within the rank, (N,) each.

    Of two candidates the one that breaks limits less comes first whatever its objectives are.
    ``n``: crowding is only wanted of the fronts that hold the n best, the others have 0.
    """
    rows = objectives.rows(evaluations)
    crowded = np.zeros(len(rows))
    if not len(rows):
        return np.zeros(0, dtype=np.int64), crowded
    worse = np.array([e.standing[:-1] for e in evaluations], dtype=np.float64)
    _, tiers = np.unique(worse, axis=0, return_inverse=True)
    ranks = constrained_ranks(rows, tiers.reshape(-1))
    sizes = np.bincount(ranks)
    before = np.cumsum(sizes) - sizes
    for rank in np.flatnonzero(before < (len(rows) if n is None else n)):
        own = ranks == rank
        crowded[own] = crowding(rows[own])
    return ranks, crowded


def constrained_ranks(rows: Array, tiers: Integers) -> Integers:
    """Front of each of N candidates, 0 for the best, from rows (N, m) to minimise and tiers (N,).

    Every candidate of a lower tier dominates all of a higher one.

    >>> rows = np.array([[1.0, 5], [2, 3], [4, 1], [3, 4], [5, 5]])
    >>> constrained_ranks(rows, np.array([0, 0, 0, 0, 0])).tolist()
    [0, 0, 0, 1, 2]
    >>> constrained_ranks(rows, np.array([1, 0, 0, 0, 0])).tolist()
    [3, 0, 0, 1, 2]
    """
    ranks = np.empty(len(rows), dtype=np.int64)
    fronts = 0
    for tier in np.unique(tiers):
        own = tiers == tier
        ranks[own] = fronts + np.asarray(moocore.pareto_rank(rows[own]), dtype=np.int64)
        fronts = int(ranks[own].max()) + 1
    return ranks


def crowding(rows: Array) -> Array:
    """Crowding distance (N,) of one front's rows (N, m).

    The sum over objectives of the distance between a row's two neighbours, as a share of the
    front's range; infinite at the ends. Equal values are ordered by the other objectives and of
    equal rows the first has the distance and the others have 0, so that nothing depends on the
    order of candidates and copies do not shelter each other.

    >>> crowding(np.array([[1.0, 5], [2, 3], [4, 1]])).tolist()
    [inf, 2.0, inf]
    >>> crowding(np.array([[1.0, 5], [2, 3], [2, 3], [4, 1]])).tolist()
    [inf, 2.0, 0.0, inf]
    """
    different, first = np.unique(rows, axis=0, return_index=True)
    distance = np.zeros(len(different))
    for k in range(rows.shape[1]):
        others = np.delete(different, k, axis=1).T
        at = np.lexsort((*others[::-1], different[:, k]))
        values = different[at, k]
        known = values[np.isfinite(values)]  # latencies of what broke a limit on costs are not
        span = float(np.ptp(known)) if len(known) else 0.0
        distance[at[[0, -1]]] = np.inf
        if span > 0:
            ends = float(known[-1])
            gaps = np.minimum(values[2:], ends) - np.minimum(values[:-2], ends)
            distance[at[1:-1]] += gaps / span
    found = np.zeros(len(rows))
    found[first] = distance
    return found
