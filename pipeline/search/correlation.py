"""How far one number predicts the order of another: Kendall's tau, for the report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.stats import kendalltau


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b of two equally long series; None where it is not defined.

    Not defined are fewer than two values, or a series whose values are all equal.

    >>> round(kendall_tau([1.0, 2.0, 3.0], [10.0, 30.0, 20.0]), 3)
    0.333
    >>> kendall_tau([1.0, 1.0], [2.0, 3.0]) is None
    True
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values cannot be paired")
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    tau = float(kendalltau(first, second).statistic)
    return tau if math.isfinite(tau) else None
