"""Repair: the architecture of highest generator probability whose cost lies inside a window.

A generator aims at a cost; what it proposes may miss, and a limit allows no miss. A proposal that
keeps everything stays as it is. For any other one, among all architectures with costs in
[low, high] the one that the generator holds to be the most probable is looked for, by a beam over
the generator's own steps:

* after every decision, a prefix is dropped when no completion of it can cost between low and high;
  what the open decisions can add is known exactly (:class:`~latency_tables.cost_to_go.CostToGo`);
* the other prefixes are sorted into bins by the least that a completion costs, and the most
  probable ones of every bin are kept. A plain beam would hold near-copies of one proposal and could
  only mend its cost with the last decisions; bins keep cheaper and dearer beginnings alive. With
  one bin per cost this is the Viterbi algorithm over (decision, cost), exact for a generator
  without memory;
* decisions that mean nothing (of blocks beyond the depth) take their canonical choice and cost no
  probability. Whether one does is decided by the decisions before it, as in every space here.

What is left is held against the window, and all other limits, by exact costs: a result never breaks
one. Where the beam ends empty, architectures drawn by the exact sampler are ranked by probability
instead. ShiftNAS does not say what is done about misses, so all of this is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latency_tables.arch import Arch
from latency_tables.cost_table import CostTable, Genes
from latency_tables.cost_to_go import CostToGo
from latency_tables.errors import LimitError, SpaceError, TableTooWideError
from latency_tables.sampler import CostSampler, make_sampler
from pipeline.generator.activity import Canonical, active_decisions
from pipeline.generator.generator import ArchitectureGenerator

Floats = NDArray[np.float64]
Accept = Callable[[Genes], NDArray[np.bool_]]
"""Which of N genomes (N, n_decisions) keep what no cost table says: (N,)."""

How = Literal["proposal", "beam", "draws"]

N_BINS = 32
PER_BIN = 4
N_DRAWS = 256
"""Architectures that the exact sampler draws where the beam ends empty."""

_SLACK = 1e-9
"""Sums of costs in another order differ in the last digits; pruning must not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Costs in [low, high], both inclusive, of a column that adds up."""

    column: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise SpaceError(f"a window goes from low to high, not from {self.low} to {self.high}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """An architecture inside a window. ``cost`` is in the unit of the window.

    ``arch`` is canonical; ``hamming`` counts its decisions that differ from the proposal's.
    ``log_probability`` is the generator's, in nats, of the decisions that mean something.
    """

    arch: Arch
    cost: float
    log_probability: float
    hamming: int
    how: How


class Repairer:
    """Finds the most probable architectures of a window.

    Args:
        space: says which decisions mean something.
        generator: of that space.
        table: costs; may have a latency column.
        n_bins: bins of the beam by cost.
        per_bin: prefixes kept in each.

    >>> from pipeline.spaces import load_space
    >>> space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    >>> _ = torch.manual_seed(0)
    >>> generator = ArchitectureGenerator(space.decisions, n_levels=2)
    >>> repairer = Repairer(space, generator, space.cost_table())
    >>> window = Window(column="macs", low=0.98e6, high=1.0e6)
    >>> found = repairer.repair(torch.tensor([1.0, 0.0]), window)[0]
    >>> window.low <= found.cost <= window.high, found.how
    (True, 'beam')
    """

    def __init__(
        self,
        space: Canonical,
        generator: ArchitectureGenerator,
        table: CostTable,
        *,
        n_bins: int = N_BINS,
        per_bin: int = PER_BIN,
    ) -> None:
        self.space, self.generator, self.table = space, generator, table
        self.n_bins, self.per_bin = n_bins, per_bin
        self._to_go: dict[str, CostToGo | None] = {}
        self._samplers: dict[str, CostSampler] = {}

    def repair(
        self,
        level: Tensor,
        window: Window,
        *,
        proposal: Arch | None = None,
        at_most: Mapping[str, float] | None = None,
        accept: Accept | None = None,
        n: int = 1,
        seed: int = 0,
    ) -> list[Repaired]:
        """Up to ``n`` different networks of the window: the proposal if it is one, then the most
        probable ones.

        Args:
            level: what the generator is asked for (K,).
            window: the costs that are allowed.
            proposal: what Hamming distances are counted from; by default ``argmax`` of the level.
            at_most: further limits by column, inclusive.
            accept: whatever else a network must keep.
            n: how many.
            seed: of the sampler's draws.

        Raises:
            LimitError: nothing was found; tells an empty window from one that other limits empty.
        """
        limits = dict(at_most or {})
        if proposal is None:
            proposal = self.generator.argmax(level)
        proposed = self.table.genes([self.space.canonical(proposal)])
        found: list[Repaired] = []
        if len(self._kept(proposed, window, limits, accept)):
            found = self._ranked(proposed, level, window, proposal, "proposal")
            if n == 1:
                return found
        how: How = "beam"
        genes, _ = self._beam(level, window, limits)
        genes = self._kept(genes, window, limits, accept)
        if not len(genes) and not found:
            how, drawn = "draws", self._drawn(window, seed)
            genes = self._kept(drawn, window, limits, accept)
            if not len(genes):
                raise LimitError(
                    f"none of {len(drawn)} architectures with {window.column} between "
                    f"{window.low:,.6g} and {window.high:,.6g} keeps the other limits"
                )
        known = {one.arch for one in found}
        ranked = self._ranked(genes, level, window, proposal, how)
        return [*found, *(one for one in ranked if one.arch not in known)][:n]

    # -- the beam --------------------------------------------------------------------------------

    def _beam(
        self, level: Tensor, window: Window, limits: Mapping[str, float]
    ) -> tuple[Genes, Floats]:
        """Genomes (N, n_decisions) that stayed inside, and their log-probabilities (N,); none
        where bounds cannot be computed."""
        bounded = self._bounded(window, limits)
        decisions = self.table.decisions
        if bounded is None:
            return np.empty((0, len(decisions)), dtype=np.int64), np.empty(0)
        walk = _Walk(self.generator, level)
        genes = np.zeros((1, len(decisions)), dtype=np.int64)
        log_p: Floats = np.zeros(1)
        spent = [np.full(1, costs.base) for costs, _, _ in bounded]
        for step, decision in enumerate(decisions):
            n = len(decision.choices)
            logits = walk.log_probabilities(step)  # (N, n)
            genes, parents = np.repeat(genes, n, axis=0), np.repeat(np.arange(len(genes)), n)
            genes[:, step] = np.tile(np.arange(n), len(genes) // n)
            log_p = log_p[parents] + logits.reshape(-1)
            spent = [total[parents] for total in spent]
            idle, repeats = self._idle(step, genes, n)
            log_p -= np.where(idle, logits.reshape(-1), 0.0)
            fits = ~repeats
            for i, (costs, low, high) in enumerate(bounded):
                spent[i] = spent[i] + costs.settled(step, genes)
                least, most = costs.following(step, genes)
                slack = _SLACK * (np.abs(spent[i]) + 1.0)
                fits &= (spent[i] + least <= high + slack) & (spent[i] + most >= low - slack)
                if i == 0:
                    floor = spent[0] + least
            kept = np.flatnonzero(fits)
            kept = kept[self._best(log_p[kept], floor[kept])]
            genes, log_p, parents = genes[kept], log_p[kept], parents[kept]
            spent = [total[kept] for total in spent]
            if not len(genes):
                break
            walk.take(step, parents, genes[:, step])
        return genes, log_p

    def _bounded(
        self, window: Window, limits: Mapping[str, float]
    ) -> list[tuple[CostToGo, float, float]] | None:
        """Bounds by column, the window's first; None where the window's cannot be computed."""
        wanted = [(window.column, window.low, window.high)]
        wanted += [(name, -np.inf, bound) for name, bound in limits.items()]
        found = [(self._costs(name), low, high) for name, low, high in wanted]
        if found[0][0] is None:
            return None
        return [(costs, low, high) for costs, low, high in found if costs is not None]

    def _costs(self, column: str) -> CostToGo | None:
        """None for what does not add up, such as a peak, or couples too widely."""
        if column not in self._to_go:
            try:
                self._to_go[column] = CostToGo(self.table, column)
            except (SpaceError, TableTooWideError):
                self._to_go[column] = None
        return self._to_go[column]

    def _idle(self, step: int, genes: Genes, n: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Rows whose decision means nothing; those among them that only repeat the canonical one.

        Rows come in groups of ``n``, one per choice, whose later decisions are the first ones.
        """
        decision = self.table.decisions[step]
        last = decision.choices[-1]
        idle = np.zeros(len(genes), dtype=bool)
        repeats = np.zeros(len(genes), dtype=bool)
        for start in range(0, len(genes), n):
            arch = self.table.arch(genes[start + n - 1])
            canonical = self.space.canonical(arch)[decision.label]
            if canonical != last:
                group = slice(start, start + n)
                idle[group] = True
                repeats[group] = np.arange(n) != decision.index(canonical)
        return idle, repeats

    def _best(self, log_p: Floats, floor: Floats) -> NDArray[np.intp]:
        """Indices of the most probable rows of every bin of least attainable cost."""
        if len(log_p) <= self.per_bin:
            return np.arange(len(log_p))
        low, reach = floor.min(), max(floor.max() - floor.min(), np.finfo(float).tiny)
        bins = np.minimum((self.n_bins * ((floor - low) / reach)).astype(np.int64), self.n_bins - 1)
        order = np.lexsort((-log_p, bins))
        first = np.searchsorted(bins[order], bins[order], side="left")
        best: NDArray[np.intp] = order[np.arange(len(order)) - first < self.per_bin]
        return best

    # -- drawing and ranking ---------------------------------------------------------------------

    def _drawn(self, window: Window, seed: int) -> Genes:
        """Architectures of the window by the exact sampler. Raises LimitError for an empty one."""
        sampler = self.sampler(window.column)
        rng = np.random.default_rng(seed)
        genes = sampler.sample(rng, window.low, window.high, N_DRAWS)
        return np.unique(genes, axis=0)

    def sampler(self, column: str) -> CostSampler:
        """Made when it is first asked for; rejection where nothing is exact."""
        if column not in self._samplers:
            self._samplers[column] = make_sampler(self.table, column, approximate=True)
        return self._samplers[column]

    def _kept(
        self, genes: Genes, window: Window, limits: Mapping[str, float], accept: Accept | None
    ) -> Genes:
        """Those that keep the window and every limit by exact costs."""
        if not len(genes):
            return genes
        costs = self.table.column(window.column, genes)
        keeps = (costs >= window.low) & (costs <= window.high)
        for name, bound in limits.items():
            keeps &= self.table.column(name, genes) <= bound
        genes = genes[keeps]
        return genes if accept is None or not len(genes) else genes[accept(genes)]

    def _ranked(
        self,
        genes: Genes,
        level: Tensor,
        window: Window,
        proposal: Arch,
        how: How,
    ) -> list[Repaired]:
        unique = dict.fromkeys(self.space.canonical(self.table.arch(row)) for row in genes)
        archs: Sequence[Arch] = list(unique)
        with torch.no_grad():
            log_p = self.generator.log_probability(
                archs, level, active=active_decisions(self.space, archs)
            ).tolist()
        costs = self.table.column(window.column, self.table.genes(archs)).tolist()
        start = self.space.canonical(proposal)
        found = [
            Repaired(
                arch=arch,
                cost=cost,
                log_probability=value,
                hamming=sum(arch[label] != start[label] for label in start),
                how=how,
            )
            for arch, cost, value in zip(archs, costs, log_p, strict=True)
        ]
        return sorted(found, key=lambda one: -one.log_probability)


