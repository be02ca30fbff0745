"""FairNAS: in one step every operator of every layer is trained exactly once.

Chu et al., "FairNAS: Rethinking Evaluation Fairness of Weight Sharing Neural Architecture
Search", 2021, Algorithm 1 (strict fairness).

    m       operators per layer, the same for all layers
    π_l     permutation of the m operators of layer l, drawn anew in every step
    a_s     model s of a step: operator π_l(s) in every layer l

    step:   π_l ~ uniform permutations, independent for every layer
            for s = 1 ... m:   g ← g + ∇ CE(N(a_s, W)(x), y)      the same batch for all models
            W ← SGD(W, g)                                          one update

Draws are without replacement, so the counts of all operators are equal after every step and
differ by at most one within it. Independent draws, as some public code makes them, only reach
this on average. What is shared by all models (stem, head) gets the sum of m gradients.

Layers with different numbers of operators are refused: no step could train all of them equally.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from latency_tables.arch import Arch
from latency_tables.errors import UsageError
from pipeline.spaces.base import Space, Supernet
from pipeline.strategies.options import parse_options
from pipeline.training.step import OptimizerPlan, Step, Update


class FairNASOptions(BaseModel):
    """The table ``[train.options]``: nothing can be chosen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FairNAS:
    """m models on one batch, every operator in exactly one of them, one update.

    Raises:
        UsageError: layers have different numbers of operators; names both groups.

    >>> from pipeline.spaces import load_space
    >>> space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    >>> FairNAS(space).m
    3
    """

    def __init__(self, space: Space) -> None:
        self.space, self.m = space, operators_per_layer(space)

    def optimizers(self) -> Mapping[str, OptimizerPlan]:
        """One optimizer over all weights, as the run file says."""
        return {"weights": OptimizerPlan()}

    def models(self, rng: np.random.Generator) -> list[Arch]:
        """The m models of one step: each operator of each layer once."""
        orders = np.stack([rng.permutation(self.m) for _ in self.space.decisions])  # (layers, m)
        return [Arch.from_genes(self.space.decisions, genes) for genes in orders.T.tolist()]

    def updates(self, step: Step) -> Iterator[Update]:
        """Yield one update whose gradient is the sum over the m models."""
        batch = step.batch()
        yield Update(losses=[partial(step.loss, arch, batch) for arch in self.models(step.rng)])

    def state_dict(self) -> dict[str, Any]:
        """Nothing outlives a step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take back."""


def operators_per_layer(space: Space) -> int:
    """m. Raises UsageError where layers differ, naming the first layer of every count."""
    first: dict[int, str] = {}
    for decision in space.decisions:
        first.setdefault(len(decision.choices), decision.label)
    if len(first) != 1:
        shown = ", ".join(f"{label!r} has {m}" for m, label in sorted(first.items()))
        raise UsageError(
            f"strict fairness needs layers with equally many operators; {shown or 'none is there'}",
            hint='train.strategy = "spos"',
        )
    return next(iter(first))


def fairnas(*, space: Space, supernet: Supernet, seed: int, options: Mapping[str, Any]) -> FairNAS:
    """Make the strategy. Raises UsageError for options it does not have or a space unfit for it."""
    parse_options(FairNASOptions, options, strategy="fairnas")
    return FairNAS(space)
