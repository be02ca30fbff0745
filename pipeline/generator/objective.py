"""What keeps a generator on its levels, beside the task loss.

The task needs a pass of a supernet per architecture; costs need an LSTM and a table. So they are
not taken of the one architecture that is trained, but of a batch of its own, in one pass:

* every level and as many random targets between them, each drawn ``resource_draws`` times: the
  **resource loss** of the paper (:mod:`.resource_loss`);
* **imitation**, which the paper does not have: the likelihood of architectures that the exact
  sampler drew uniformly at levels and between them. The resource loss alone has an easy way out, to
  write a few architectures per level for ever, and the supernet then sees few subnets. Imitation
  makes the generator begin as the uniform distribution over every level. Its weight falls to
  nothing; then task and resource loss decide, and λ follows its rule. A weight of 0 leaves it out.

After the training :meth:`GeneratorObjective.settle` brings the argmax on target
(:mod:`.settling`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latency_tables.sampler import make_sampler
from latency_tables.sampler_base import CostSampler
from pipeline.generator.config import GeneratorConfig
from pipeline.generator.generator import ArchitectureGenerator
from pipeline.generator.resource_loss import ResourceLoss
from pipeline.generator.settling import grid, settle
from pipeline.generator.soft_cost import SoftCost

NEAR = 0.01
"""Costs within this share of a target are on it."""
FEW = 100
"""Where fewer architectures are on a target, costs have gaps there that no generator can fill."""
_POOL = 256
_POOL_WIDTH = 0.005
_PER_GAP = 4
"""Targets from one level to the next at which the generator is taught and judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """|cost − target| / target of the most probable architectures: mean and worst over targets."""

    mean: float
    worst: float