class _Walk:
    """The generator's state at N prefixes, one decision at a time."""

    def __init__(self, generator: ArchitectureGenerator, level: Tensor) -> None:
        self.generator = generator
        heads = list(dict.fromkeys(generator.head_names.values()))
        self._head_of = [heads.index(generator.head_names[d.label]) for d in generator.decisions]
        self._word = level[None] @ generator.levels  # (N, hidden)
        self._state: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def log_probabilities(self, step: int) -> Floats:
        """Of the choices of decision number ``step``: (N, n_choices)."""
        self._state = self.generator.cell(self._word, self._state)
        logits: Tensor = self.generator.heads[self._head_of[step]](self._state[0])
        found: Floats = logits.log_softmax(dim=-1).double().cpu().numpy()
        return found

    @torch.no_grad()
    def take(self, step: int, parents: NDArray[np.intp], genes: NDArray[np.int64]) -> None:
        """Go on from ``parents`` (M,) of the N prefixes with these choices (M,)."""
        if self._state is None:
            return
        rows = torch.from_numpy(parents)
        hidden, cell = self._state
        self._state = hidden[rows], cell[rows]
        embedding = self.generator.embeddings[self._head_of[step]]
        n = len(self.generator.decisions[step].choices)
        chosen = torch.nn.functional.one_hot(torch.from_numpy(genes), n).to(hidden)
        self._word = embedding(chosen)
