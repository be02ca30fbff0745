"""Every limit alone and every pair of them, through the whole search."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from latency_tables.cost_table import Column, CostTable, Factor
from latency_tables.errors import LimitError
from pipeline.search.config import SearchConfig
from pipeline.search.limits import COST_METRICS, Limit
from pipeline.search.proposing import Bounded, make_proposer
from tests.pipeline.search.conftest import World

METRICS = ("latency_ms", *COST_METRICS)
SINGLE = [(metric,) for metric in METRICS]
PAIRS = list(combinations(METRICS, 2))
SMALL = SearchConfig(population=16, parents=5, crossover=6, mutation=6, generations=2)
N = 10  # 59,049 networks: too many to be listed when draws run out


class Opposed(World):
    """A world in which MACs, parameters, memory and latency come from different blocks.

    MACs rise with the number of a block, parameters (and bytes) fall with it, memory is that of
    its worst block, latency counts every second block four times.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        columns = [
            Column(name="macs", unit="MAC"),
            Column(name="params", unit="1"),
            Column(name="size_bytes", unit="B"),
            Column(name="weight_bytes", unit="B"),
            Column(name="activation_peak_bytes", unit="B", reduce="max"),
        ]
        factors = [Factor(name="stem", labels=(), values=np.array([1e6, 2e3, 9e3, 8e3, 4e3]))]
        for i, decision in enumerate(self.decisions):
            size = self.n - i
            step = [(i + 1) * 1e6, size * 1e3, size * 4e3 + 300, size * 4e3, (1 + i % 4) * 2e4]
            values = np.arange(3)[:, None] * np.array(step)
            factors.append(Factor(name=decision.label, labels=(decision.label,), values=values))
        self.table = CostTable(self.decisions, columns, factors)

    def of_genes(self, metric, genes):
        """A metric of genomes (N, n) as (N,)."""
        if metric == "latency_ms":
            return 1.0 + 0.1 * (genes * np.where(np.arange(self.n) % 2, 4.0, 1.0)).sum(axis=1)
        return self.table.column(metric, genes)

    def with_latency(self):
        """The cost table with a latency column, as a model's additive part gives it."""
        zero = np.zeros((1, self.n), dtype=np.int64)
        fixed = float(self.of_genes("latency_ms", zero)[0])
        blocks = []
        for i in range(self.n):
            genes = np.repeat(zero, 3, axis=0)
            genes[:, i] = range(3)
            blocks.append(self.of_genes("latency_ms", genes) - fixed)
        return self.table.with_column("latency_ms", "ms", [np.array(fixed), *blocks])

    def latencies_ms(self, archs):
        return [float(t) for t in self.of_genes("latency_ms", self.table.genes(archs))]


class Conflicting(Opposed):
    """A world in which what is good for one metric is bad for another.

    Larger choices have more MACs and memory and fewer parameters; the middle one is the fastest.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        factors = [self.table.factors[0]]
        for i, factor in enumerate(self.table.factors[1:]):
            values = factor.values.copy()  # (3, n_columns): MACs, parameters, bytes twice, peak
            values[:, 1:4] = values[::-1, 1:4]
            values[:, 4] = np.arange(3) * 1e6 * (1 + i % 4)
            factors.append(Factor(name=factor.name, labels=factor.labels, values=values))
        self.table = CostTable(self.decisions, self.table.columns, factors)

    def of_genes(self, metric, genes):
        if metric == "latency_ms":
            return super().of_genes(metric, np.abs(genes - 1))
        return super().of_genes(metric, genes)


def metrics_of_all(kind):
    """All genomes of a world of this kind, and each metric of them."""
    genes = np.indices((3,) * N).reshape(N, -1).T
    world = kind(n=N)
    return genes, {metric: world.of_genes(metric, genes) for metric in METRICS}


@pytest.fixture(scope="module")
def everything():
    """Of the world whose metrics rise together."""
    return metrics_of_all(Opposed)


@pytest.fixture(scope="module")
def conflicts():
    """Of the world whose metrics pull in opposite directions."""
    return metrics_of_all(Conflicting)


def limits_at(everything, metrics, quantile):
    """Limits that this share of all networks keeps, each by itself; latency on the board."""
    return [
        Limit(
            metric=metric,
            bound=float(np.quantile(everything[1][metric], quantile)),
            device="board",
        )
        for metric in metrics
    ]


def kept(everything, limits):
    """Which of all genomes keep the limits."""
    return np.logical_and.reduce([everything[1][x.metric] <= x.bound for x in limits])


def first_limits(everything, metrics, *, n_allowed):
    """The tightest limits of one quantile that at least so many networks keep together."""
    return next(
        found
        for quantile in np.linspace(0.001, 0.999, 300)
        if kept(everything, found := limits_at(everything, metrics, quantile)).sum() >= n_allowed
    )


def keeps(world, evaluation, limits):
    genes = world.table.genes([evaluation.arch])
    return all(world.of_genes(x.metric, genes)[0] <= x.bound for x in limits)


def proposer(world, limits):
    """What a run draws from, with the board's latency as a column."""
    bounded = [Bounded(limit=x, table=world.with_latency()) for x in limits]
    genes = np.random.default_rng(0).integers(0, 3, (2_000, world.n))
    return make_proposer(bounded, genes)


