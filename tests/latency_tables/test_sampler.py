"""Conditional sampling: what is drawn fits, is uniform, and is counted as enumeration counts it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency_tables.arch import Decision
from latency_tables.cost_table import Column, CostTable, Factor
from latency_tables.errors import LimitError, SpaceError, TableTooWideError
from latency_tables.sampler import (
    EliminationSampler,
    EnumerationSampler,
    RejectionSampler,
    make_sampler,
)


def table_of(sizes: dict[str, int], factors: dict[tuple[str, ...], np.ndarray]) -> CostTable:
    return CostTable(
        [Decision(label=k, choices=tuple(range(n))) for k, n in sizes.items()],
        [Column(name="cost", unit="ms")],
        [
            Factor(name=str(i), labels=labels, values=values[..., None])
            for i, (labels, values) in enumerate(factors.items())
        ],
    )


def chain(n: int, choices: int, seed: int = 0) -> CostTable:
    """Costs with many digits, so that no grid fits."""
    rng = np.random.default_rng(seed)
    return table_of(
        {f"b{i}": choices for i in range(n)},
        {(f"b{i}",): rng.random(choices) ** 2 for i in range(n)},
    )


def vit_like(integer: bool) -> CostTable:
    """Two global decisions coupled with everything; layers beyond the depth cost nothing."""
    rng = np.random.default_rng(1)
    sizes = {"embed": 3, "depth": 2, **{f"{k}{i}": 2 for i in range(3) for k in ("heads", "ratio")}}
    factors: dict[tuple[str, ...], np.ndarray] = {("embed",): np.array([5.0, 7.0, 11.0])}
    for i in range(3):
        values = rng.integers(1, 50, (3, 2, 2, 2)).astype(float) + (0 if integer else rng.random())
        if i == 2:
            values[:, 0] = 0.0
        factors[("embed", "depth", f"heads{i}", f"ratio{i}")] = values
    return table_of(sizes, factors)


def brute_force(table: CostTable) -> tuple[np.ndarray, np.ndarray]:
    genes = np.array(list(itertools.product(*(range(len(d.choices)) for d in table.decisions))))
    return genes, table.column("cost", genes)


def chi_square_of_draws(sampler, low: float, high: float, n: int) -> tuple[float, int]:
    genes, costs = brute_force(sampler.table)
    allowed = genes[(costs >= low) & (costs <= high)]
    index = {tuple(row): i for i, row in enumerate(allowed.tolist())}
    drawn = sampler.sample(np.random.default_rng(3), low, high, n)
    counts = np.bincount([index[tuple(g)] for g in drawn.tolist()], minlength=len(allowed))
    expected = n / len(allowed)
    return float(((counts - expected) ** 2 / expected).sum()), len(allowed) - 1


@pytest.mark.parametrize("table", [chain(5, 4), vit_like(True), vit_like(False)])
@pytest.mark.parametrize("kind", [EnumerationSampler, EliminationSampler])
def test_draws_are_uniform_over_the_range(kind, table: CostTable) -> None:
    sampler = kind(table, "cost")
    _, costs = brute_force(table)
    low, high = np.quantile(costs, [0.3, 0.5])
    statistic, freedom = chi_square_of_draws(sampler, low, high, 20_000)
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 0.99), st.floats(0.001, 0.3))
def test_no_draw_violates_its_range(seed: int, start: float, width: float) -> None:
    table = chain(6, 3, seed)
    _, costs = brute_force(table)
    low, high = np.quantile(costs, [start, min(1.0, start + width)], method="inverted_cdf")
    drawn = EliminationSampler(table, "cost").sample(np.random.default_rng(seed), low, high, 40)
    found = table.column("cost", drawn)
    assert drawn.shape == (40, 6)
    assert ((found >= low) & (found <= high)).all()


@pytest.mark.parametrize("table", [vit_like(True), table_of({"a": 3}, {("a",): np.arange(3.0)})])
def test_counts_on_a_grid_are_exact(table: CostTable) -> None:
    sampler = EliminationSampler(table, "cost")
    _, costs = brute_force(table)
    assert sampler.counts_are_exact
    for low, high in itertools.combinations(np.unique(costs)[::7], 2):
        assert sampler.count(low, high) == ((costs >= low) & (costs <= high)).sum()
    levels = [0.0, 0.1, 0.5, 0.9, 1.0]
    expected = np.quantile(costs, levels, method="inverted_cdf")
    assert sampler.quantiles(levels).tolist() == expected.tolist()


def test_counts_without_a_grid_are_close_and_say_so() -> None:
    table = vit_like(False)
    sampler = EliminationSampler(chain(8, 3), "cost")
    _, costs = brute_force(sampler.table)
    assert not sampler.counts_are_exact
    middle = np.quantile(costs, 0.4)
    assert sampler.probability(high=middle) == pytest.approx(0.4, abs=0.01)
    assert sampler.count() == len(costs)
    assert EliminationSampler(table, "cost").count() == table.n_archs


def test_a_single_extreme_architecture_is_found() -> None:
    table = chain(12, 4)
    sampler = EliminationSampler(table, "cost")
    best, arch = table.minimum("cost")
    drawn = sampler.sample_archs(np.random.default_rng(0), best - 1e-12, best + 1e-12, 3)
    assert drawn == [arch] * 3


def test_a_gap_between_two_costs_is_known_to_be_empty() -> None:
    table = chain(10, 3)
    _, costs = brute_force(table)
    below, above = np.sort(costs)[20_000:20_002]
    sampler = EliminationSampler(table, "cost")
    with pytest.raises(LimitError, match="was found"):
        sampler.sample(np.random.default_rng(0), below + 1e-15, above - 1e-15, 1)
    drawn = sampler.sample(np.random.default_rng(0), below, above, 200)
    assert len(np.unique(drawn, axis=0)) == 2


def test_equal_generators_draw_equal_architectures() -> None:
    sampler = make_sampler(chain(20, 4), "cost")
    low, high = sampler.quantiles([0.01, 0.02])
    first, second = (sampler.sample(np.random.default_rng(7), low, high, 20) for _ in range(2))
    assert np.array_equal(first, second)


def test_an_impossible_range_names_what_exists() -> None:
    table = chain(12, 4)
    with pytest.raises(LimitError, match="the space reaches from"):
        make_sampler(table, "cost").sample(np.random.default_rng(0), 1e9, 2e9, 1)
    with pytest.raises(SpaceError, match="from low to high"):
        make_sampler(table, "cost").sample(np.random.default_rng(0), 2.0, 1.0, 1)


def test_decisions_without_costs_are_drawn_uniformly() -> None:
    table = table_of({"a": 2, "free": 4}, {("a",): np.array([1.0, 2.0])})
    drawn = EliminationSampler(table, "cost").sample(np.random.default_rng(0), 2.0, 2.0, 4_000)
    assert (drawn[:, 0] == 1).all()
    assert np.bincount(drawn[:, 1]).min() > 850


def test_the_method_follows_the_size_and_the_couplings() -> None:
    assert make_sampler(chain(3, 3), "cost").method == "enumeration"
    assert make_sampler(chain(20, 4), "cost").method == "elimination"


def test_stages_that_are_small_at_both_ends_are_counted_from_one_end_to_the_other() -> None:
    rng = np.random.default_rng(0)
    sizes = {"size": 2}
    factors: dict[tuple[str, ...], np.ndarray] = {}
    for i, (width, options) in enumerate([(2, 2), (3, 3), (2, 4), (3, 4), (2, 2)]):
        sizes |= {f"w{i}": width, f"o{i}": options}
        before = (f"w{i - 1}",) if i else ()
        for labels in (("size", *before, f"w{i}"), ("size", f"w{i}", f"o{i}")):
            factors[labels] = rng.integers(1, 9, [sizes[v] for v in labels]).astype(float)
    table = table_of(sizes, factors)
    # the smallest tables first would couple both ends with the middle: more than 24 entries a bin
    sampler, all_of_them = EliminationSampler(table, "cost", max_entries=24 * 512), (0, np.inf)
    exact = EnumerationSampler(table, "cost")
    assert sampler.count(*all_of_them) == table.n_archs
    for low, high in ((30, 40), (45, 46), (60, 80)):
        assert sampler.count(low, high) == exact.count(low, high)
    drawn = sampler.sample(rng, 45, 46, 50)
    assert set(table.column("cost", drawn)) == {45, 46}


def test_too_wide_a_coupling_needs_consent_to_rejection() -> None:
    sizes = {f"d{i}": 10 for i in range(7)}
    pairs = {
        pair: np.random.default_rng(0).random((10, 10)) for pair in itertools.combinations(sizes, 2)
    }
    table = table_of(sizes, pairs)
    with pytest.raises(TableTooWideError):
        make_sampler(table, "cost")
    sampler = make_sampler(table, "cost", approximate=True)
    assert isinstance(sampler, RejectionSampler)
    assert not sampler.exact
    low, high = sampler.quantiles([0.4, 0.6])
    costs = table.column("cost", sampler.sample(np.random.default_rng(0), low, high, 50))
    assert ((costs >= low) & (costs <= high)).all()
    assert sampler.probability(low, high) == pytest.approx(0.2, abs=0.01)


def test_a_column_of_peaks_is_sampled_by_enumeration() -> None:
    values = np.arange(4.0)[:, None]
    table = CostTable(
        [Decision(label="a", choices=(0, 1, 2, 3)), Decision(label="b", choices=(0, 1, 2, 3))],
        [Column(name="peak", unit="byte", reduce="max")],
        [Factor(name=x, labels=(x,), values=values) for x in "ab"],
    )
    assert make_sampler(table, "peak").count(high=1) == 4
    with pytest.raises(SpaceError, match="does not add up"):
        EliminationSampler(table, "peak")