class GeneratorObjective:
    """The generator's loss without the task.

    Args:
        generator: its K levels are ``targets``.
        cost: of a policy.
        targets: costs of the levels, rising.
        config: settings.
        sampler: of the same column; made where it is not given.

    >>> from latency_tables.arch import Decision
    >>> from latency_tables.cost_table import Column, CostTable, Factor
    >>> decisions = [Decision(label=f"block{i}", choices=(1, 2, 3)) for i in range(6)]
    >>> table = CostTable(
    ...     decisions,
    ...     [Column(name="macs", unit="MAC")],
    ...     [Factor(name=d.label, labels=(d.label,), values=np.array([[1.], [2.], [3.]]))
    ...      for d in decisions],
    ... )
    >>> _ = torch.manual_seed(0)
    >>> generator = ArchitectureGenerator(decisions, n_levels=2)
    >>> objective = GeneratorObjective(generator, SoftCost(table, "macs"), targets=[8.0, 16.0])
    >>> objective.fit(100).worst
    0.0
    >>> table.cost(generator.argmax(torch.tensor([1.0, 0.0])), "macs")
    8.0
    """

    def __init__(
        self,
        generator: ArchitectureGenerator,
        cost: SoftCost,
        *,
        targets: Sequence[float],
        config: GeneratorConfig | None = None,
        sampler: CostSampler | None = None,
    ) -> None:
        self.generator, self.cost = generator, cost
        self.config = config or GeneratorConfig()
        self.resource = ResourceLoss(
            targets,
            weight=self.config.resource_weight,
            tolerance=self.config.resource_tolerance,
        )
        self.targets = tuple(float(target) for target in targets)
        self._grid = grid(self.targets, _PER_GAP)  # (N, K)
        self._grid_targets = self._grid.double() @ torch.tensor(self.targets).double()
        costs = self._grid_targets.tolist()
        sampler = sampler or make_sampler(cost.table, cost.column, approximate=True)
        counts = np.array([sampler.count(c * (1 - NEAR), c * (1 + NEAR)) for c in costs])
        self.judged = torch.from_numpy(counts >= FEW)
        if not self.judged.any():
            self.judged = torch.ones_like(self.judged)
        """Which points of the grid :meth:`miss` looks at (N,)."""
        self._pool = self._drawn(sampler, costs)

    def _drawn(self, sampler: CostSampler, costs: Sequence[float]) -> Tensor:
        """Genes (N, _POOL, n_decisions): uniform near each target, or as near as there are
        any; always the same ones."""
        rng, found = np.random.default_rng(0), []
        for cost in costs:
            width = _POOL_WIDTH
            while not sampler.count(cost * (1 - width), cost * (1 + width)):
                width *= 2
            found.append(sampler.sample(rng, cost * (1 - width), cost * (1 + width), _POOL))
        return torch.from_numpy(np.stack(found))

    # -- the loss --------------------------------------------------------------------------------

    def loss(self, progress: float) -> Tensor:
        """The loss, a scalar, at a share 0 … 1 of the training (torch's global generator)."""
        return self._loss(progress, self.config.imitation_at(progress))

    def _loss(self, progress: float, imitation: float) -> Tensor:
        config = self.config
        device = self.generator.levels.device
        levels = torch.cat([torch.eye(len(self.targets)), self._between()])
        levels = levels.repeat(config.resource_draws, 1)
        target = (levels.double() @ torch.tensor(self.targets).double()).to(device)
        n, genes = len(levels), None
        if imitation:
            taught, genes = self._taught()
            levels, genes = torch.cat([levels, taught]), genes.to(device)
        draws = self.generator.roll_out(
            levels.to(device),
            n_drawn=n,
            temperature=config.temperature(progress),
            forced=genes,
        )
        cost = self.cost.of({label: x[:n] for label, x in draws.one_hot.items()})
        loss = self.resource(cost, target)
        if genes is not None:
            loss = loss - imitation * draws.log_probabilities[n:].sum(dim=1).mean()
        if config.entropy_bonus:
            loss = loss - config.entropy_bonus * draws.entropies[:n].sum(dim=1).mean()
        return loss

    def _between(self) -> Tensor:
        """Random points between neighbouring levels: (K, K)."""
        n = len(self.targets)
        if n == 1:
            return torch.ones(1, 1)
        place = torch.rand(n) * (n - 1)
        below = place.floor().long().clamp(max=n - 2)
        share = (place - below)[:, None]
        exact = torch.eye(n)
        return (1 - share) * exact[below] + share * exact[below + 1]

    def _taught(self) -> tuple[Tensor, Tensor]:
        """Levels (M, K) and genes (M, n_decisions) to imitate, at random."""
        n = len(self.targets) * self.config.imitation_draws
        at = torch.randint(len(self._pool), (n,))
        return self._grid[at], self._pool[at, torch.randint(_POOL, (n,))]

    # -- training --------------------------------------------------------------------------------

    def miss(self) -> Miss:
        """How far the most probable architectures are off, at levels and three points between
        neighbours, wherever at least 100 architectures are within 1 %; everywhere if nowhere."""
        levels = self._grid.to(self.generator.levels.device)
        with torch.no_grad():
            cost = self.cost.of(self.generator.greedy(levels).one_hot).cpu()
        error = ((cost - self._grid_targets).abs() / self._grid_targets)[self.judged]
        return Miss(mean=error.mean().item(), worst=error.max().item())

    def fit(self, n_steps: int) -> Miss:
        """Train the generator on this loss alone, then settle it.

        Adam with a cosine schedule; torch's global generator. The imitation does not fade: without
        a task nothing else says which architectures of a level are good.
        """
        optimizer = torch.optim.Adam(self.generator.parameters(), lr=self.config.lr)
        for step in range(n_steps):
            progress = step / n_steps
            for group in optimizer.param_groups:
                group["lr"] = self.config.lr * (0.01 + 0.495 * (1 + math.cos(math.pi * progress)))
            optimizer.zero_grad()
            self._loss(progress, self.config.imitation).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        optimizer.zero_grad()
        return self.settle()

    def settle(self) -> Miss:
        """Bring the argmax on target, at the end of a training; see :mod:`.settling`."""
        settle(self.generator, self.cost, self.targets, per_gap=_PER_GAP, on_target=self._pool)
        return self.miss()

    def state_dict(self) -> dict[str, Any]:
        """The state of λ, JSON-ready; the generator's weights are its own."""
        return self.resource.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where :meth:`state_dict` was taken."""
        self.resource.load_state_dict(state)