@pytest.mark.parametrize("metrics", [*SINGLE, *PAIRS], ids="+".join)
def test_a_search_keeps_every_limit_and_finds_nearly_the_best(metrics, everything, tmp_path):
    world = Opposed(n=N)
    limits = limits_at(everything, metrics, 0.3)
    found = world.run(tmp_path / "search.jsonl", SMALL, *limits)
    assert found.n_evaluated == SMALL.n_candidates
    assert all(keeps(world, e, limits) and e.feasible for e in found.archive)
    allowed = everything[0][kept(everything, limits)]
    some = allowed[np.random.default_rng(0).integers(0, len(allowed), 400)]
    rivals = [world.accuracy(world.table.arch(genes)) for genes in some]
    best = max(e.accuracy for e in found.archive)
    assert (np.array(rivals) < best).mean() > 0.95


@pytest.mark.parametrize("metrics", [*SINGLE, *PAIRS], ids="+".join)
def test_tight_limits_still_give_whole_generations(metrics, everything, tmp_path):
    """Limits that two networks in a thousand keep each, and pairs of them far fewer."""
    world = Opposed(n=N)
    limits = limits_at(everything, metrics, 0.002)
    n_allowed = int(kept(everything, limits).sum())
    assert n_allowed >= 1
    found = world.run(tmp_path / "search.jsonl", SMALL, *limits, propose=proposer(world, limits))
    assert all(keeps(world, e, limits) for e in found.archive)
    assert found.n_evaluated >= min(SMALL.population, n_allowed // 2)


PULLING = [p for p in PAIRS if p not in (("macs", "peak_memory_bytes"), ("params", "size_bytes"))]
"""Pairs of which one metric rises where the other one falls."""


@pytest.mark.parametrize("metrics", PULLING, ids="+".join)
def test_limits_that_pull_in_opposite_directions_and_leave_few_networks_find_them(
    metrics, conflicts, tmp_path
):
    world = Conflicting(n=N)
    limits = first_limits(conflicts, metrics, n_allowed=12)
    n_allowed = int(kept(conflicts, limits).sum())
    assert n_allowed < len(conflicts[0]) / 100
    found = world.run(tmp_path / "search.jsonl", SMALL, *limits, propose=proposer(world, limits))
    assert all(keeps(world, e, limits) for e in found.archive)
    assert found.n_evaluated >= min(SMALL.population, n_allowed) / 2


@pytest.mark.parametrize("metrics", PULLING, ids="+".join)
def test_a_pair_that_no_network_keeps_gives_the_closest_and_the_limit_that_binds(
    metrics, conflicts, tmp_path
):
    world, values = Conflicting(n=N), conflicts[1]
    first, second = metrics
    # the first metric near its best, the second a little below the best that is left then
    bound = float(np.quantile(values[first], 0.01))
    rest = float(values[second][values[first] <= bound].min()) * 0.999
    assert values[second].min() <= rest, "either limit alone can be kept"
    limits = [
        Limit(metric=first, bound=bound, device="board"),
        Limit(metric=second, bound=rest, device="board"),
    ]
    assert not kept(conflicts, limits).any()
    with pytest.raises(LimitError, match=r"none of the .* subnets .* keeps all limits") as caught:
        world.run(tmp_path / "search.jsonl", SMALL, *limits)
    closest = str(caught.value).split("the closest: ")[1]
    assert any(f"limit {x.show(x.bound)}" in closest for x in limits)


def test_draws_are_uniform_over_what_keeps_both_limits(conflicts):
    """Whichever set they come from: what is left of uniform draws is uniform."""
    world = Conflicting(n=N)
    limits = first_limits(conflicts, ("macs", "params"), n_allowed=300)
    allowed = kept(conflicts, limits)
    draw = proposer(world, limits)
    genes = world.table.genes(draw(np.random.default_rng(1), 20_000))
    index = genes @ 3 ** np.arange(N)[::-1]  # place in the list of all genomes
    counts = np.bincount(index, minlength=len(allowed))[allowed]
    rate = counts.sum() / allowed.sum()
    assert rate > 1
    spread = ((counts - rate) ** 2 / rate).sum()
    freedom = allowed.sum() - 1
    assert abs(spread - freedom) < 5 * np.sqrt(2 * freedom)
    tightest = min((Bounded(limit=x, table=world.with_latency()) for x in limits),
                   key=lambda b: b.proposer().share).proposer()  # fmt: skip
    assert draw.share < tightest.share / 3
