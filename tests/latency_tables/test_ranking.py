"""Kendall's tau against closed forms and scipy."""

import numpy as np
import pytest
from scipy.stats import kendalltau

from latency_tables.ranking import kendall_tau


def test_tau_is_that_of_kendall_with_ties():
    # 10 pairs: 7 agree, 1 disagrees, 1 tied in each: (7 - 1) / sqrt(9 * 9)
    assert kendall_tau([1, 2, 2, 4, 5], [3, 1, 4, 4, 5]) == pytest.approx(2 / 3)
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == -1.0


def test_tau_is_that_of_scipy_on_more_networks_than_a_block_of_rows():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 50, 1100).astype(float)
    second = first + rng.integers(-20, 20, 1100)
    assert kendall_tau(first, second) == pytest.approx(kendalltau(first, second).statistic)


def test_a_constant_sequence_has_no_order():
    assert kendall_tau([1, 1, 1], [1, 2, 3]) == 0.0
    assert kendall_tau([], []) == 0.0
