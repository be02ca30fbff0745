"""What the benchmark knows about a space and about one column of latencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from latency_tables.arch import Choice, Decision
from latency_tables.cost_table import CostTable

Array = NDArray[np.float64]
Genes = NDArray[np.int64]
Columns = Mapping[str, NDArray[np.generic]]
"""A file: column → values (N,)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Space:
    """A space described by its layers; ``stages`` groups factors of the table."""

    name: str
    table: CostTable
    stages: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Series:
    """Latencies of N networks on one device with one runtime.

    ``groups`` (N,) numbers the networks up to isomorphism, ``half_ms`` (N,) is half the width of a
    95 % interval where the source tells the spread, ``notes`` what was left out.
    """

    name: str
    space: Space
    genes: Genes
    latency_ms: Array
    groups: Genes
    half_ms: Array | None = None
    notes: tuple[str, ...] = ()


def series_of(
    name: str,
    space: Space,
    genes: Genes,
    latency_ms: Array,
    *,
    groups: Genes | None = None,
    half_ms: Array | None = None,
    notes: tuple[str, ...] = (),
) -> Series:
    """A series without the networks whose latency is missing; equal genomes are one group."""
    known = np.isfinite(latency_ms)
    if groups is None:
        groups = np.unique(genes, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    if not known.all():
        notes = (*notes, f"{int((~known).sum())} networks without a value left out")
    return Series(
        name=name,
        space=space,
        genes=genes[known],
        latency_ms=latency_ms[known].astype(np.float64),
        groups=groups[known],
        half_ms=None if half_ms is None else half_ms[known],
        notes=notes,
    )


def indices(values: NDArray[np.generic], choices: Sequence[Choice]) -> Genes:
    """Choice indices (N,) of values (N,). Raises ValueError naming a value that is no choice."""
    order = {choice: i for i, choice in enumerate(choices)}
    try:
        return np.array([order[value] for value in values.tolist()], dtype=np.int64)
    except KeyError as error:
        raise ValueError(f"value {error} is none of {list(choices)}") from None


def decision(label: str, choices: Sequence[Choice]) -> Decision:
    """A decision of a space."""
    return Decision(label=label, choices=tuple(choices))
