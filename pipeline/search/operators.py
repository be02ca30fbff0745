"""Random genomes, uniform crossover and per-gene mutation.

Genomes are rows of choice indices (N, n_decisions), so the operators know nothing of a space but
the number of choices per decision, and whatever they give is inside it. Guo et al., "Single Path
One-Shot Neural Architecture Search with Uniform Sampling", 2020, section 3.4.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from latency_tables.arch import Arch, Decision

Genes = NDArray[np.int64]


def sizes_of(decisions: tuple[Decision, ...]) -> Genes:
    """Number of choices per decision, (n_decisions,)."""
    return np.array([len(d.choices) for d in decisions], dtype=np.int64)


def random_genes(rng: np.random.Generator, sizes: Genes, n: int) -> Genes:
    """n genomes, every genome equally likely: (n, n_decisions)."""
    return rng.integers(0, sizes, size=(n, len(sizes)), dtype=np.int64)


def all_genes(sizes: Genes) -> Genes:
    """Every genome of a (small) space, in lexicographic order: (product of sizes, n_decisions)."""
    weights = np.append(np.cumprod(sizes[::-1])[::-1][1:], 1)  # place values of the genes
    genes: Genes = np.arange(np.prod(sizes), dtype=np.int64)[:, None] // weights % sizes
    return genes


def crossover(rng: np.random.Generator, mothers: Genes, fathers: Genes) -> Genes:
    """Take every gene from one of the two parents, each with probability 1/2: (N, n) → (N, n)."""
    return np.where(rng.random(mothers.shape) < 0.5, mothers, fathers)


def mutate(
    rng: np.random.Generator,
    genes: Genes,
    sizes: Genes,
    probability: float | NDArray[np.float64],
) -> Genes:
    """Draw each gene anew with ``probability``, uniformly over its choices: (N, n) → (N, n).

    ``probability`` is that of all genes, or one per gene (n,). As in the paper's search, a redrawn
    gene may come out as it was.
    """
    redrawn = random_genes(rng, sizes, len(genes))
    return np.where(rng.random(genes.shape) < probability, redrawn, genes)


def pairs(rng: np.random.Generator, n_parents: int, n: int) -> tuple[Genes, Genes]:
    """n ordered pairs of different parents, as two index arrays (n,); equal where there is one."""
    first = rng.integers(0, n_parents, size=n, dtype=np.int64)
    if n_parents == 1:
        return first, first
    step = rng.integers(1, n_parents, size=n, dtype=np.int64)
    return first, (first + step) % n_parents


def genes_of(decisions: tuple[Decision, ...], archs: Sequence[Arch]) -> Genes:
    """Architectures as genomes (N, n_decisions)."""
    rows = [arch.genes(decisions) for arch in archs]
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(decisions))


def archs_of(decisions: tuple[Decision, ...], genes: Genes) -> list[Arch]:
    """Genomes (N, n_decisions) as architectures."""
    return [
        Arch({d.label: d.choices[g] for d, g in zip(decisions, row, strict=True)})
        for row in genes.tolist()
    ]
