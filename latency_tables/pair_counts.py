"""Counting pairs of two sequences by their order, row by row.

What ``ranking`` measures rests on these. Rows are samples of a bootstrap (or a single one): all are
counted together, since the overhead of an array operation exceeds the counting of a short row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def n_pairs_of(n: int) -> int:
    """Unordered pairs of ``n`` things."""
    return n * (n - 1) // 2


def _dense_ranks(values: Floats) -> Ints:
    """0 for the smallest of all rows, then 1, ...; equal values share a rank."""
    ranks: Ints = np.unique(values, return_inverse=True)[1].astype(np.int64)
    return ranks.reshape(values.shape)


def count_pairs(first: Floats, second: Floats) -> tuple[Ints, Ints, Ints, Ints]:
    """Pairs of each row that are discordant, tied in the first, in the second, and in both.

    Sorted by the first sequence and, where that ties, by the second, a pair is discordant exactly
    where the second one falls (Knight, 1966).
    """
    a, b = _dense_ranks(first), _dense_ranks(second)
    span = int(b.max(initial=0)) + 1
    both = np.sort(a * span + b, axis=1)
    in_order = both % span
    return (
        _inversions(in_order),
        _tied_pairs(both // span),
        _tied_pairs(np.sort(in_order, axis=1)),
        _tied_pairs(both),
    )


def _tied_pairs(ordered: Ints) -> Ints:
    """Equal pairs in each row of sorted values: every value is tied with those before it."""
    rows, n = ordered.shape
    place = np.broadcast_to(np.arange(n), (rows, n))
    begins = np.ones((rows, n), dtype=bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    run_start = np.maximum.accumulate(np.where(begins, place, 0), axis=1)
    found: Ints = (place - run_start).sum(axis=1, dtype=np.int64)
    return found


def _inversions(ranks: Ints) -> Ints:
    """Pairs of each row (R, N) of small integers whose left value is larger; O(N log N) a row.

    The values are told apart bit by bit from the highest on. Among values that agree in the bits
    above, a pair is inverted by this bit where a one stands before a zero; then the zeros move
    before the ones, in their order, which makes the groups of the next bit contiguous.
    """
    rows, n = ranks.shape
    found = np.zeros(rows, dtype=np.int64)
    if n < 2:
        return found
    n_bits = int(ranks.max()).bit_length()
    row = np.repeat(np.arange(rows, dtype=np.int64), n)
    values = (row << n_bits) | ranks.ravel()  # each row is a group of its own
    starts, sizes = np.arange(0, rows * n, n), np.full(rows, n)  # of the groups
    for bit in range(n_bits - 1, -1, -1):
        one = (values >> bit) & 1
        ones_until = np.concatenate(([0], np.cumsum(one)))  # before each place, in all rows
        ones_in_group = ones_until[starts + sizes] - ones_until[starts]
        zeros_in_group = sizes - ones_in_group
        ones_before = ones_until[:-1] - np.repeat(ones_until[starts], sizes)
        crossed = (1 - one) * ones_before
        found += crossed.reshape(rows, n).sum(axis=1)
        # a zero moves ahead of the ones before it, a one behind all zeros of its group
        to_one = np.repeat(starts + zeros_in_group, sizes) + ones_before
        to = np.where(one == 1, to_one, np.arange(rows * n) - ones_before)
        moved = np.empty_like(values)
        moved[to] = values
        values = moved
        halves = np.stack((zeros_in_group, ones_in_group), axis=1).ravel()
        sizes = halves[halves > 0]
        starts = np.cumsum(sizes) - sizes
    return found
