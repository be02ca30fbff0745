"""Cost tables add up, find their extremes exactly and refuse what does not fit."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency_tables.arch import Arch, Decision
from latency_tables.cost_table import Column, CostTable, Factor
from latency_tables.elimination import optimise
from latency_tables.errors import (
    CorruptTableError,
    InvalidArchError,
    SpaceError,
    TableTooWideError,
)

MACS = Column(name="macs", unit="MAC")
PEAK = Column(name="activation_peak_bytes", unit="byte", reduce="max")
WEIGHTS = Column(name="weight_bytes", unit="byte")


def decisions_of(sizes: dict[str, int]) -> list[Decision]:
    return [Decision(label=k, choices=tuple(range(n))) for k, n in sizes.items()]


@st.composite
def coupled_tables(draw) -> CostTable:
    """Tables over 2–5 decisions with factors of up to three labels."""
    sizes = {f"d{i}": draw(st.integers(1, 4)) for i in range(draw(st.integers(2, 5)))}
    factors = []
    for i in range(draw(st.integers(1, 5))):
        labels = tuple(draw(st.lists(st.sampled_from(list(sizes)), max_size=3, unique=True)))
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        values = rng.integers(-9, 10, (*(sizes[x] for x in labels), 3)).astype(float)
        factors.append(Factor(name=f"f{i}", labels=labels, values=values))
    return CostTable(decisions_of(sizes), [MACS, WEIGHTS, PEAK], factors)


def all_genes(table: CostTable) -> np.ndarray:
    return np.array(list(itertools.product(*(range(len(d.choices)) for d in table.decisions))))


def test_a_chain_adds_its_factors_up() -> None:
    table = CostTable(
        decisions_of({"a": 2, "b": 3}),
        [MACS],
        [
            Factor(name="stem", labels=(), values=np.array([100.0])),
            Factor(name="a", labels=("a",), values=np.array([[1.0], [2.0]])),
            Factor(name="b", labels=("b",), values=np.array([[10.0], [20.0], [30.0]])),
        ],
    )
    assert table.batch([[0, 0], [1, 2]]).tolist() == [[111.0], [132.0]]
    assert table.factor_values([[1, 2]])[0, :, 0].tolist() == [100.0, 2.0, 30.0]
    assert table.mean("macs") == 121.5


def test_a_coupled_factor_is_read_in_the_order_of_its_labels() -> None:
    values = np.arange(6.0).reshape(3, 2, 1)
    table = CostTable(
        decisions_of({"a": 2, "b": 3}), [MACS], [Factor(name="f", labels=("b", "a"), values=values)]
    )
    assert table.cost(Arch({"a": 1, "b": 2}), "macs") == values[2, 1, 0]


def test_a_column_that_reduces_by_maximum_takes_the_largest_factor() -> None:
    factors = [
        Factor(name=x, labels=(x,), values=np.array([[4.0], [v]]))
        for x, v in (("a", 9.0), ("b", 7.0))
    ]
    table = CostTable(decisions_of({"a": 2, "b": 2}), [PEAK], factors)
    assert table.batch([[0, 0], [0, 1], [1, 1]])[:, 0].tolist() == [4.0, 7.0, 9.0]


@settings(max_examples=60, deadline=None)
@given(coupled_tables())
def test_extremes_equal_those_of_enumeration(table: CostTable) -> None:
    genes = all_genes(table)
    for column in table.column_names():
        costs = table.column(column, genes)
        for found, expected in (
            (table.minimum(column), costs.min()),
            (table.maximum(column), costs.max()),
        ):
            value, arch = found
            assert value == expected
            assert table.cost(arch, column) == expected


@settings(max_examples=20, deadline=None)
@given(coupled_tables())
def test_a_table_survives_json(table: CostTable) -> None:
    copy = CostTable.from_dict(json.loads(json.dumps(table.to_dict())))
    assert copy.table_hash == table.table_hash
    assert np.array_equal(copy.batch(all_genes(table)), table.batch(all_genes(table)))


@settings(max_examples=20, deadline=None)
@given(coupled_tables(), st.integers(0, 2**32))
def test_genes_and_architectures_describe_the_same(table: CostTable, seed: int) -> None:
    sizes = [len(d.choices) for d in table.decisions]
    genes = np.random.default_rng(seed).integers(0, sizes, (7, len(sizes)))
    assert np.array_equal(table.genes([table.arch(row) for row in genes]), genes)


def test_a_long_chain_is_optimised_without_enumeration() -> None:
    sizes = {f"block{i}": 13 for i in range(21)}
    rng = np.random.default_rng(0)
    factors = [Factor(name=x, labels=(x,), values=rng.random((13, 1))) for x in sizes]
    table = CostTable(decisions_of(sizes), [MACS], factors)
    assert table.minimum("macs")[0] == pytest.approx(sum(f.values.min() for f in factors))


def test_stage_couplings_are_optimised_with_small_tables() -> None:
    sizes = {f"width{i}": 4 for i in range(30)}
    rng = np.random.default_rng(0)
    pairs = list(itertools.pairwise(sizes))
    factors = [(pair, rng.random((4, 4))) for pair in pairs]
    best = np.zeros(4)
    for _, values in factors:  # shortest path, stage by stage
        best = (best[:, None] + values).min(axis=0)
    assert optimise(factors, sizes, goal="min")[0] == pytest.approx(best.min())


def test_a_coupling_of_everything_is_refused() -> None:
    sizes = {f"d{i}": 8 for i in range(7)}
    scopes = [((a, b), np.zeros((8, 8))) for a, b in itertools.combinations(sizes, 2)]
    with pytest.raises(TableTooWideError, match="2097152 entries"):
        optimise(scopes, sizes, goal="min")


def test_peak_memory_is_derived_from_weights_and_activations() -> None:
    values = np.array([[10.0, 1.0], [20.0, 5.0]])
    table = CostTable(
        decisions_of({"a": 2}), [WEIGHTS, PEAK], [Factor(name="a", labels=("a",), values=values)]
    )
    assert table.costs(Arch({"a": 1}))["peak_memory_bytes"] == 25.0
    assert table.minimum("peak_memory_bytes") == (11.0, Arch({"a": 0}))


def test_a_column_can_be_added_and_replaced() -> None:
    table = CostTable(
        decisions_of({"a": 2}),
        [MACS],
        [Factor(name="a", labels=("a",), values=np.array([[1.0], [2.0]]))],
    )
    timed = table.with_column("latency_ms", "ms", [np.array([0.5, 0.25])])
    assert timed.costs(Arch({"a": 1})) == {"macs": 2.0, "latency_ms": 0.25}
    assert (
        timed.with_column("macs", "MAC", [np.array([7.0, 8.0])]).cost(Arch({"a": 0}), "macs") == 7.0
    )
    assert timed.table_hash != table.table_hash


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (Factor(name="f", labels=("x",), values=np.zeros((2, 1))), "one of the decisions"),
        (Factor(name="f", labels=("a",), values=np.zeros((3, 1))), r"expected \(2, 1\)"),
        (Factor(name="f", labels=("a",), values=np.full((2, 1), np.nan)), "not finite"),
    ],
)
def test_a_factor_that_does_not_fit_is_named(factor: Factor, message: str) -> None:
    with pytest.raises(SpaceError, match=f"'f'.*{message}"):
        CostTable(decisions_of({"a": 2}), [MACS], [factor])


def test_wrong_genes_and_architectures_are_refused() -> None:
    table = CostTable(
        decisions_of({"a": 2}), [MACS], [Factor(name="a", labels=("a",), values=np.zeros((2, 1)))]
    )
    with pytest.raises(InvalidArchError, match=r"outside 0\.\.1"):
        table.batch([[2]])
    with pytest.raises(InvalidArchError, match="integers"):
        table.batch([[0.5]])
    with pytest.raises(InvalidArchError, match="allowed: 0, 1"):
        table.genes([Arch({"a": 5})])
    with pytest.raises(InvalidArchError, match="missing: a"):
        table.genes([Arch({})])
    with pytest.raises(SpaceError, match="no column 'flops'; known: macs"):
        table.cost(Arch({"a": 0}), "flops")


@pytest.mark.parametrize("damage", [{"schema": 9}, {"columns": [{}]}, {"factors": [{"name": "a"}]}])
def test_a_damaged_file_is_refused(damage: dict) -> None:
    table = CostTable(
        decisions_of({"a": 2}), [MACS], [Factor(name="a", labels=("a",), values=np.zeros((2, 1)))]
    )
    with pytest.raises(CorruptTableError):
        CostTable.from_dict({**table.to_dict(), **damage})
