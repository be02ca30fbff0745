"""Columns that gates compare latencies with: what networks have in common, with or without costs.

Gates have to work on tables of other people, whose space is unknown, so choices alone must do.
Architectures may answer different decisions: a decision that one does not have is a value, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from latency_tables.arch import Arch, Choice
from latency_tables.cost_table import CostTable

Array = NDArray[np.float64]

MAX_CATEGORIES = 16
"""A decision with more different numbers than this is a quantity."""


def one_hot(archs: Sequence[Mapping[str, Choice]]) -> Array:
    """One column per label and choice that occurs; a label of many numbers is one column."""
    parts = []
    for label in _labels(archs):
        numbers = _numbers(archs, label)
        if numbers is not None and len(set(numbers.tolist())) > MAX_CATEGORIES:
            parts.append(numbers[:, None])
        else:
            parts.append(_indicators([repr(arch.get(label)) for arch in archs]))
    return np.concatenate(parts, axis=1) if parts else np.zeros((len(archs), 0))


def counts(archs: Sequence[Mapping[str, Choice]]) -> Array:
    """How often each choice occurs anywhere, every number, and their sum, (N, n)."""
    parts = [numbers for label in _labels(archs) if (numbers := _numbers(archs, label)) is not None]
    parts.append(np.sum(parts, axis=0) if parts else np.zeros(len(archs)))
    values = sorted({repr(choice) for arch in archs for choice in arch.values()})
    if len(values) <= MAX_CATEGORIES * 4:
        position = {value: i for i, value in enumerate(values)}
        tally = np.zeros((len(archs), len(values)))
        for row, arch in enumerate(archs):
            for choice in arch.values():
                tally[row, position[repr(choice)]] += 1.0
        parts += list(tally.T)
    return np.stack(parts, axis=1)


def costs(archs: Sequence[Arch], table: CostTable) -> Array:
    """Costs of whole networks and their logarithms, (N, 2 n_columns)."""
    found = table.batch(table.genes(archs))
    return np.concatenate([found, np.log1p(np.maximum(found, 0.0))], axis=1)


def factor_entries(archs: Sequence[Arch], table: CostTable) -> Array:
    """One column per entry of every factor that occurs: networks as sums of blocks, (N, n)."""
    genes = table.genes(archs)
    position = {decision.label: i for i, decision in enumerate(table.decisions)}
    parts = []
    for factor in table.factors:
        rows = genes[:, [position[label] for label in factor.labels]]
        parts.append(_indicators([row.tobytes() for row in rows]))
    return np.concatenate(parts, axis=1) if parts else np.zeros((len(archs), 0))


def standardised(columns: Array) -> Array:
    """Columns of mean 0 and variance 1; constant ones become 0."""
    centred = columns - columns.mean(axis=0)
    spread = centred.std(axis=0)
    tiny = 1e-9 * np.maximum(np.abs(columns).max(axis=0, initial=0.0), 1e-300)
    return np.asarray(centred / np.where(spread > tiny, spread, np.inf))


def ranks(values: Array) -> Array:
    """Ranks from 0 along the last axis; equal values share their mean rank (1-D), or any (2-D)."""
    if values.ndim > 1:
        return values.argsort(axis=-1).argsort(axis=-1).astype(np.float64)
    _, inverse, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes) - 1.0
    return np.asarray((last - (sizes - 1.0) / 2.0)[inverse])


def _indicators(values: Sequence[object]) -> Array:
    numbers: dict[object, int] = {}
    index = np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)
    return np.eye(max(len(numbers), 1))[index]


def _labels(archs: Sequence[Mapping[str, Choice]]) -> list[str]:
    return sorted({label for arch in archs for label in arch})


def _numbers(archs: Sequence[Mapping[str, Choice]], label: str) -> Array | None:
    """The values of a decision that every network answers with a number."""
    values = [arch.get(label) for arch in archs]
    numbers = [float(v) for v in values if isinstance(v, int | float)]
    return np.array(numbers) if len(numbers) == len(values) else None
