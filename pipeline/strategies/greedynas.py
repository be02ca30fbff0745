"""GreedyNAS: draw some paths, score them on a few held-out images, train the best ones only.

You et al., "GreedyNAS: Towards Fast One-Shot NAS with Greedy Supernet", 2020.

    m, k      paths drawn in a step (10), paths trained (5)
    D_val     a small fixed set of held-out images (1,000): the split "scoring"
    P         candidate pool: the best-scored paths so far, at most 1,000, best = lowest loss
    ε(t)      share of draws that come from P: 0 for the first 10,000 of 150,000 steps, then
              growing linearly to 0.8 at step 144,360

    step t:   a_1 ... a_m:  from P with probability ε(t), else uniform over all paths
              l_i = CE(N(a_i, W), D_val)             no gradient
              P ← the best of P and all (a_i, l_i) whose MACs keep the limit
              for the k lowest l_i:  W ← SGD(W, ∇ CE(N(a_i, W)(x_i), y_i))    a batch for each path

The pool is also the first population of the search: ``candidates``.

Our reading where the paper leaves it open:

* the paths of a step are different ones, so each step trains k different paths. Public code kept
  the first of its best list for ever; here nothing of a draw outlives its step but the pool;
* probing passes use batch statistics and no dropout, and leave the running statistics alone;
* a path that is drawn again replaces its loss in the pool, so old losses do not stay;
* the share rises from ``epsilon_start``, whatever that is, to ``epsilon_end``;
* training ends after the planned steps. The paper stops where the pool no longer changes; how much
  it changed is in ``pool_change``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from latency_tables.arch import Arch
from latency_tables.errors import UsageError
from pipeline.spaces.base import Space, Supernet
from pipeline.strategies.options import parse_options
from pipeline.strategies.passes import probing
from pipeline.training.step import OptimizerPlan, Step, Update

Genes = tuple[int, ...]


class GreedyNASOptions(BaseModel):
    """The table ``[train.options]``; the defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    drawn: int = Field(default=10, ge=1)
    """Paths that a step draws and scores."""
    trained: int = Field(default=5, ge=1)
    """Best ones among them, each trained on a batch of its own."""
    pool_size: int = Field(default=1000, ge=1)
    """Best-scored paths that are kept."""
    epsilon_start: float = Field(default=0.0, ge=0, le=1)
    """Share of draws from the pool up to ``epsilon_from``."""
    epsilon_end: float = Field(default=0.8, ge=0, le=1)
    """Share of draws from the pool from ``epsilon_until`` on."""
    epsilon_from: float = Field(default=10_000 / 150_000, ge=0, le=1)
    """Share of the run after which the share of the pool begins to change, linearly."""
    epsilon_until: float = Field(default=144_360 / 150_000, ge=0, le=1)
    """Share of the run after which it has reached ``epsilon_end``."""
    macs_limit: float | None = Field(default=None, gt=0)
    """The pool admits no path with more MACs (the paper: 330e6)."""
    scoring_images: int = Field(default=1000, ge=1)
    """Held-out images that paths are scored on."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.trained > self.drawn:
            raise ValueError(f"trained = {self.trained} is more than drawn = {self.drawn}")
        if self.epsilon_until < self.epsilon_from:
            raise ValueError(
                f"epsilon_until = {self.epsilon_until} comes before epsilon_from = "
                f"{self.epsilon_from}"
            )
        return self

    def epsilon(self, progress: float) -> float:
        """ε: share of draws from the pool when this share of the run is done.

        >>> options = GreedyNASOptions()
        >>> steps = (0, 10_000, 77_180, 144_360, 150_000)
        >>> [round(options.epsilon(t / 150_000), 9) for t in steps]
        [0.0, 0.0, 0.4, 0.8, 0.8]
        """
        if progress < self.epsilon_from:
            return self.epsilon_start
        if progress >= self.epsilon_until:
            return self.epsilon_end
        way = (progress - self.epsilon_from) / (self.epsilon_until - self.epsilon_from)
        return self.epsilon_start + way * (self.epsilon_end - self.epsilon_start)


class CandidatePool:
    """P: the paths with the lowest loss, best first.

    >>> pool = CandidatePool(2)
    >>> pool.add({(0, 1): 0.9, (1, 1): 0.5, (0, 0): 0.7})
    >>> pool.losses
    {(1, 1): 0.5, (0, 0): 0.7}
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.losses: dict[Genes, float] = {}

    def add(self, scored: Mapping[Genes, float]) -> None:
        """Take over new losses, those of known paths too, and keep the lowest; ties: the older."""
        merged = self.losses | dict(scored)
        finite = [(genes, loss) for genes, loss in merged.items() if math.isfinite(loss)]
        self.losses = dict(sorted(finite, key=lambda item: item[1])[: self.size])


