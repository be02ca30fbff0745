"""The cost of a policy, with gradients: the multilinear extension of a cost table.

A cost table is a sum of factors, each of which looks at a few decisions. Where a policy holds
probabilities p instead of choices, a factor gives Σ value(c₁, …, cₙ) · p₁(c₁) · … · pₙ(cₙ), the
expected value for independent decisions. At one-hot vectors that is the table's cost exactly, for
any space, and for an additive latency table as well as for MACs. Costs are *total* costs of a
choice and multiply one-hot vectors, never the cumulative masks of widths (ShiftNAS pairs those with
incremental costs: same value, same gradient).

Numbers are float64: MACs add up without rounding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latency_tables.cost_table import CostTable
from latency_tables.errors import SpaceError
from pipeline.spaces.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """F factors of equal shape (n₁, …, nₖ): ``values`` (F, n₁·…·nₖ₋₁, nₖ) and, for each axis, where
    its choices lie in the row of all one-hot vectors: k tensors of shape (F, nᵢ)."""

    values: Tensor
    positions: tuple[Tensor, ...]

    def to(self, device: torch.device) -> _Group:
        return _Group(
            values=self.values.to(device),
            positions=tuple(p.to(device) for p in self.positions),
        )


class SoftCost:
    """One column of a cost table as a differentiable function.

    Raises:
        SpaceError: there is no such column, or it does not add up (a peak of memory).

    >>> from latency_tables.arch import Decision
    >>> from latency_tables.cost_table import Column, Factor
    >>> table = CostTable(
    ...     [Decision(label="block", choices=("k3", "k5", "k7"))],
    ...     [Column(name="macs", unit="MAC")],
    ...     [Factor(name="block", labels=("block",), values=np.array([[1.0], [2.0], [3.0]]))],
    ... )
    >>> cost = SoftCost(table, "macs")
    >>> cost(Policy.of({"block": "k5"}, table.decisions)).item()
    2.0
    """

    def __init__(self, table: CostTable, column: str) -> None:
        self.table, self.column = table, column
        found = {c.name: c for c in table.columns}.get(column)
        if found is None and column not in table.column_names():
            raise SpaceError(
                f"the cost table has no column {column!r}; known: {', '.join(table.column_names())}"
            )
        if found is None or found.reduce != "sum":
            sums = ", ".join(c.name for c in table.columns if c.reduce == "sum")
            raise SpaceError(
                f"column {column!r} is the largest of its parts, not their sum, so it has no "
                f"differentiable form; columns that add up: {sums}"
            )
        self.unit = found.unit
        self._constant, groups = _grouped(table, column)
        self._groups = {torch.device("cpu"): groups}

    def __call__(self, policy: Policy) -> Tensor:
        """Cost of one policy: a scalar, float64."""
        return self.of(policy.one_hot)

    def of(self, one_hot: Mapping[str, Tensor]) -> Tensor:
        """Costs (...), float64, of vectors (..., n_choices) by label; they need not be one-hot."""
        row = torch.cat([one_hot[d.label] for d in self.table.decisions], dim=-1).double()
        leading = row.shape[:-1]
        row = row.reshape(-1, row.shape[-1])  # (B, sum of choices)
        total = torch.full(row.shape[:1], self._constant, dtype=row.dtype, device=row.device)
        for group in self._on(row.device):
            *others, last = (row[:, positions] for positions in group.positions)  # k of (B, F, n)
            value = torch.einsum("fmn,bfn->bfm", group.values, last)
            for weights in reversed(others):
                value = value.reshape(*value.shape[:2], -1, weights.shape[-1])
                value = torch.einsum("bfmn,bfn->bfm", value, weights)
            total = total + value.sum(dim=(1, 2))  # of (B, F, 1)
        return total.reshape(leading)

    def _on(self, device: torch.device) -> list[_Group]:
        if device not in self._groups:
            cpu = self._groups[torch.device("cpu")]
            self._groups[device] = [group.to(device) for group in cpu]
        return self._groups[device]


def _grouped(table: CostTable, column: str) -> tuple[float, list[_Group]]:
    """The sum of the constant factors, and the others by shape."""
    starts, start = {}, 0
    for decision in table.decisions:
        starts[decision.label] = start
        start += len(decision.choices)
    constant = 0.0
    members = defaultdict(list)
    for labels, values in table.scoped(column):
        if labels:
            members[values.shape].append((labels, values))
        else:
            constant += float(values)
    groups = []
    for shape, factors in members.items():
        positions = tuple(
            torch.tensor([[starts[labels[axis]] + j for j in range(n)] for labels, _ in factors])
            for axis, n in enumerate(shape)
        )
        stacked = torch.from_numpy(np.stack([v.reshape(-1, shape[-1]) for _, v in factors]))
        groups.append(_Group(values=stacked, positions=positions))
    return constant, groups
