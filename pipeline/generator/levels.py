"""Levels of cost as inputs of the generator: a target is a point between its two neighbours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from latency_tables.errors import LimitError, SpaceError


def check_targets(targets: Sequence[float]) -> tuple[float, ...]:
    """The targets of the levels as plain numbers. Raises SpaceError unless positive and rising."""
    plain = tuple(float(target) for target in targets)
    rising = all(a < b for a, b in itertools.pairwise(plain))
    if not (plain and rising and plain[0] > 0 and math.isfinite(plain[-1])):
        raise SpaceError(
            f"levels have the targets {', '.join(f'{t:g}' for t in plain) or 'none'}; they must be "
            "positive, finite and rising"
        )
    return plain


def level_weights(targets: Sequence[float], target: float, *, clamp: bool = False) -> Tensor:
    """Weights (K,) of the K levels whose mean is ``target``: linear between neighbours.

    At the target of a level this is its one-hot vector, so the generator, whose first input is the
    weighted sum of the levels' embeddings, interpolates between embeddings.

    Args:
        targets: costs of the levels, rising.
        target: a cost.
        clamp: take the lowest or highest level for a target outside of them.

    Raises:
        LimitError: the target is outside of the levels and ``clamp`` is False; names their range.

    >>> level_weights([10.0, 20.0, 40.0], 25.0).tolist()
    [0.0, 0.75, 0.25]
    >>> level_weights([10.0, 20.0, 40.0], 50.0, clamp=True).tolist()
    [0.0, 0.0, 1.0]
    >>> level_weights([10.0, 20.0, 40.0], 50.0)
    Traceback (most recent call last):
    latency_tables.errors.LimitError: target 50 is outside of the generator's levels, 10 to 40
    """
    costs = check_targets(targets)
    if not costs[0] <= target <= costs[-1]:
        if not clamp or math.isnan(target):
            raise LimitError(
                f"target {target:g} is outside of the generator's levels, "
                f"{costs[0]:g} to {costs[-1]:g}"
            )
        target = min(max(target, costs[0]), costs[-1])
    weights = torch.zeros(len(costs))
    above = next(i for i, cost in enumerate(costs) if target <= cost)
    if target == costs[above]:
        weights[above] = 1.0
        return weights
    low, high = costs[above - 1], costs[above]
    share = (target - low) / (high - low)
    weights[above - 1], weights[above] = 1.0 - share, share
    return weights
