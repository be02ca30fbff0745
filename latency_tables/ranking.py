"""Agreement of two orders."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

_ROWS = 512


def kendall_tau(first: ArrayLike, second: ArrayLike) -> float:
    """Kendall's tau-b of two sequences (N,); 0 where one of them is constant.

    Ties count as in Kendall (1945). Quadratic in N, with N x 512 numbers in memory.

    >>> round(kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]), 4)
    0.6667
    """
    a = np.asarray(first, dtype=np.float64)
    b = np.asarray(second, dtype=np.float64)
    agree = pairs_a = pairs_b = 0.0
    for start in range(0, len(a), _ROWS):
        rows = slice(start, start + _ROWS)
        sign_a = np.sign(a[rows, None] - a[None, :])
        sign_b = np.sign(b[rows, None] - b[None, :])
        agree += float((sign_a * sign_b).sum())
        pairs_a += float(np.abs(sign_a).sum())
        pairs_b += float(np.abs(sign_b).sum())
    return agree / float(np.sqrt(pairs_a * pairs_b)) if pairs_a and pairs_b else 0.0
