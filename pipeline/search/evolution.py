"""SPOS's evolutionary search: crossover and mutation of the best subnets under hard limits.

Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling", 2020,
Algorithm 1. Population P, parents k, children per generation n (crossover) + m (mutation),
T generations after the first.

Deviations, all of which the paper's text allows and its public code misses:

* the last generation is evaluated *and* selectable;
* a candidate is marked as seen when it was evaluated, not when it was drawn, so a draw that
  breaks a limit costs nothing; sameness is that of the canonical form;
* parents are the best of everything evaluated so far, ties go to the earlier candidate;
* parents of a crossover differ where there are two;
* when draws run out the population is filled at random, then by a sampler that keeps the limits by
  construction, then by listing what is left (small spaces) or by breeding towards the limits; a
  search that ran out of feasible subnets ends early.

AutoFormer's search (Chen et al., "AutoFormer: Searching Transformers for Visual Recognition", 2021,
section 3.3; the numbers are those of its public code) is this one with other chances: depth and
embedding dimension are drawn anew with 0.4, all other genes with 0.2
(``mutation_probabilities``, ``mutation_probability``). There, genomes are as long as their network
is deep, and parents of different depths make children that no network fits. Here a genome has
the genes of all blocks whatever its depth; those of absent blocks lie dormant, and before a child
can wake them they are drawn anew wherever single chances are given, as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latency_tables.arch import Arch, Decision
from latency_tables.errors import UsageError
from pipeline.search.breeding import BreedingSearch
from pipeline.search.evaluation import Evaluation
from pipeline.search.evaluator import SearchSpace
from pipeline.search.operators import Genes, crossover, genes_of, mutate, pairs, random_genes


class EvolutionSearch(BreedingSearch):
    """Evolution over whatever the evaluations call accuracy. See the module for the algorithm."""

    name = "evolution"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._chances = mutation_chances(
            self.space.decisions,
            self.config.mutation_probability,
            self.config.mutation_probabilities or {},
        )

    def ordered(self, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
        """By :attr:`Evaluation.standing`, then first come."""
        return sorted(evaluations, key=lambda e: e.standing)

    def _children(self, taken: dict[Arch, Arch], n: int) -> None:
        decisions, config = self.space.decisions, self.config
        parents = [e.arch for e in self.best(config.parents)]
        genes = genes_of(decisions, parents)
        asleep = np.zeros(genes.shape, dtype=np.bool_)
        if config.mutation_probabilities:
            asleep = dormant(self.space, parents)
        times = n // config.population
        rng = self._rng("mutation")

        def vary(k: int) -> Genes:
            chosen = rng.integers(0, len(genes), size=k)
            fresh = genes[chosen]
            if asleep.any():
                fresh = np.where(asleep[chosen], random_genes(rng, self.sizes, k), fresh)
            return mutate(rng, fresh, self.sizes, self._chances)

        self._draw(vary, taken, config.mutation * times)
        mixing = self._rng("crossover")

        def cross(k: int) -> Genes:
            first, second = pairs(mixing, len(genes), k)
            return crossover(mixing, genes[first], genes[second])

        if len(decisions) > 1 and len(genes) > 1:  # else a child equals its parent
            self._draw(cross, taken, config.crossover * times)


def mutation_chances(
    decisions: Sequence[Decision], probability: float, single: Mapping[str, float]
) -> float | NDArray[np.float64]:
    """Chance of every gene to be drawn anew: one for all, or one per decision (n_decisions,).

    ``single`` maps labels or patterns of labels to chances; the first that fits counts.

    Raises:
        UsageError: a pattern fits no decision; names those that there are.

    >>> decisions = [Decision(label=label, choices=(1, 2)) for label in ("depth", "k1", "k2")]
    >>> mutation_chances(decisions, 0.2, {"depth": 0.4}).tolist()
    [0.4, 0.2, 0.2]
    """
    for pattern in single:
        if not any(fnmatchcase(d.label, pattern) for d in decisions):
            raise UsageError(
                f"search.mutation_probabilities: no decision of this space is called {pattern!r}; "
                f"there are {', '.join(d.label for d in decisions)}"
            )
    if not single:
        return probability
    return np.array(
        [
            next((p for pattern, p in single.items() if fnmatchcase(d.label, pattern)), probability)
            for d in decisions
        ]
    )


def dormant(space: SearchSpace, archs: Sequence[Arch]) -> NDArray[np.bool_]:
    """Which genes of N architectures change nothing while the others stay: (N, n_decisions).

    A gene is dormant if the canonical form is the same with every other choice.
    """
    found = np.zeros((len(archs), len(space.decisions)), dtype=np.bool_)
    for i, arch in enumerate(archs):
        canonical = space.canonical(arch)
        for j, decision in enumerate(space.decisions):
            found[i, j] = len(decision.choices) > 1 and all(
                space.canonical(arch.replace(**{decision.label: choice})) == canonical
                for choice in decision.choices
            )
    return found
