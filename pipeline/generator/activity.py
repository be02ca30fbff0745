"""Which decisions of an architecture mean something: beyond its depth, for example, none does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from latency_tables.arch import Arch, Decision


class Canonical(Protocol):
    """The part of a :class:`~pipeline.spaces.base.Space` that is needed here."""

    @property
    def decisions(self) -> tuple[Decision, ...]: ...
    def canonical(self, arch: Arch) -> Arch: ...


def active_decisions(space: Canonical, archs: Sequence[Arch]) -> Tensor:
    """Whether each decision matters: bool (N, n_decisions).

    A decision is inactive in an architecture where all of its choices, everything else unchanged,
    lead to one canonical form.

    >>> from pipeline.spaces import load_space
    >>> space = load_space("autoformer", preset="micro", input_shape=(3, 8, 8), n_classes=10)
    >>> arch = Arch({d.label: d.choices[0] for d in space.decisions})
    >>> inactive = ~active_decisions(space, [arch])[0]
    >>> [d.label for d, off in zip(space.decisions, inactive, strict=True) if off]
    ['block03_heads', 'block03_mlp_ratio']
    """
    rows = [[_matters(space, arch, decision) for decision in space.decisions] for arch in archs]
    return torch.tensor(rows, dtype=torch.bool).reshape(len(rows), len(space.decisions))


def _matters(space: Canonical, arch: Arch, decision: Decision) -> bool:
    forms = (space.canonical(arch.replace(**{decision.label: c})) for c in decision.choices)
    first = next(forms)
    return any(form != first for form in forms)
