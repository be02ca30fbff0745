"""Exact sampling in every shipped space: all levels, no violation, counts that agree with draws."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from latency_tables.cost_table import CostTable
from latency_tables.errors import TableTooWideError
from latency_tables.predictor.features import LATENCY_COLUMN
from latency_tables.predictor.model import LatencyModel
from latency_tables.sampler import make_sampler
from pipeline.search.operators import random_genes
from pipeline.spaces import SPACES, load_space

LEVELS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
QUICK = ("shufflenetv2", "nasbench201", "autoformer")
SMALL = {"nasbench_macro": 32, "nasbench201": 32}


def sizes_of(table: CostTable) -> np.ndarray:
    return np.array([len(d.choices) for d in table.decisions])


@cache
def table_of(name: str) -> CostTable:
    """Costs of the published size of a space."""
    side = SMALL.get(name, 224)
    preset = "tiny" if name == "autoformer" else "paper"
    space = load_space(name, preset=preset, input_shape=(3, side, side), n_classes=100)
    return space.cost_table()


EVERY = [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in SPACES]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("column", ["macs", "size_bytes"])
def test_every_level_of_every_space_is_drawn_exactly(name: str, column: str) -> None:
    table = table_of(name)
    sampler = make_sampler(table, column)
    assert sampler.exact
    rng = np.random.default_rng(0)
    for cost in sampler.quantiles(LEVELS):
        low, high = cost * 0.9975, cost * 1.0025
        for n in (1, 40):
            drawn = table.column(column, sampler.sample(rng, low, high, n))
            assert len(drawn) == n
            assert ((drawn >= low) & (drawn <= high)).all()


@pytest.mark.parametrize("name", EVERY)
def test_the_share_of_a_range_is_that_of_uniform_draws(name: str) -> None:
    table = table_of(name)
    sampler = make_sampler(table, "macs")
    uniform = random_genes(np.random.default_rng(1), sizes_of(table), 20_000)
    costs = table.column("macs", uniform)
    low, high = np.quantile(costs, [0.2, 0.4])
    expected = ((costs >= low) & (costs <= high)).mean()
    assert sampler.probability(low, high) == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("name", EVERY)
def test_latency_that_a_model_learned_is_drawn_exactly(name: str) -> None:
    table = table_of(name)
    rng = np.random.default_rng(2)
    genes = random_genes(rng, sizes_of(table), 60)
    latency = (1.0 + table.column("macs", genes) / 1e8) * rng.normal(1, 0.02, 60)
    archs = [table.arch(g) for g in genes]
    timed = LatencyModel.fit(table, archs, latency, forms=("table",)).with_latency_column(table)
    sampler = make_sampler(timed, LATENCY_COLUMN)
    assert sampler.exact
    for cost in sampler.quantiles((0.01, 0.5, 0.99)):
        drawn = sampler.sample(rng, cost * 0.995, cost * 1.005, 20)
        ms = timed.column(LATENCY_COLUMN, drawn)
        assert ((ms >= cost * 0.995) & (ms <= cost * 1.005)).all()


def test_peak_memory_is_only_drawn_approximately_and_says_so() -> None:
    table = table_of("shufflenetv2")
    with pytest.raises(TableTooWideError):
        make_sampler(table, "peak_memory_bytes")
    sampler = make_sampler(table, "peak_memory_bytes", approximate=True)
    assert not sampler.exact
