"""Sandwich rule: largest, smallest and some random subnets in one step; the largest one teaches.

Yu et al., "BigNAS: Scaling up Neural Architecture Search with Big Single-Stage Models", 2020;
the rule is that of Yu and Huang, "Universally Slimmable Networks", 2019.

    a_max, a_min    the subnets with the most and the fewest MACs
    n               random subnets (2)
    D               divergence of a subnet's answers from those of a_max (KL, or AlphaNet's)

    step:   g ← ∇ CE(N(a_max, W)(x), y)                            label smoothing, dropout
            g ← g + ∇ D(N(a, W)(x) ‖ N(a_max, W)(x))               for a_min and n uniform subnets
            W ← SGD(W, g)                                           all on the same batch

The teacher's answers are constants. Only a_max is regularised, as its loss alone sees labels.
On spaces whose layers choose among operators, a_max and a_min are the argmax and the argmin of the
table of MACs. There they share only those weights that a layer has in common, so the rule bounds
costs but trains the outermost paths in every step; it is made for elastic spaces.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from pydantic import Field

from pipeline.spaces.base import Space, Supernet
from pipeline.strategies.distillation import DistillationOptions, InPlaceTeacher
from pipeline.strategies.options import parse_options
from pipeline.training.step import OptimizerPlan, Step, Update


class SandwichOptions(DistillationOptions):
    """The table ``[train.options]``."""

    n_random: int = Field(default=2, ge=0)
    """Uniform subnets per step, beside the largest and the smallest one."""


class Sandwich:
    """One update per step: the largest subnet learns the labels, the others learn from it.

    >>> from pipeline.spaces import load_space
    >>> space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    >>> sandwich = Sandwich(space)
    >>> set(sandwich.largest.values()), set(sandwich.smallest.values())
    ({'mb6_k5'}, {'identity'})
    """

    def __init__(self, space: Space, options: SandwichOptions | None = None) -> None:
        self.space, self.options = space, options or SandwichOptions()
        table = space.cost_table()
        self.largest, self.smallest = table.maximum("macs")[1], table.minimum("macs")[1]

    def optimizers(self) -> Mapping[str, OptimizerPlan]:
        """One optimizer over all weights, as the run file says."""
        return {"weights": OptimizerPlan()}

    def updates(self, step: Step) -> Iterator[Update]:
        """Yield one update with the summed gradients of n + 2 subnets."""
        teacher = InPlaceTeacher(step, self.largest, step.batch(), self.options)
        students = [self.space.sample(step.rng) for _ in range(self.options.n_random)]
        students.append(self.smallest)
        yield Update(losses=[teacher.loss, *(partial(teacher.distil, arch) for arch in students)])

    def state_dict(self) -> dict[str, Any]:
        """Nothing outlives a step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take back."""


def sandwich(
    *, space: Space, supernet: Supernet, seed: int, options: Mapping[str, Any]
) -> Sandwich:
    """Make the strategy. Raises UsageError for options it does not have."""
    return Sandwich(space, parse_options(SandwichOptions, options, strategy="sandwich"))
