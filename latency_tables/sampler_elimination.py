"""Exact conditional sampling by variable elimination.

Costs are put into bins; ``N(s, c)`` counts the ways to decide what was decided so far such that the
undecided couplings see the state ``s`` and the bins add up to ``c``. One group of decisions at a
time is introduced, ``N'(s, v, c) = N(s, c − shift(s, v))``, and each is summed out as soon as no
later factor looks at it, in an order from :mod:`latency_tables.elimination`. A draw picks the total
by its count and walks back.

Binning moves a cost by at most a known amount, so the window is widened by that much and what the
*exact* cost puts outside is thrown away: the draws are exactly uniform and none violates the range.
Where the costs are integers on a grid that fits the table, a bin is one cost and counts are exact
as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latency_tables.cost_table import Array, CostTable, Genes
from latency_tables.elimination import MAX_ENTRIES, Scope, aligned, elimination_order, optimise
from latency_tables.errors import SpaceError, TableTooWideError
from latency_tables.sampler_base import CostSampler, Method
from latency_tables.sampler_single import SingleWalk

MAX_BINS = 32_768
MAX_EXACT_BINS = 131_072
"""More bins are worth their memory where every cost then falls into a bin of its own."""
MIN_BINS = 512
MAX_WORK = 32
"""A stage may add so many times the entries that it may keep: more bins, fewer draws in vain."""
_LIST = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One stage of the elimination.

    ``before`` (*frontier sizes, n_bins) counts the ways so far; ``shift`` has one axis per label of
    ``joint`` = frontier and new decisions; ``forgotten`` leave afterwards.
    """

    frontier: Scope
    joint: Scope
    forgotten: Scope
    shift: NDArray[np.int64]
    before: Array

    @property
    def after(self) -> Scope:
        """Labels that later factors still look at."""
        return tuple(label for label in self.joint if label not in self.forgotten)


