"""∇B of a supernet: levels compared with the weights now and with those q steps ago.

The three modes of :mod:`pipeline.strategies.level_shift`. Passes with w_{t−1} and w_t see the same
images, paths and random numbers; they normalise by their batch, drop nothing, and leave neither a
gradient nor a running statistic behind. Passes: 2K for stratified, 2 for score, 2 with backward
passes for pathwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from latency_tables.arch import Arch
from pipeline.strategies import level_shift
from pipeline.strategies.level_paths import ExactPaths, GeneratedSubnet, GeneratorPaths, seed_of
from pipeline.strategies.level_shift import LevelDistribution
from pipeline.strategies.passes import probing, without_dropout
from pipeline.strategies.snapshot import WeightSnapshot
from pipeline.training.step import Batch, Step

Mode = Literal["stratified", "score", "pathwise"]


class ShiftGradient:
    """Computes ∇B (K,), the same on all ranks; None where a loss is not finite."""

    def __init__(
        self,
        distribution: LevelDistribution,
        paths: ExactPaths | GeneratorPaths,
        snapshot: WeightSnapshot,
        *,
        mode: Mode,
    ) -> None:
        self.distribution, self.paths, self.snapshot = distribution, paths, snapshot
        self.n_levels, self.mode = len(distribution.logits), mode
        self.losses: list[float | None] = [None] * self.n_levels
        """Loss of every level on held-out images when it was looked at last; None: not known."""

    def __call__(self, step: Step, batch: Batch) -> Tensor | None:
        """∇B by equation 8 on one held-out batch."""
        if self.mode == "stratified":
            return self._stratified(step, batch)
        gradient = self._score(step, batch) if self.mode == "score" else self._pathwise(step, batch)
        if gradient is None:
            gradient = torch.full((self.n_levels,), math.nan, dtype=torch.float64)
        mean = step.ranks.mean(gradient)  # all ranks skip an update, or none does
        return mean if bool(mean.isfinite().all()) else None

    def _stratified(self, step: Step, batch: Batch) -> Tensor | None:
        archs = [self.paths.arch(step, level) for level in range(self.n_levels)]
        before, now = self._compared(step, archs, batch)
        if step.own_paths:
            before, now = step.ranks.mean(torch.stack([before, now]))
        self.losses = [none_unless_finite(loss) for loss in now.tolist()]
        return level_shift.stratified_gradient(self.distribution.logits, before, now)

    def _score(self, step: Step, batch: Batch) -> Tensor | None:
        noise = level_shift.gumbel(step.rng, self.n_levels)
        level = int(self.distribution.relaxed(noise).argmax())
        arch = self.paths.arch(step, level)
        before, now = (float(loss) for loss in self._compared(step, [arch], batch))
        self._note(step, level, now)
        return level_shift.score_gradient(self.distribution, noise, before, now)

    def _compared(self, step: Step, archs: Sequence[Arch], batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses (n,) of architectures with w_{t−1} and with w_t."""
        losses = [partial(step.loss, arch, batch) for arch in archs]
        with probing(step.supernet):
            now = step.spread(losses)
            with self.snapshot.in_place():
                before = step.spread(losses)
        return before.cpu(), now.cpu()

    def _pathwise(self, step: Step, batch: Batch) -> Tensor | None:
        """Algorithm 2 with the sign of equation 8; nothing but B gets a gradient."""
        paths, logits = self.paths, self.distribution.logits
        if not isinstance(paths, GeneratorPaths):
            raise TypeError("the pathwise gradient goes through a generator")
        vector = self.distribution.relaxed(level_shift.gumbel(step.rng, self.n_levels))
        level, seed = int(vector.argmax()), seed_of(step.rng)
        subnet = GeneratedSubnet(paths, vector.float().to(paths.device), seed=seed)

        def gradient() -> tuple[float, Tensor]:
            loss = F.cross_entropy(
                subnet.logits(step, batch), batch.labels, label_smoothing=step.label_smoothing
            )
            # the draw is made anew, but from the vector whose graph both gradients share
            (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
            return float(loss.detach()), found

        with without_dropout(step.supernet, track=False):
            loss, now = gradient()
            with self.snapshot.in_place():
                _, before = gradient()
        self._note(step, level, loss)
        return level_shift.difference(now, before)

    def _note(self, step: Step, level: int, loss: float) -> None:
        """Keep the loss of a level; of every rank's level, where each has drawn its own."""
        for found, value in step.collect([level, none_unless_finite(loss)]):
            self.losses[found] = value


def none_unless_finite(value: float) -> float | None:
    """JSON has neither nan nor infinity."""
    return value if math.isfinite(value) else None
