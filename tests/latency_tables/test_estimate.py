"""Estimate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency_tables.errors import TableError
from latency_tables.estimate import Estimate

positive = st.floats(1e-6, 1e6)


def estimate(latency_ms, low_ms, high_ms):
    return Estimate(
        latency_ms=latency_ms, low_ms=low_ms, high_ms=high_ms, key="k", source="table", n=3
    )


@given(st.tuples(positive, positive, positive).map(sorted))
def test_the_dictionary_gives_the_same_estimate_back(values):
    low, latency, high = values
    one = estimate(latency, low, high)
    assert Estimate.from_dict(one.to_dict()) == one


@given(st.tuples(positive, positive, positive).map(sorted), positive)
def test_a_limit_is_straddled_only_inside_of_the_interval(values, limit):
    low, latency, high = values
    assert estimate(latency, low, high).straddles(limit) == (low <= limit < high)


@pytest.mark.parametrize(
    "values",
    [
        (0.0, 0.0, 1.0),
        (-1.0, -2.0, 1.0),
        (float("nan"), 1.0, 2.0),
        (1.0, 0.5, float("inf")),
        (3.0, 1.0, 2.0),
        (1.0, 2.0, 3.0),
    ],
)
def test_values_that_are_no_latency_are_refused(values):
    with pytest.raises(TableError):
        estimate(*values)


def test_unknown_fields_are_named():
    with pytest.raises(TableError, match="colour"):
        Estimate.from_dict({**estimate(1.0, 1.0, 1.0).to_dict(), "colour": "red"})
