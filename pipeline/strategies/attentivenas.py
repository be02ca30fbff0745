"""AttentiveNAS: a sandwich whose middle is picked on purpose, the best or the worst of a few.

Wang et al., "AttentiveNAS: Improving Neural Architecture Search via Attentive Sampling", 2021.

    a_max, a_min    the subnets with the most and the fewest MACs
    π(f)            share of all subnets in bin f of MACs
    n, k            attentive subnets of a step (2), candidates for each (3)

    step:   L(a) = CE(N(a, W)(x), y)                         no gradient, no dropout
            for i = 1 ... n:   f ~ π;   a¹ ... aᵏ ~ U(subnets of bin f)
                               a_i = argmin L(aʲ)  (BestUp)  or argmax L(aʲ)  (WorstUp)
            g ← ∇ CE(N(a_max, W)(x), y) + Σ ∇ D(N(a, W)(x) ‖ N(a_max, W)(x))   a_1 ... a_n, a_min
            W ← SGD(W, clip(g))                               every element of g in ±1

Deviation: the candidates of a bin are drawn exactly uniformly from the cost table, and so is f. The
authors' code draws each dimension for itself from shares estimated beforehand, read from a text
file, and redraws until the bin is hit, at most 100 times.

Our reading: bins are a fiftieth of the range of MACs unless ``macs_step`` says otherwise (paper:
25 million); the candidates of a step are scored on the images it trains on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from latency_tables.arch import Arch
from latency_tables.sampler import make_sampler
from pipeline.spaces.base import Space, Supernet
from pipeline.strategies.distillation import DistillationOptions, InPlaceTeacher
from pipeline.strategies.options import parse_options
from pipeline.strategies.passes import probing, subnet_logits
from pipeline.training.step import Batch, OptimizerPlan, Step, Update

N_BINS = 50


class AttentiveNASOptions(DistillationOptions):
    """The table ``[train.options]``; the defaults are the paper's but for ``macs_step``."""

    pick: Literal["best", "worst"] = "best"
    """BestUp trains the candidate with the lowest loss, WorstUp that with the highest."""
    attentive: int = Field(default=2, ge=1)
    """Subnets of a step that are picked."""
    candidates: int = Field(default=3, ge=1)
    """Subnets of one bin among which each is picked."""
    macs_step: float | None = Field(default=None, gt=0)
    """Width of a bin of MACs; a fiftieth of the range where not given."""
    clip: float = Field(default=1.0, gt=0)
    """Upper bound of the size of each gradient element."""


class AttentiveNAS:
    """One update per step: largest, picked and smallest subnets; the largest one teaches.

    >>> from pipeline.spaces import load_space
    >>> space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    >>> low, high = AttentiveNAS(space).bin_of(space.cost_table().minimum("macs")[1])
    >>> low == space.cost_table().minimum("macs")[0]
    True
    """

    def __init__(self, space: Space, options: AttentiveNASOptions | None = None) -> None:
        self.space, self.options = space, options or AttentiveNASOptions()
        self.table = space.cost_table()
        self.lowest, self.smallest = self.table.minimum("macs")
        highest, self.largest = self.table.maximum("macs")
        # a whole number: MACs are too, so every subnet lies exactly in one bin
        self.macs_step = math.ceil(self.options.macs_step or (highest - self.lowest) / N_BINS) or 1
        self.sampler = make_sampler(self.table, "macs")

    def optimizers(self) -> Mapping[str, OptimizerPlan]:
        """One optimizer over all weights, as the run file says."""
        return {"weights": OptimizerPlan()}

    def updates(self, step: Step) -> Iterator[Update]:
        """Yield one update with the summed, clipped gradients of n + 2 subnets."""
        batch = step.batch()
        teacher = InPlaceTeacher(step, self.largest, batch, self.options)
        students = [self._pick(step, batch) for _ in range(self.options.attentive)]
        students.append(self.smallest)
        yield Update(
            losses=[teacher.loss, *(partial(teacher.distil, arch) for arch in students)],
            clip_value=self.options.clip,
        )

    def bin_of(self, arch: Arch) -> tuple[float, float]:
        """Lowest and highest MACs of the bin that a subnet lies in; bins count from a_min."""
        index = math.floor((self.table.cost(arch, "macs") - self.lowest) / self.macs_step)
        low = self.lowest + index * self.macs_step
        return low, math.nextafter(low + self.macs_step, low)

    def propose(self, rng: np.random.Generator) -> list[Arch]:
        """k subnets of one bin. The bin of a uniform subnet is a bin drawn from π."""
        low, high = self.bin_of(self.space.sample(rng))
        return self.sampler.sample_archs(rng, low, high, self.options.candidates)

    def _pick(self, step: Step, batch: Batch) -> Arch:
        archs = self.propose(step.rng)
        with probing(step.supernet):
            losses = torch.stack(
                [F.cross_entropy(subnet_logits(step, a, batch), batch.labels) for a in archs]
            )
        losses = step.agree(losses)
        picked = losses.argmin() if self.options.pick == "best" else losses.argmax()
        return archs[int(picked)]

    def state_dict(self) -> dict[str, Any]:
        """Nothing outlives a step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take back."""


def attentivenas(
    *, space: Space, supernet: Supernet, seed: int, options: Mapping[str, Any]
) -> AttentiveNAS:
    """Make the strategy. Raises UsageError for options it does not have."""
    return AttentiveNAS(space, parse_options(AttentiveNASOptions, options, strategy="attentivenas"))
