"""Few-shot NAS: one supernet for all subnets first, then one for each part of the space.

Zhao et al., "Few-shot Neural Architecture Search", 2021. Weights that fewer subnets share rank them
better; the space is split by the operators of an edge:

    l       decisions that split the space (one edge of NAS-Bench-201: 5 parts)
    T       steps of the run;  r share of the one-shot phase (600 of 600 + 5 · 150 epochs)

    t < rT:     a ~ U(A)            W_0 ← SGD(W_0, ∇ CE(N(a, W_0)(x), y))           (SPOS)
    t = rT:     W_p ← W_0           for every part p
    t ≥ rT:     p = t mod parts     a ~ U(A_p)
                                    W_p ← SGD(W_p, ∇ CE(N(a, W_p)(x), y))

Every subnet is scored with the weights of its own part.

Our reading: the parts take turns instead of being trained one after the other, so all of them see
the same end of one learning-rate schedule; the authors restart it for every part. The optimizer's
momentum starts anew in all parts but the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from latency_tables.arch import Arch
from pipeline.spaces.base import Space, Supernet
from pipeline.strategies.options import parse_options
from pipeline.supernet.split import SplitSupernet
from pipeline.training.step import OptimizerPlan, Step, Update

ONE_SHOT_SHARE = 600 / (600 + 5 * 150)


class FewShotOptions(BaseModel):
    """The table ``[train.options]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: tuple[str, ...] = ()
    """l: decisions whose choices divide the space; its first one where none is given."""
    one_shot_share: float = Field(default=ONE_SHOT_SHARE, ge=0, lt=1)
    """r: share of the steps before the space is divided."""


class FewShot:
    """SPOS until the space is divided, then SPOS within the parts in turn.

    ``supernet`` is what is trained and saved: all parts.

    >>> from pipeline.spaces import load_space
    >>> space = load_space("nasbench201", preset="tiny", input_shape=(3, 8, 8), n_classes=10)
    >>> len(FewShot(space, space.supernet()).supernet.parts)
    5
    """

    def __init__(
        self, space: Space, supernet: Supernet, options: FewShotOptions | None = None
    ) -> None:
        self.space, self.options = space, options or FewShotOptions()
        labels = self.options.split or (space.decisions[0].label,)
        self.supernet = SplitSupernet(space, labels, supernet)

    def optimizers(self) -> Mapping[str, OptimizerPlan]:
        """One optimizer over the weights of all parts, as the run file says."""
        return {"weights": OptimizerPlan()}

    def updates(self, step: Step) -> Iterator[Update]:
        """Yield one update of one path in one supernet."""
        first_divided = math.ceil(self.options.one_shot_share * step.n_steps)
        self.supernet.divided = step.index >= first_divided
        if step.index == first_divided:
            self.supernet.divide()
        arch = self.space.sample(step.rng)
        if self.supernet.divided:
            arch = self._in_part(arch, step.index - first_divided)
        yield Update(losses=[partial(step.loss, arch, step.batch())])

    def _in_part(self, arch: Arch, turn: int) -> Arch:
        """``arch`` with the choices of the part whose turn it is."""
        parts = self.supernet.combinations
        return arch.replace(
            **dict(zip(self.supernet.labels, parts[turn % len(parts)], strict=True))
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing outlives a step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take back."""


def fewshot(*, space: Space, supernet: Supernet, seed: int, options: Mapping[str, Any]) -> FewShot:
    """Make the strategy. Raises UsageError for options it does not have."""
    return FewShot(space, supernet, parse_options(FewShotOptions, options, strategy="fewshot"))
