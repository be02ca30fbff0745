"""Cost tables of the predictor's tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from latency_tables.cost_table import CostTable


@pytest.fixture(scope="session")
def table(make_cost_table: Callable[..., CostTable]) -> CostTable:
    return make_cost_table()
