"""SPOS: in one step, one uniformly drawn path is trained on one batch.

Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling", 2020,
section 3.2, equation 6:

    W_A = argmin_W  E_{a ~ Γ(A)} [ L_train(N(a, W(a))) ]      Γ = uniform over all paths

    step:   a ~ U(A)                    every genome equally likely
            L = CE(N(a, W(a))(x), y)    one batch, label smoothing 0.1
            W(a) ← SGD(W(a), ∇L)        nothing off the path moves

The authors' code draws paths differently from the paper: one of seven bins of MACs between 290
and 360 million, uniformly, then a path of that bin (redrawn until one fits, at most 500 times).
``macs_range = [290e6, 360e6]`` with ``macs_bins = 7`` does the same; ``macs_range = "auto"`` suits
any space. Deviation: the path is drawn exactly, so no draw fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from latency_tables.arch import Arch
from latency_tables.errors import UsageError
from latency_tables.levels import cost_levels, split_range
from latency_tables.sampler import make_sampler
from pipeline.spaces.base import Space, Supernet
from pipeline.strategies.options import parse_options
from pipeline.training.step import OptimizerPlan, Step, Update

PathSampler = Callable[[np.random.Generator], Arch]


class SPOSOptions(BaseModel):
    """The table ``[train.options]``; nothing given means uniform paths."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    macs_range: tuple[float, float] | Literal["auto"] | None = None
    """Lowest and highest MACs of a path. "auto": all but the 1 % of the paths at either end."""
    macs_bins: int = Field(default=7, ge=1)
    """Bins of equal width that share the range; each is drawn equally often."""


class SPOS:
    """One path per step, drawn by ``sample``: uniformly unless something else is given.

    >>> from pipeline.spaces import load_space
    >>> space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    >>> list(SPOS(space).optimizers())
    ['weights']
    """

    def __init__(self, space: Space, sample: PathSampler | None = None) -> None:
        self.space = space
        self.sample = sample or space.sample

    def optimizers(self) -> Mapping[str, OptimizerPlan]:
        """One optimizer over all weights, as the run file says."""
        return {"weights": OptimizerPlan()}

    def updates(self, step: Step) -> Iterator[Update]:
        """Yield one update of one path."""
        arch = self.sample(step.rng)
        yield Update(losses=[partial(step.loss, arch, step.batch())])

    def state_dict(self) -> dict[str, Any]:
        """Nothing outlives a step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take back."""


def stratified(
    space: Space, macs_range: tuple[float, float] | Literal["auto"], n_bins: int
) -> PathSampler:
    """Draw one of ``n_bins`` equal bins of MACs, [low, high) in all, then a path of it, uniformly.

    Raises:
        UsageError: the range is empty, or a bin holds no path; the message says which.
    """
    table = space.cost_table()
    sampler = make_sampler(table, "macs")
    if macs_range == "auto":
        bins = [(level.low, level.high) for level in cost_levels(sampler, n_bins)]
    else:
        low, high = macs_range
        if not low < high:
            raise UsageError(
                f"macs_range = [{low:g}, {high:g}] is empty: the lower end comes first"
            )
        bins = split_range(low, high, n_bins)
    for bin_low, bin_high in bins:
        if not sampler.count(bin_low, bin_high):
            raise UsageError(
                f"no path has between {bin_low:,.0f} and {bin_high:,.0f} MACs; paths of this space "
                f"have {table.minimum('macs')[0]:,.0f} to {table.maximum('macs')[0]:,.0f}",
                hint="fewer train.options.macs_bins, or another macs_range",
            )

    def sample(rng: np.random.Generator) -> Arch:
        bin_low, bin_high = bins[int(rng.integers(n_bins))]
        (arch,) = sampler.sample_archs(rng, bin_low, bin_high, 1)
        return arch

    return sample


def spos(*, space: Space, supernet: Supernet, seed: int, options: Mapping[str, Any]) -> SPOS:
    """Make the strategy. Raises UsageError for options it does not have."""
    given = parse_options(SPOSOptions, options, strategy="spos")
    if given.macs_range is None:
        return SPOS(space)
    return SPOS(space, stratified(space, given.macs_range, given.macs_bins))
