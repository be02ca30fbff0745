"""Subnets of a level of cost: drawn exactly, or by a generator that learns beside the supernet.

Exactly: uniform over the networks of the level (:mod:`latency_tables.sampler`); any space, nothing
to learn. By the generator (:mod:`pipeline.generator`): one draw per subnet, whose choices get their
gradient from the task's loss through the network, and
:class:`~pipeline.generator.objective.GeneratorObjective` beside it, in one backward pass.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from latency_tables.arch import Arch
from pipeline.generator.config import GeneratorConfig
from pipeline.generator.file import save_generator
from pipeline.generator.generator import ArchitectureGenerator, Draws
from pipeline.generator.levels import level_weights
from pipeline.generator.objective import GeneratorObjective, Miss
from pipeline.generator.soft_cost import SoftCost
from pipeline.randomness import child_seed
from pipeline.spaces.base import Space
from pipeline.strategies import latency_device
from pipeline.strategies.cost_levels import CostLevels
from pipeline.strategies.passes import policy_logits, subnet_logits
from pipeline.training.step import Batch, Step

DETERMINISTIC = 0.05
"""Mean entropy of a decision, as a share of the greatest, below which little is explored."""
EARLY = 0.5
"""Share of the run before which that is worth a warning."""
WATCH_EVERY, MEMORY = 10, 0.8
"""Steps from one draw that is looked at to the next, and the share of the running mean of the
entropy that such a draw leaves."""

logger = logging.getLogger(__name__)


class Subnet(Protocol):
    """One subnet of a step. Random numbers are drawn already; nothing is computed yet."""

    def logits(self, step: Step, batch: Batch) -> Tensor:
        """Logits (N, n_classes) in the run's precision, given as fp32 or wider."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactSubnet:
    """An architecture."""

    arch: Arch

    def logits(self, step: Step, batch: Batch) -> Tensor:
        """See :class:`Subnet`."""
        return subnet_logits(step, self.arch, batch)


class ExactPaths:
    """Uniform over the networks of a level."""

    def __init__(self, levels: CostLevels) -> None:
        self.levels = levels

    def draw(self, step: Step, level: int) -> ExactSubnet:
        """A subnet to train."""
        return ExactSubnet(arch=self.arch(step, level))

    def arch(self, step: Step, level: int) -> Arch:
        """An architecture to look at."""
        (arch,) = self.levels.sampler.sample_archs(step.rng, *self.levels.ranges[level], 1)
        return arch

    def state_dict(self) -> dict[str, Any]:
        """Nothing outlives a step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take back."""