class GreedyNAS:
    """m paths scored, the best k trained one after the other, the best of all kept in the pool.

    The split ``"scoring"`` must give the same batch every time, or losses cannot be compared.

    Raises:
        UsageError: a step needs more different paths than there are, or no path keeps the limit.

    >>> from pipeline.spaces import load_space
    >>> space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    >>> GreedyNAS(space).splits
    {'scoring': 1000}
    """

    def __init__(self, space: Space, options: GreedyNASOptions | None = None) -> None:
        self.space, self.options = space, options or GreedyNASOptions()
        self.table = space.cost_table()
        _require_paths(space, self.options)
        self.pool = CandidatePool(self.options.pool_size)
        self.pool_change = 1.0
        """Share of the pool that the last step replaced."""

    @property
    def splits(self) -> Mapping[str, int]:
        """Held-out splits that steps ask for, and how many images they want in their batch."""
        return {"scoring": self.options.scoring_images}

    def candidates(self) -> list[Arch]:
        """The pool, best first: where the search starts."""
        return [Arch.from_genes(self.space.decisions, genes) for genes in self.pool.losses]

    def optimizers(self) -> Mapping[str, OptimizerPlan]:
        """One optimizer over all weights, as the run file says."""
        return {"weights": OptimizerPlan()}

    def updates(self, step: Step) -> Iterator[Update]:
        """Yield one update for each of the k best of m paths, best first."""
        losses = self._score(step, self._draw(step.rng, self.options.epsilon(step.progress)))
        scored = step.collect([[list(genes), loss] for genes, loss in losses.items()])
        self._remember({tuple(genes): loss for one_rank in scored for genes, loss in one_rank})
        best = sorted(losses, key=lambda genes: _nan_last(losses[genes]))
        for genes in best[: self.options.trained]:
            arch = Arch.from_genes(self.space.decisions, genes)
            yield Update(losses=[partial(step.loss, arch, step.batch())])

    def _draw(self, rng: np.random.Generator, epsilon: float) -> list[Genes]:
        """m different paths, each from the pool with probability ε as long as it has others."""
        drawn: dict[Genes, None] = {}
        left = list(self.pool.losses)
        while len(drawn) < self.options.drawn:
            if left and rng.random() < epsilon:
                genes = left.pop(int(rng.integers(len(left))))
            else:
                genes = self.space.sample(rng).genes(self.space.decisions)
            drawn.setdefault(genes)
        return list(drawn)

    def _score(self, step: Step, paths: list[Genes]) -> dict[Genes, float]:
        """Losses of all paths on the same held-out images; one wait for the device."""
        batch = step.batch("scoring")
        archs = [Arch.from_genes(self.space.decisions, genes) for genes in paths]
        with probing(step.supernet):
            losses = step.spread([partial(step.loss, arch, batch) for arch in archs])
        return dict(zip(paths, losses.tolist(), strict=True))

    def _remember(self, losses: Mapping[Genes, float]) -> None:
        """Offer the paths that keep the limit to the pool."""
        before = self.pool.losses.keys()
        limit = self.options.macs_limit
        macs = self.table.column("macs", np.array(list(losses))).tolist()
        self.pool.add(
            {
                genes: loss
                for (genes, loss), n in zip(losses.items(), macs, strict=True)
                if limit is None or n <= limit
            }
        )
        after = self.pool.losses.keys()
        self.pool_change = len(after - before) / max(1, len(after))

    def state_dict(self) -> dict[str, Any]:
        """The pool, best first."""
        pool = [{"genes": list(genes), "loss": loss} for genes, loss in self.pool.losses.items()]
        return {"pool": pool, "pool_change": self.pool_change}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the pool back."""
        self.pool.losses = {tuple(entry["genes"]): entry["loss"] for entry in state["pool"]}
        self.pool_change = state["pool_change"]


def _nan_last(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss


def _require_paths(space: Space, options: GreedyNASOptions) -> None:
    n_paths = math.prod(len(d.choices) for d in space.decisions)
    if options.drawn > n_paths:
        raise UsageError(
            f"train.options.drawn = {options.drawn}, but the space has {n_paths} different paths"
        )
    lowest = space.cost_table().minimum("macs")[0]
    if options.macs_limit is not None and options.macs_limit < lowest:
        raise UsageError(
            f"train.options.macs_limit = {options.macs_limit:,.0f} admits nothing: the smallest "
            f"path has {lowest:,.0f} MACs"
        )


def greedynas(
    *, space: Space, supernet: Supernet, seed: int, options: Mapping[str, Any]
) -> GreedyNAS:
    """Make the strategy. Raises UsageError for options it does not have."""
    return GreedyNAS(space, parse_options(GreedyNASOptions, options, strategy="greedynas"))
