"""What was counted when a subnet classified some images; torch-free, so that it can be journalled.

Counts of further images are added, so a subnet that is scored in several parts (successive halving)
is never shown an image twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Right answers and summed loss of one subnet on the images that it saw so far.

    ``loss_sum`` is the summed cross entropy in nats. ``n_calibration_images`` are those behind its
    batch-norm statistics, ``bn_policy`` says what these are.

    >>> first = Tally(n_right=6, loss_sum=4.0, n_images=10)
    >>> both = first + Tally(n_right=3, loss_sum=8.0, n_images=10)
    >>> both.accuracy, both.loss, both.n_images
    (0.45, 0.6, 20)
    """

    n_right: int
    loss_sum: float
    n_images: int
    n_calibration_images: int = 0
    bn_policy: str = ""

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 ... 1."""
        return self.n_right / self.n_images

    @property
    def loss(self) -> float:
        """Mean cross entropy in nats."""
        return self.loss_sum / self.n_images

    def __add__(self, other: Tally) -> Tally:
        """Both together; how the statistics came about is taken from this one."""
        return Tally(
            n_right=self.n_right + other.n_right,
            loss_sum=self.loss_sum + other.loss_sum,
            n_images=self.n_images + other.n_images,
            n_calibration_images=self.n_calibration_images,
            bn_policy=self.bn_policy,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; a loss that is not a number becomes null."""
        loss_sum = self.loss_sum if math.isfinite(self.loss_sum) else None
        return {**asdict(self), "loss_sum": loss_sum}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Tally:
        """Read what :meth:`to_dict` wrote."""
        loss_sum = math.nan if data["loss_sum"] is None else float(data["loss_sum"])
        return cls(
            n_right=int(data["n_right"]),
            loss_sum=loss_sum,
            n_images=int(data["n_images"]),
            n_calibration_images=int(data["n_calibration_images"]),
            bn_policy=str(data["bn_policy"]),
        )