class GeneratorPaths:
    """Draws of the generator, on the device of the supernet.

    Raises:
        SpaceError: the cost has no differentiable form.
    """

    def __init__(
        self,
        space: Space,
        levels: CostLevels,
        *,
        seed: int,
        device: torch.device,
        config: GeneratorConfig | None = None,
    ) -> None:
        self.space, self.levels, self.seed, self.device = space, levels, seed, device
        self.config = config or GeneratorConfig()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(child_seed(seed, "generator"))
            self.generator = ArchitectureGenerator(
                space.decisions, n_levels=len(levels), hidden=self.config.hidden
            )
        self.generator.to(device)
        self.objective = GeneratorObjective(
            self.generator,
            SoftCost(levels.table, levels.column),
            targets=levels.targets,
            config=self.config,
            sampler=levels.sampler,
        )
        self.miss: Miss | None = None
        """How far the most probable architectures are off their targets, once settled."""
        self.entropy: float | None = None
        """Running mean over draws of the mean entropy of a decision, as a share of the greatest."""
        self._most = [math.log(max(2, len(d.choices))) for d in space.decisions]
        self._warned = False
        self.last: Draws | None = None

    def draw(self, step: Step, level: int) -> GeneratedSubnet:
        """A subnet to train."""
        return GeneratedSubnet(self, self.asked(step, level), seed=seed_of(step.rng))

    def arch(self, step: Step, level: int) -> Arch:
        """An architecture to look at."""
        with torch.no_grad():
            return self.draws(step, self.asked(step, level), seed_of(step.rng)).archs[0]

    def asked(self, step: Step, level: int) -> Tensor:
        """What the generator reads for a subnet of a level (K,): a cost anywhere in its range, or
        its target where the settings say so."""
        target = self.levels.targets[level]
        if self.config.spread:
            target = float(step.rng.uniform(*self.levels.ranges[level]))
        return level_weights(self.levels.targets, target, clamp=True).to(self.device)

    def draws(self, step: Step, level: Tensor, seed: int) -> Draws:
        """One draw for a level (K,), in fp32 whatever the run's format; random by ``seed`` alone,
        so that ranks with the same paths draw the same."""
        rng = torch.Generator(device=self.device).manual_seed(seed)
        temperature = self.config.temperature(step.progress)
        with torch.autocast(self.device.type, enabled=False):
            return self.generator.draws(level[None], temperature=temperature, rng=rng)

    def own_loss(self, step: Step) -> Tensor:
        """Resource loss and entropy bonus of a batch of draws (scalar), the same on all ranks."""
        devices = [self.device] if self.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=devices),
            torch.autocast(self.device.type, enabled=False),
        ):
            torch.manual_seed(child_seed(self.seed, "generator", "objective", step.index))
            return self.objective.loss(step.progress)

    def watch(self, step: Step) -> None:
        """Follow the entropy of what is trained; warn, once, where it is low too early."""
        if self.last is None or step.index % WATCH_EVERY:
            return
        entropies = self.last.entropies.detach()[0]
        share = float(
            step.ranks.mean((entropies / torch.tensor(self._most, device=entropies.device)).mean())
        )
        before = share if self.entropy is None else self.entropy
        self.entropy = MEMORY * before + (1 - MEMORY) * share
        if self.entropy < DETERMINISTIC and step.progress < EARLY and not self._warned:
            self._warned = True
            if not step.ranks.leads:
                return
            logger.warning(
                "after %.0f %% of the run the generator is all but deterministic (its decisions "
                "have %.1f %% of the greatest entropy): few subnets are trained; "
                "train.options.generator.entropy_bonus = 1e-3 keeps it open",
                100 * step.progress,
                100 * self.entropy,
            )

    def save(self, path: Path) -> None:
        """Write the generator with what it was trained for, its most probable architectures brought
        on target first; the one in training stays as it is, alike on all ranks."""
        trained = {name: value.clone() for name, value in self.generator.state_dict().items()}
        self.miss = self.objective.settle()
        save_generator(
            path,
            self.generator,
            space=self.space,
            table=self.levels.table,
            column=self.levels.column,
            targets=self.levels.targets,
            device=latency_device({"cost": self.levels.cost}),
        )
        self.generator.load_state_dict(trained)

    def state_dict(self) -> dict[str, Any]:
        """The generator, λ and the entropy."""
        return {
            "generator": self.generator.state_dict(),
            "objective": self.objective.state_dict(),
            "entropy": self.entropy,
            "warned": self._warned,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.generator.load_state_dict(state["generator"])  # copies into the parameters
        self.objective.load_state_dict(state["objective"])
        self.entropy, self._warned = state["entropy"], state["warned"]


class GeneratedSubnet:
    """A draw of the generator, made when its logits are asked for; gradients reach ``level``."""

    def __init__(self, paths: GeneratorPaths, level: Tensor, *, seed: int) -> None:
        self.paths, self.level, self.seed = paths, level, seed

    def logits(self, step: Step, batch: Batch) -> Tensor:
        """See :class:`Subnet`."""
        draws = self.paths.draws(step, self.level, self.seed)
        self.paths.last = draws
        return policy_logits(step, draws.policy(0), batch)


def seed_of(rng: np.random.Generator) -> int:
    """A seed for torch from numpy's generator."""
    return int(rng.integers(2**62))
