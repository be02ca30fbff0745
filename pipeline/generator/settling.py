"""Settling: the most probable architecture of a target is made to cost what the target says.

A generator whose draws are on target may still miss with its argmax: many choices are nearly tied,
and the most probable one of each decision together is an architecture like any other, which nobody
ever drew. Gradients of a cost do not help, because an argmax moves in jumps.

So for many targets between the lowest and the highest level an *anchor* is taken: of the draws that
are on target, and of architectures of the exact sampler that are, the one of highest probability.
Then the smallest change is looked for that makes every anchor the argmax: a perceptron with a
margin m,

    Σ over decisions i of max(0, m − (z_i[anchor] − max over other choices of z_i)),

z being the logits after the anchor's earlier choices. Its gradient vanishes where the anchor leads
by m. Meanwhile the generator is held to what it was: the likelihood of its own draws, those on
target first, is part of the loss. So probabilities, and the diversity of draws, hardly change.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.generator.generator import ArchitectureGenerator
from pipeline.generator.levels import level_weights
from pipeline.generator.soft_cost import SoftCost

N_CANDIDATES = 256
"""Draws per target of which an anchor is chosen, and to which the generator is held."""
ON_TARGET = 0.005
"""Largest |cost − target| / target of an anchor, where a draw has less."""
MARGIN = 0.1
LAG_WEIGHT = 10.0
HELD_TO, HELD_WITHIN, HELD_STEPS = 2, 0.02, 150
"""Own draws per target in one step, their largest |cost − target| / target where there are such,
and for how many steps at most; the rest of the steps remove the last lags."""
LEARNING_RATE = 5e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Architectures for N targets, n each: genes (N, n, n_decisions), |cost − target| / target
    (N, n) and the generator's log-probabilities (N, n)."""

    genes: Tensor
    error: Tensor
    log_p: Tensor

    def anchors(self) -> Tensor:
        """Genes (N, n_decisions): the most probable one on target, or else the nearest one."""
        score = torch.where(self.error <= ON_TARGET, self.log_p, -1e9 * (1.0 + self.error))
        rows = torch.arange(len(score), device=score.device)
        return self.genes[rows, score.argmax(dim=1)]

    def some(self, rng: torch.Generator) -> Tensor:
        """Genes (N · HELD_TO, n_decisions) of random ones near each target, or else of any."""
        chances = (self.error <= HELD_WITHIN).double() + 1e-9
        index = torch.multinomial(chances, HELD_TO, generator=rng)  # (N, HELD_TO)
        wide = index[..., None].expand(-1, -1, self.genes.shape[2])
        return self.genes.gather(1, wide).flatten(0, 1)

    def __add__(self, other: Candidates) -> Candidates:
        return Candidates(
            genes=torch.cat([self.genes, other.genes], dim=1),
            error=torch.cat([self.error, other.error], dim=1),
            log_p=torch.cat([self.log_p, other.log_p], dim=1),
        )


def grid(targets: Sequence[float], per_gap: int) -> Tensor:
    """Levels, and points between neighbours, as weights: (per_gap · (K - 1) + 1, K).

    >>> grid([1.0, 2.0], 2).tolist()
    [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    """
    points = []
    for low, high in itertools.pairwise(targets):
        points += [low + (high - low) * i / per_gap for i in range(per_gap)]
    return torch.stack([level_weights(targets, point) for point in [*points, targets[-1]]])


def candidates(
    generator: ArchitectureGenerator,
    cost: SoftCost,
    levels: Tensor,
    target: Tensor,
    *,
    rng: torch.Generator | None = None,
    genes: Tensor | None = None,
) -> Candidates:
    """Draws for N levels (N, K) with targets (N,), or given genes (N, n, n_decisions)."""
    n = N_CANDIDATES if genes is None else genes.shape[1]
    rows = levels.repeat_interleave(n, dim=0)
    with torch.no_grad():
        if genes is None:
            draws = generator.draws(rows, temperature=1.0, rng=rng)
        else:
            draws = generator.roll_out(rows, forced=genes.flatten(0, 1))
        costs = cost.of(draws.one_hot).reshape(len(levels), n)
        return Candidates(
            genes=draws.genes.reshape(len(levels), n, -1),
            error=((costs - target[:, None]) / target[:, None]).abs(),
            log_p=draws.log_probabilities.double().sum(dim=1).reshape(len(levels), n),
        )


def lag(generator: ArchitectureGenerator, levels: Tensor, genes: Tensor) -> Tensor:
    """How much the anchors (N, n_decisions) lack to lead everywhere: the mean over N, a scalar."""
    draws = generator.roll_out(levels, forced=genes)
    total = torch.zeros(len(levels), device=levels.device)
    for i, decision in enumerate(generator.decisions):
        if len(decision.choices) == 1:
            continue
        logits, own = draws.logits[decision.label], genes[:, i, None]
        rival = logits.scatter(1, own, -torch.inf).amax(dim=1)
        total = total + torch.relu(MARGIN - (logits.gather(1, own)[:, 0] - rival))
    return total.mean()


def settle(
    generator: ArchitectureGenerator,
    cost: SoftCost,
    targets: Sequence[float],
    *,
    per_gap: int = 4,
    on_target: Tensor | None = None,
    max_steps: int = 300,
    seed: int = 0,
) -> None:
    """Settle a generator on its levels and between them, in place.

    ``on_target`` holds genes (N, n, n_decisions) from elsewhere for the points of :func:`grid`:
    where no draw is on target, an anchor is one of them. torch's global generator is neither used
    nor changed.
    """
    device = generator.levels.device
    levels = grid(targets, per_gap)
    target = (levels.double() @ torch.tensor(targets).double()).to(device)
    levels = levels.to(device)
    rng = torch.Generator(device=device).manual_seed(seed)
    drawn = known = candidates(generator, cost, levels, target, rng=rng)
    if on_target is not None:
        known = drawn + candidates(generator, cost, levels, target, genes=on_target.to(device))
    chosen, own_levels = known.anchors(), levels.repeat_interleave(HELD_TO, dim=0)
    optimizer = torch.optim.Adam(generator.parameters(), lr=LEARNING_RATE)
    for step in range(max_steps):
        optimizer.zero_grad()
        behind = lag(generator, levels, chosen)
        if behind.item() == 0.0:
            break
        loss = LAG_WEIGHT * behind
        if step < HELD_STEPS:
            own = generator.decision_log_probabilities(drawn.some(rng), own_levels)
            loss = loss - own.sum(dim=1).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.zero_grad()
