"""SUMNAS: train some paths one after the other, then go a part of the way that they went together.

Ha et al., "SUMNAS: Supernet with Unbiased Meta-Features for Neural Architecture Search", 2022.
A supernet forgets one path when it trains the next. A step in the manner of Reptile
(Nichol et al., 2018) favours directions on which the paths agree:

    W       weights before the step
    n       inner updates (4)
    ε       outer rate (0.5)

    step:   W_0 = W
            for i = 1 ... n:   a_i ~ U(A);   W_i = SGD(W_{i-1}, ∇ CE(N(a_i, W_{i-1})(x_i), y_i))
            W ← W + ε (W_n − W)

ε = 1 is SPOS with n updates per step. Inner updates are those of the run file: optimizer, schedule,
clipping.

Our reading where the paper leaves it open: n = 4 and ε = 0.5; every inner update has a path and a
batch of its own; the momentum of the inner updates lives on from step to step (``momentum = 0`` in
the run file gives the plain form); running statistics of batch norms stay where the inner passes
left them, because they are measured, not learnt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from pipeline.spaces.base import Space, Supernet
from pipeline.strategies.options import parse_options
from pipeline.training.config import OptimizerConfig, ScheduleConfig
from pipeline.training.step import OptimizerPlan, Step, Update


class SUMNASOptions(BaseModel):
    """The table ``[train.options]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    inner_steps: int = Field(default=4, ge=1)
    """n: paths that a step trains one after the other."""
    outer_rate: float = Field(default=0.5, gt=0, le=1)
    """ε: share of their common way that the weights go."""


class SUMNAS:
    """n inner updates from W to W_n, then an outer one from W by ε (W_n − W).

    >>> from pipeline.spaces import load_space
    >>> space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    >>> sorted(SUMNAS(space).optimizers())
    ['outer', 'weights']
    """

    def __init__(self, space: Space, options: SUMNASOptions | None = None) -> None:
        self.space, self.options = space, options or SUMNASOptions()

    def optimizers(self) -> Mapping[str, OptimizerPlan]:
        """The run file's for inner updates; plain descent at rate ε for the outer one."""
        descent = OptimizerConfig(lr=self.options.outer_rate, momentum=0.0, weight_decay=0.0)
        outer = OptimizerPlan(optimizer=descent, schedule=ScheduleConfig(kind="constant"))
        return {"weights": OptimizerPlan(), "outer": outer}

    def updates(self, step: Step) -> Iterator[Update]:
        """Yield n inner updates, go back to W, yield the outer one."""
        start = weights_of(step.supernet)
        for _ in range(self.options.inner_steps):
            arch = self.space.sample(step.rng)
            yield Update(losses=[partial(step.loss, arch, step.batch())])
        # W − W_n, which is zero where no path went
        back = {k: start[k] - end for k, end in weights_of(step.supernet).items()}
        with torch.no_grad():
            for name, weights in start.items():
                step.supernet.get_parameter(name).copy_(weights)
        yield Update(optimizer="outer", gradients=back)

    def state_dict(self) -> dict[str, Any]:
        """Nothing outlives a step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take back."""


def weights_of(supernet: Supernet) -> dict[str, Tensor]:
    """Copies of all trainable parameters by name."""
    return {k: p.detach().clone() for k, p in supernet.named_parameters() if p.requires_grad}


def sumnas(*, space: Space, supernet: Supernet, seed: int, options: Mapping[str, Any]) -> SUMNAS:
    """Make the strategy. Raises UsageError for options it does not have."""
    return SUMNAS(space, parse_options(SUMNASOptions, options, strategy="sumnas"))
