"""The resource loss of ShiftNAS: architectures of a level must cost what the level says.

    L_RC = λ · mean over draws of ((cost − C) / C_range)²

Zhang et al., 2023. Two-sided: an architecture that is too cheap misses its level as well. The paper
gives neither a scale nor λ. Here costs are divided by C_range, the distance between the lowest and
the highest target, and λ follows a rule: it grows while the running mean of |cost − C| / C is above
a tolerance, so that the task loss cannot pull levels off their targets, and shrinks back towards
its first value while the mean is below, so that the task decides as much as it can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from latency_tables.errors import SpaceError
from pipeline.generator.levels import check_targets

MEMORY = 0.95
"""Share of the running mean that one observation leaves."""
STEP = 1.02
"""Factor of λ per observation."""
MAX_GROWTH = 1e4
"""λ stays below this multiple of its first value."""


class ResourceLoss:
    """λ and the loss.

    Args:
        targets: costs of the levels, rising; a single level is scaled by its own cost.
        weight: first and smallest value of λ.
        tolerance: of the running mean of |cost − C| / C.

    >>> import torch
    >>> loss = ResourceLoss([100.0, 300.0], weight=2.0)
    >>> round(loss(torch.tensor([110.0, 310.0]), torch.tensor([100.0, 300.0])).item(), 6)
    0.005
    >>> round(loss.mean_error, 4), loss.weight
    (0.0667, 2.04)
    """

    def __init__(
        self, targets: Sequence[float], *, weight: float = 1.0, tolerance: float = 0.02
    ) -> None:
        costs = check_targets(targets)
        if weight <= 0 or tolerance <= 0:
            raise SpaceError(
                f"the resource loss needs a positive weight and tolerance, not {weight:g} and "
                f"{tolerance:g}"
            )
        self.range = costs[-1] - costs[0] or costs[0]
        self.first_weight = self.weight = float(weight)
        self.tolerance = tolerance
        self._mean: float | None = None

    @property
    def mean_error(self) -> float:
        """Running mean of |cost − C| / C; infinite before the first observation."""
        return float("inf") if self._mean is None else self._mean

    def __call__(self, cost: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar, of costs (N,) and their targets (N,).

        Afterwards λ follows its rule (waits for the device).
        """
        loss = self.weight * ((cost - target) / self.range).square().mean()
        self.observe(((cost.detach() - target).abs() / target).mean().item())
        return loss

    def observe(self, error: float) -> None:
        """Take one mean of |cost − C| / C into account."""
        self._mean = error if self._mean is None else MEMORY * self._mean + (1 - MEMORY) * error
        factor = STEP if self._mean > self.tolerance else 1 / STEP
        most = MAX_GROWTH * self.first_weight
        self.weight = min(max(self.weight * factor, self.first_weight), most)

    def state_dict(self) -> dict[str, Any]:
        """λ and the running mean, JSON-ready."""
        return {"weight": self.weight, "mean": self._mean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where :meth:`state_dict` was taken."""
        self.weight, self._mean = state["weight"], state["mean"]
