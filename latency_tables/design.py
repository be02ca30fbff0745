"""Which networks to measure next, so that a latency model learns most from few of them.

The cheapest and the dearest network come first. Then networks are chosen one after the other from a
pool of candidates, each time the one that brings a linear model the largest gain. Half of the pool
is drawn evenly over the cost range by the exact sampler, half is typical of the space (uniform over
genomes): evenly drawn networks alone hardly show what is common in the middle of a space, typical
ones alone not its ends. A model supports no choice that it never saw, so the gain is multiplied by
one more than the number of overdue choices that a network shows: those of a decision with k choices
that ``PATIENCE`` · k networks did not have.

    D   gain(x) = xᵀ A⁻¹ x                             det A grows by the factor 1 + xᵀ A⁻¹ x
    V   gain(x) = mean_r (rᵀ A⁻¹ x)² / (1 + xᵀ A⁻¹ x)    by so much the mean variance shrinks

=====  ============================================================================
x      columns of a network: whole-network costs, standardised over the cost range,
       and one column per choice times ``CHOICE_SCALE``, as the latency model has them
A      λ·I + Σ x xᵀ, the regularised information matrix of the networks chosen;
       its inverse follows by rank-one updates
r      a pool like the one that is chosen from
λ      ``RIDGE``: variance of the noise relative to what the columns explain
=====  ============================================================================

D is the sequential D-optimal design (Wynn, 1970, *The sequential generation of D-optimum
experimental designs*); V the sequential form of the criterion that Fedorov, 1972, calls
Q-optimality and Cohn, 1996, (ALC) rediscovered for learning.

Everything follows from the seed, the networks known before and their number, so a design is nested:
the first n networks of a design of n + m are the design of n, and a design that goes on after its
own first n gives the other m.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from itertools import islice, pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from latency_tables.arch import Arch, Choice
from latency_tables.errors import LimitError, TableTooWideError
from latency_tables.predictor.features import CHOICES, PHYSICS, Features
from latency_tables.sampler_base import CostSampler

Array = NDArray[np.float64]
Genes = NDArray[np.int64]
Criterion = Literal["D", "V"]

CHOICE_SCALE = 0.1
"""Scale of the columns of choices beside standardised costs; the model picks 0.03 to 0.3."""

RIDGE = 0.1
"""Noise relative to what the columns explain."""

N_SLICES = 16
"""Equal parts of the cost range that the even half of a pool is drawn from."""

N_CANDIDATES = 512
"""Networks in a pool, and those that columns are standardised over."""

REFRESH = 32
"""Networks that are chosen from one pool before another one is drawn."""

PATIENCE = 4
"""Networks per choice of a decision until a choice that none of them had is overdue."""

_SMALL_SPACE = 4096


class Design:
    """Goes on choosing networks for a table.

    Args:
        sampler: draws candidates by their cost; its table has the columns of the model.
        identify: names a network up to isomorphism, as ``net_id`` does: equal ones are chosen once.
        seed: everything random follows from it.
        known: networks that are measured already.
        avoid: names of networks that must not be chosen, such as those that cannot be measured.
        criterion: what counts as gain, see above.

    >>> from latency_tables.arch import Decision
    >>> from latency_tables.cost_table import Column, CostTable, Factor
    >>> from latency_tables.sampler import make_sampler
    >>> table = CostTable(
    ...     [Decision(label=x, choices=(0, 1, 2)) for x in "abcd"],
    ...     [Column(name="macs", unit="MAC")],
    ...     [Factor(name=x, labels=(x,), values=np.array([[1.0], [3.0], [4.0]])) for x in "abcd"],
    ... )
    >>> chosen = Design(make_sampler(table, "macs"), identify=lambda arch: arch).take(8)
    >>> [table.cost(arch, "macs") for arch in chosen[:2]], len(set(chosen))
    ([4.0, 16.0], 8)
    """

    def __init__(
        self,
        sampler: CostSampler,
        *,
        identify: Callable[[Arch], Hashable],
        seed: int = 0,
        known: Iterable[Mapping[str, Choice]] = (),
        avoid: Iterable[Hashable] = (),
        criterion: Criterion = "V",
    ) -> None:
        self.sampler, self.table, self.identify, self.seed = sampler, sampler.table, identify, seed
        self.criterion = criterion
        self._ends = self._extremes()
        self._features = Features(self.table)
        self._columns = np.flatnonzero(np.isin(self._features.group, (PHYSICS, CHOICES)))
        self._n = 0
        self._pool: tuple[int, Genes] = (-1, self._drawn(-1))
        reference = self._features.matrix(self._pool[1])[:, self._columns]
        self._centre, self._scale = reference.mean(axis=0), self._scales(reference)
        spread = self._matrix(self._pool[1])
        self._moment = spread.T @ spread / len(spread)
        self._inverse = np.eye(len(self._columns)) / RIDGE
        self._seen = [np.zeros(len(d.choices), dtype=np.bool_) for d in self.table.decisions]
        self._taken = set(avoid)
        archs = [Arch(dict(arch)) for arch in known]
        for arch, genes in zip(archs, self.table.genes(archs), strict=True):
            self._learn(arch, genes)

    def take(self, n: int) -> list[Arch]:
        """The next ``n`` networks; fewer where the space holds no more."""
        return list(islice(self, n))

    def __iter__(self) -> Iterator[Arch]:
        while (arch := self._choose()) is not None:
            yield arch

    def variance(self, genes: Genes) -> Array:
        """How little is known of networks (N, n_decisions) → xᵀ A⁻¹ x (N,), without a unit."""
        x = self._matrix(genes)
        found: Array = np.einsum("np,pq,nq->n", x, self._inverse, x)
        return found

    def gain(self, genes: Genes) -> Array:
        """What measuring networks (N, n_decisions) would bring, by the criterion: (N,)."""
        variance = self.variance(genes)
        if self.criterion == "D":
            return variance
        along = self._matrix(genes) @ self._inverse
        gain: Array = np.einsum("np,pq,nq->n", along, self._moment, along) / (1.0 + variance)
        return gain

    def overdue(self, genes: Genes) -> NDArray[np.int64]:
        """How many choices each network (N, n_decisions) has that should have been seen: (N,)."""
        found = np.zeros(len(genes), dtype=np.int64)
        for i, seen in enumerate(self._seen):
            if self._n >= PATIENCE * len(seen):
                found += ~seen[genes[:, i]]
        return found

    # --- inside

    def _worth(self, genes: Genes) -> Array:
        """Gain, raised by every overdue choice."""
        worth: Array = self.gain(genes) * (1.0 + self.overdue(genes))
        return worth

    def _choose(self) -> Arch | None:
        """The next network, learnt already; None where there is no further one."""
        for candidates in (self._end, self._candidates, self._anything):
            genes = candidates()
            for index in np.argsort(-self._worth(genes), kind="stable"):
                arch = self.table.arch(genes[index])
                if self.identify(arch) not in self._taken:
                    self._learn(arch, genes[index])
                    return arch
        return None

    def _learn(self, arch: Arch, genes: Genes) -> None:
        """Count a network as measured: rank-one update of the inverse (Sherman and Morrison)."""
        name = self.identify(arch)
        if name in self._taken:
            return
        self._taken.add(name)
        self._n += 1
        for mask, gene in zip(self._seen, genes, strict=True):
            mask[gene] = True
        x = self._matrix(genes[None])[0]
        along = self._inverse @ x
        self._inverse -= np.outer(along, along) / (1.0 + x @ along)

    def _matrix(self, genes: Genes) -> Array:
        columns = self._features.matrix(genes)[:, self._columns]
        scaled: Array = (columns - self._centre) * self._scale
        return scaled

    def _scales(self, reference: Array) -> Array:
        """What standardises costs and scales choices; a cost that never differs counts nothing."""
        spread = reference.std(axis=0)
        known = spread > 1e-12 * np.abs(reference).max(axis=0)
        scales = np.where(known, 1.0 / np.where(known, spread, 1.0), 0.0)
        return np.where(self._features.group[self._columns] == PHYSICS, scales, CHOICE_SCALE)

    def _end(self) -> Genes:
        """The cheapest, then the dearest network, where they are not known yet."""
        for _, arch in self._ends:
            if self.identify(arch) not in self._taken:
                return self.table.genes([arch])
        return self.table.genes([])

    def _candidates(self) -> Genes:
        """The pool for the next network."""
        number = self._n // REFRESH
        if self._pool[0] != number:
            self._pool = number, self._drawn(number)
        return self._pool[1]

    def _drawn(self, number: int) -> Genes:
        """A pool: the ends, networks spread evenly over the cost range, and typical ones."""
        rng = np.random.default_rng([self.seed, number + 1])
        (lowest, _), (highest, _) = self._ends
        n_each = N_CANDIDATES // 2 // N_SLICES
        drawn = [self.table.genes(arch for _, arch in self._ends)]
        for low, high in pairwise(np.linspace(lowest, highest, N_SLICES + 1).tolist()):
            try:
                if self.sampler.count(low, high) > 0:
                    drawn.append(self.sampler.sample(rng, low, high, n_each))
            except LimitError:  # counts of large spaces are estimates: nothing is there
                continue
        return np.concatenate([*drawn, self._random(rng, N_CANDIDATES // 2)])

    def _anything(self) -> Genes:
        """All networks of a small space, else random ones: for when a pool is used up."""
        if self.table.n_archs <= _SMALL_SPACE:
            index = np.unravel_index(np.arange(self.table.n_archs), self._sizes())
            return np.stack(index, axis=1).astype(np.int64)
        return self._random(np.random.default_rng([self.seed, self._n, 1]), _SMALL_SPACE)

    def _random(self, rng: np.random.Generator, n: int) -> Genes:
        sizes = self._sizes()
        return rng.integers(0, sizes, size=(n, len(sizes)))

    def _sizes(self) -> list[int]:
        return [len(d.choices) for d in self.table.decisions]

    def _extremes(self) -> tuple[tuple[float, Arch], tuple[float, Arch]]:
        """Cheapest and dearest network; of many random ones where no exact answer fits."""
        column = self.sampler.column
        try:
            return self.table.minimum(column), self.table.maximum(column)
        except TableTooWideError:
            genes = self._random(np.random.default_rng([self.seed]), _SMALL_SPACE)
            costs = self.table.column(column, genes)
            first, last = int(costs.argmin()), int(costs.argmax())
            return (
                (float(costs[first]), self.table.arch(genes[first])),
                (float(costs[last]), self.table.arch(genes[last])),
            )