class EliminationSampler(CostSampler):
    """Counts genomes per cost by variable elimination.

    Raises:
        TableTooWideError: the widest coupling leaves room for too few bins.
    """

    method: Method = "elimination"

    def __init__(self, table: CostTable, column: str, *, max_entries: int = MAX_ENTRIES) -> None:
        super().__init__(table, column)
        self._sizes = {d.label: len(d.choices) for d in table.decisions}
        factors = table.scoped(column)
        if next(c for c in table.columns if c.name == column).reduce != "sum":
            raise SpaceError(f"column {column!r} does not add up over factors")
        plan = self._plan([scope for scope, _ in factors], max_entries)
        widest, joint = self._widest(plan)
        if widest * MIN_BINS > max_entries:
            raise TableTooWideError(widest * MIN_BINS, max_entries, sorted(joint))
        n_bins = self._affordable(plan, max_entries)
        self._base = sum(float(values.min()) for _, values in factors)
        self._step, self.counts_are_exact = _grid([values for _, values in factors], n_bins)
        shifts = [
            (scope, np.rint((values - values.min()) / self._step).astype(np.int64))
            for scope, values in factors
        ]
        self._slack = self._rounding(factors, shifts)
        top, _ = optimise([(s, v.astype(np.float64)) for s, v in shifts], self._sizes, goal="max")
        self._n_bins = int(top) + 1
        self._steps, self._counts = self._forward(plan, shifts)
        self._cumulative = np.concatenate([[0.0], np.cumsum(self._counts)])
        self._single = SingleWalk(self._steps, list(self._sizes))

    def _plan(self, scopes: list[Scope], max_entries: int) -> list[tuple[Scope, Scope]]:
        """(joint labels, labels forgotten afterwards) per step: the narrower one of two orders.

        The smallest tables first may hop between the ends of a chain, and what an end leaves open
        is carried along; the order of the factors is a walk from one end to the other.
        """
        last = {v: i for i, scope in enumerate(scopes) for v in scope}
        walk = self._steps_of(sorted(self._sizes, key=lambda v: last.get(v, -1)), scopes)
        try:
            order = elimination_order(scopes, self._sizes, max_entries=max_entries)
        except TableTooWideError:
            if self._widest(walk)[0] * MIN_BINS > max_entries:
                raise
            return walk
        return min(self._steps_of(order, scopes), walk, key=lambda plan: self._widest(plan)[0])

    def _widest(self, plan: list[tuple[Scope, Scope]]) -> tuple[int, Scope]:
        """Entries and labels of the largest joint table of a plan, apart from its bins."""
        joints = [(math.prod(self._sizes[v] for v in joint), joint) for joint, _ in plan]
        return max(joints, default=(1, ()), key=lambda entry: entry[0])

    def _affordable(self, plan: list[tuple[Scope, Scope]], max_entries: int) -> int:
        """Bins that the counts kept and the additions of the widest stage leave room for."""
        kept = [
            math.prod(self._sizes[v] for v in joint if v not in forgotten)
            for joint, forgotten in plan
        ]
        return max_entries // max(*kept, self._widest(plan)[0] // MAX_WORK, 1)

    def _steps_of(self, order: Sequence[str], scopes: list[Scope]) -> list[tuple[Scope, Scope]]:
        """The plan that forgets the variables in this order."""
        waiting, frontier, seen = list(scopes), list[str](), set[str]()
        plan: list[tuple[Scope, Scope]] = []
        for variable in order:
            if variable in seen and variable not in frontier:
                continue
            bucket = {variable, *(v for scope in waiting if variable in scope for v in scope)}
            joint = [*frontier, *sorted(bucket - set(frontier))]
            seen.update(joint)
            waiting = [scope for scope in waiting if not set(scope) <= set(joint)]
            needed = {v for scope in waiting for v in scope}
            forgotten = tuple(v for v in joint if v not in needed)
            plan.append((tuple(joint), forgotten))
            frontier = [v for v in joint if v in needed]
        return plan

    def _rounding(
        self,
        factors: Sequence[tuple[Scope, Array]],
        shifts: Sequence[tuple[Scope, NDArray[np.int64]]],
    ) -> float:
        """Largest distance between an exact cost and its bin's, over the whole space."""
        residuals = [
            (scope, values - values.min() - self._step * shift)
            for (scope, values), (_, shift) in zip(factors, shifts, strict=True)
        ]
        least, _ = optimise(residuals, self._sizes, goal="min")
        most, _ = optimise(residuals, self._sizes, goal="max")
        return max(abs(least), abs(most))

    def _forward(
        self,
        plan: Sequence[tuple[Scope, Scope]],
        shifts: Sequence[tuple[Scope, NDArray[np.int64]]],
    ) -> tuple[list[_Step], Array]:
        pending = [(scope, shift) for scope, shift in shifts if scope]
        frontier: Scope = ()
        counts: Array = np.zeros(self._n_bins)
        counts[0] = 1.0
        steps = []
        for joint, forgotten in plan:
            shape = [self._sizes[v] for v in joint]
            shift = np.zeros(shape, dtype=np.int64)
            for scope, part in pending:
                if set(scope) <= set(joint):
                    shift = shift + aligned(part.astype(np.float64), scope, joint).astype(np.int64)
            pending = [(s, p) for s, p in pending if not set(s) <= set(joint)]
            step = _Step(
                frontier=frontier, joint=joint, forgotten=forgotten, shift=shift, before=counts
            )
            counts = self._advance(step)
            frontier = step.after
            steps.append(step)
        return steps, counts

    def _advance(self, step: _Step) -> Array:
        """Sum out what is forgotten: the next table, (*sizes of ``after``, n_bins)."""
        kept = [step.joint.index(v) for v in step.after]
        table = np.zeros([*(self._sizes[v] for v in step.after), self._n_bins])
        n_frontier = len(step.frontier)
        for index in np.ndindex(step.shift.shape):
            shift = int(step.shift[index])
            source = step.before[index[:n_frontier]]
            if shift < self._n_bins:
                target = table[tuple(index[i] for i in kept)]
                target[shift:] += source[: self._n_bins - shift]
        return table

    # -- answers ---------------------------------------------------------------------------------

    def _bins(self, low: float, high: float, slack: float) -> tuple[int, int]:
        """First and one past the last bin whose costs, moved by ``slack``, touch [low, high]."""
        tolerance = 1e-9 * max(abs(self._base) / self._step, self._n_bins, 1.0)
        first = (low - slack - self._base) / self._step - tolerance
        last = (high + slack - self._base) / self._step + tolerance
        start = math.ceil(min(max(first, 0), self._n_bins))
        return start, max(start, math.floor(min(max(last, -1), self._n_bins - 1)) + 1)

    def count(self, low: float = -math.inf, high: float = math.inf) -> float:
        """Number of genomes whose cost is in [low, high].

        Exact where ``counts_are_exact``; otherwise each genome counts at the cost of its bin.
        """
        start, end = self._bins(low, high, 0.0)
        return float(self._cumulative[end] - self._cumulative[start])

    def weight(self, low: float, high: float) -> float:
        """Number of genomes among which a draw for [low, high] is made before it is checked."""
        start, end = self._bins(low, high, self._slack)
        return float(self._cumulative[end] - self._cumulative[start])

    def distribution(self) -> tuple[Array, Array]:
        """Costs of the bins and the genomes in each."""
        costs: Array = self._base + self._step * np.arange(self._n_bins, dtype=np.float64)
        return costs, self._counts

    def quantiles(self, levels: ArrayLike) -> Array:
        """Costs at these fractions of all genomes (of the bin, see :meth:`count`)."""
        targets = np.asarray(levels, dtype=np.float64) * self._cumulative[-1] * (1 - 1e-12)
        targets = np.maximum(targets, 0.5)  # level 0 is the first genome, not the first bin
        bins = np.searchsorted(self._cumulative[1:], targets, side="left")
        found: Array = self._base + self._step * np.minimum(bins, self._n_bins - 1)
        return found

    def _proposals(
        self, rng: np.random.Generator, low: float, high: float, n: int
    ) -> tuple[Genes, bool]:
        start, end = self._bins(low, high, self._slack)
        floor, ceiling = self._cumulative[start], self._cumulative[end]
        if not ceiling > floor:
            return np.empty((0, len(self._sizes)), dtype=np.int64), False
        picks = floor + rng.random(n) * (ceiling - floor)
        bins = np.searchsorted(self._cumulative, picks, side="right") - 1
        return self._walk_back(rng, np.clip(bins, start, end - 1)), True

    def _proposal(self, rng: np.random.Generator, low: float, high: float) -> list[int] | None:
        start, end = self._bins(low, high, self._slack)
        floor, ceiling = float(self._cumulative[start]), float(self._cumulative[end])
        if not ceiling > floor:
            return None
        pick = floor + rng.random() * (ceiling - floor)
        total = int(self._cumulative.searchsorted(pick, side="right")) - 1
        return self._single.genes(rng, min(max(total, start), end - 1))

    def _listed(self, low: float, high: float) -> Genes | None:
        """Every genome whose bin touches the range, if those are few: rounding hides them."""
        start, end = self._bins(low, high, self._slack)
        if self.weight(low, high) > _LIST:
            return None
        totals = start + np.flatnonzero(self._counts[start:end])
        chosen: dict[str, NDArray[np.int64]] = {}
        for step in reversed(self._steps):
            options, weights, left = self._ways(step, chosen, totals)
            rows, taken = np.nonzero(weights > 0)
            chosen = {v: values[rows] for v, values in chosen.items()}
            chosen.update((v, options[i][taken]) for i, v in enumerate(step.forgotten))
            totals = left[rows, taken]
        return np.stack([chosen[v] for v in self._sizes], axis=1)

    def _ways(
        self, step: _Step, chosen: dict[str, NDArray[np.int64]], totals: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], Array, NDArray[np.int64]]:
        """Per row the ways to have come here, by the values of what the step forgot.

        Returns:
            options (n_forgotten, n_options), counts and remaining totals (n_rows, n_options).
        """
        shape = [self._sizes[v] for v in step.forgotten]
        options = np.indices(shape).reshape(len(shape), -1)
        position = {v: i for i, v in enumerate(step.forgotten)}
        index = tuple(
            options[position[v]][None, :] if v in position else chosen[v][:, None]
            for v in step.joint
        )
        left = totals[:, None] - step.shift[index]
        ways = step.before[(*index[: len(step.frontier)], np.maximum(left, 0))]
        return options, np.where(left >= 0, ways, 0.0), left

    def _walk_back(self, rng: np.random.Generator, bins: NDArray[np.intp]) -> Genes:
        """One genome per total, uniform among the genomes of that total."""
        chosen: dict[str, NDArray[np.int64]] = {}
        totals = bins.astype(np.int64)
        for step in reversed(self._steps):
            options, weights, left = self._ways(step, chosen, totals)
            cumulative = np.cumsum(weights, axis=1)
            picks = rng.random(len(totals)) * cumulative[:, -1]
            taken = (cumulative <= picks[:, None]).sum(axis=1)
            chosen.update((v, options[i][taken]) for i, v in enumerate(step.forgotten))
            totals = left[np.arange(len(totals)), taken]
        return np.stack([chosen[v] for v in self._sizes], axis=1)


def _grid(values: Sequence[Array], n_bins: int) -> tuple[float, bool]:
    """Width of a bin, of which there are at most ``n_bins``, and whether costs lie on the grid."""
    distances = np.concatenate([(v - v.min()).ravel() for v in values] or [np.zeros(1)])
    reach = sum(float(v.max() - v.min()) for v in values)
    if reach == 0:
        return 1.0, True
    if np.array_equal(distances, np.rint(distances)) and reach < 2**53:
        step = int(np.gcd.reduce(distances.astype(np.int64)))
        if reach / step < min(n_bins, MAX_EXACT_BINS):
            return float(step), True
    return reach / (min(n_bins, MAX_BINS) - 1 - len(values)), False
