"""One-shot with path dropout: all operators of a layer at once, some of them dropped.

Bender et al., "Understanding and Simplifying One-Shot Architecture Search", 2018.

    k_l     operators of layer l
    r       chance that all operators of a layer would be dropped at the full rate
    ρ(t)    ramp: 0 at the start, linearly to 1 after a share ``ramp`` of the run, then 1

    step t: each operator of layer l is dropped with probability ρ(t) r^(1/k_l), each by itself
            x_{l+1} = mean of what the remaining operators make of x_l
            L = CE(logits, y);   W ← SGD(W, ∇L)

The search then draws paths at random: ``[search] method = "random"``, ``evaluations = 100``.
The baseline that the Supernet Shifting paper calls OneShot is that search over a supernet trained
on uniform paths, which is ``train.strategy = "spos"``.

Our reading where the paper leaves it open: the mean where the paper has sums (a chain of single
operators is searched, so one survivor must be exactly that operator); a layer that lost all its
operators keeps one of them, each equally likely; r = 0.05. So r = 0 trains all paths together and
r = 1 after the ramp is SPOS.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from latency_tables.arch import Arch
from latency_tables.errors import UsageError
from pipeline.spaces.base import Space, Supernet
from pipeline.spaces.chain import ChainSupernet
from pipeline.strategies.options import parse_options
from pipeline.training.step import Batch, OptimizerPlan, Step, Update

Kept = Mapping[str, tuple[str, ...]]
"""Operators that remain, by label of the layer; at least one each."""


class OneShotOptions(BaseModel):
    """The table ``[train.options]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    all_dropped: float = Field(default=0.05, ge=0, le=1)
    """r: each of k operators is dropped with probability r^(1/k)."""
    ramp: float = Field(default=0.0, ge=0, le=1)
    """Share of the run over which the rate grows linearly from 0; at once where 0."""

    def rate(self, n_operators: int, progress: float) -> float:
        """Probability that an operator is dropped when this share of the run is done.

        >>> options = OneShotOptions(all_dropped=0.125, ramp=0.5)
        >>> [options.rate(3, progress) for progress in (0, 0.25, 0.5, 0.9)]
        [0.0, 0.25, 0.5, 0.5]
        """
        ramp = 1.0 if progress >= self.ramp else progress / self.ramp
        return float(ramp * self.all_dropped ** (1 / n_operators))


class OneShot:
    """One batch per step through all operators that were not dropped.

    Raises:
        UsageError: the supernet is no chain of choices.

    >>> from pipeline.spaces import load_space
    >>> space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    >>> OneShot(space, space.supernet()).options.all_dropped
    0.05
    """

    def __init__(
        self, space: Space, supernet: Supernet, options: OneShotOptions | None = None
    ) -> None:
        if not isinstance(supernet, ChainSupernet):
            raise UsageError(
                f"path dropout needs a space whose layers each choose one operator; {space.name!r} "
                "is of another kind",
                hint='train.strategy = "spos"',
            )
        self.space, self.supernet = space, supernet
        self.options = options or OneShotOptions()

    def optimizers(self) -> Mapping[str, OptimizerPlan]:
        """One optimizer over all weights, as the run file says."""
        return {"weights": OptimizerPlan()}

    def keep(self, rng: np.random.Generator, progress: float) -> Kept:
        """Drop operators of every layer for one step."""
        kept = {}
        for position in self.supernet.chain:
            if not position.searched:
                continue
            n = len(position.choices)
            remain = rng.random(n) >= self.options.rate(n, progress)
            last = int(rng.integers(n))  # drawn in any case: later layers must not depend on it
            if not remain.any():
                remain[last] = True
            kept[position.name] = tuple(
                c for c, stays in zip(position.choices, remain, strict=True) if stays
            )
        return kept

    def updates(self, step: Step) -> Iterator[Update]:
        """Yield one update of everything that was not dropped."""
        kept = self.keep(step.rng, step.progress)
        yield Update(losses=[partial(self._loss, step, kept, step.batch())])

    def _loss(self, step: Step, kept: Kept, batch: Batch) -> Tensor:
        images = batch.images.contiguous(memory_format=step.precision.memory_format)
        with step.autocast():
            logits = mixed_logits(self.supernet, images, kept)
        return step.objective(logits.float(), batch)

    def state_dict(self) -> dict[str, Any]:
        """Nothing outlives a step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take back."""


def mixed_logits(supernet: ChainSupernet, images: Tensor, kept: Kept) -> Tensor:
    """Logits (N, n_classes) where every layer is the mean of the operators that remain."""
    x = images
    for position in supernet.chain:
        archs = [Arch({position.name: c}) for c in kept.get(position.name, position.choices)]
        outputs = [supernet.block(position, arch)(x) for arch in archs]
        x = sum(outputs[1:], start=outputs[0]) / len(outputs)
    return x


def one_shot(*, space: Space, supernet: Supernet, seed: int, options: Mapping[str, Any]) -> OneShot:
    """Make the strategy. Raises UsageError for options it does not have."""
    return OneShot(space, supernet, parse_options(OneShotOptions, options, strategy="one_shot"))
