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
"""

from __future__ import annotations

from latency_tables.arch import Arch
from pipeline.search.operators import Genes, crossover, genes_of, mutate, pairs
from pipeline.search.searcher import ArchiveSearcher


class EvolutionSearch(ArchiveSearcher):
    """Evolution over whatever the evaluations call accuracy. See the module for the algorithm."""

    name = "evolution"

    @property
    def done(self) -> bool:
        """Whether every generation was told."""
        return self.generation > self.config.generations

    def ask(self) -> list[Arch]:
        """P random candidates at first, then n crossovers, m mutations and random ones."""
        if self.done:
            return []
        taken: dict[Arch, Arch] = {}
        parents = self.best(self.config.parents)
        if parents:
            self._children(taken, [e.arch for e in parents])
        else:
            self._admit(self.initial, taken, self.config.population)
        self._fill(taken, self.config.population)
        return list(taken.values())

    def _children(self, taken: dict[Arch, Arch], parents: list[Arch]) -> None:
        decisions, probability = self.space.decisions, self.config.mutation_probability
        genes = genes_of(decisions, parents)
        rng = self._rng("mutation")
        self._draw(
            lambda n: mutate(
                rng, genes[rng.integers(0, len(genes), size=n)], self.sizes, probability
            ),
            taken,
            self.config.mutation,
        )
        mixing = self._rng("crossover")

        def cross(n: int) -> Genes:
            first, second = pairs(mixing, len(genes), n)
            return crossover(mixing, genes[first], genes[second])

        if len(decisions) > 1 and len(genes) > 1:  # else a child equals its parent
            self._draw(cross, taken, self.config.crossover)
