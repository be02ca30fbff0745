"""Held-out batches that take turns while a strategy trains."""

from __future__ import annotations

from pipeline.data.batches import Batch, EvalBatches
from pipeline.run.context import HELD_OUT_MB, RunContext


class HeldOutTurns:
    """Batch i is the i-th part of at most ``n_images`` calibration images, over and over.

    All batches have ``batch_size`` images: what is left over is not used. Where there are fewer
    than that, one batch holds them all.
    """

    def __init__(self, context: RunContext, n_images: int, *, batch_size: int) -> None:
        indices = context.splits.indices("calibration")[:n_images]
        size = min(batch_size, len(indices))
        self._batches = EvalBatches(
            context.dataset,
            indices[: len(indices) // size * size],
            batch_size=size,
            device=context.torch_device,
            channels_last=True,
            keep_mb=HELD_OUT_MB,
        )

    @property
    def batches_per_epoch(self) -> int:
        """Batches until the first one is seen again."""
        return len(self._batches)

    def batch(self, number: int, /) -> Batch:
        """The batch of a turn."""
        return self._batches.batch(number % len(self._batches))
