"""ShiftNAS: train levels of cost as often as B says, and let B follow where the loss still falls.

Zhang et al., "ShiftNAS: Improving One-shot NAS via Probability Shift", 2023, with algorithms 1 and
2 of its appendix. Uniform paths crowd around the middle of the costs, and levels of cost need
unequal training; so a step draws a level from B, then a subnet of that level.

| symbol | here | meaning |
|---|---|---|
| C_1 … C_K | :mod:`~pipeline.strategies.cost_levels` | levels of MACs, parameters, latency |
| B | :mod:`~pipeline.strategies.level_shift` | logits of the levels; maths and the sign of ∇B |
| ∇B | :mod:`~pipeline.strategies.shift_gradient` | how it is made of losses |
| AG, α | :mod:`~pipeline.strategies.level_paths` | generator of architectures, its weights |
| w_{t−1} | :mod:`~pipeline.strategies.snapshot` | the weights q steps ago |
| q | ``update_every`` | steps between two updates of B (100) |

    step:   k ~ softmax(B)       a ← AG(C_k), or uniform over the networks of level k
            L = CE(N(a, w)(x), y) + λ L_RC        w ← w − …, α ← α − …     one backward pass
    every q steps:   B ← Adam(B, ∇B), once the freeze is over;   w_{t−1} ← w

Deviations, and our reading where the paper is silent:

* w_{t−1} is refreshed during the freeze, too; else the first Δ would span all of it;
* passes that compare w_{t−1} and w_t share images, paths and random numbers, normalise by their
  batch, drop nothing, and leave no gradient and no running statistic behind. The paper's algorithm
  2 deposits gradients in w and α;
* levels are compared on held-out images (the search's calibration images), batch after batch in
  turn, in batches of the run's size;
* an update is left out, and said, where a loss is not finite;
* α has an Adam of its own by default. The paper's one optimizer for w and α is
  ``generator_optimizer = "joint"``; its rates (SGD 0.5) do not suit an LSTM;
* the resource loss is that of :mod:`pipeline.generator.objective`, on a batch of draws of its own,
  with the imitation of the exact sampler at first; at the end the generator is settled there;
* with the sandwich rule, the middle subnets come from B, the largest one teaches all others
  (:mod:`pipeline.strategies.distillation`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from latency_tables.cost_table import CostTable
from latency_tables.errors import UsageError
from pipeline.generator.config import GeneratorConfig
from pipeline.generator.file import FILE_NAME
from pipeline.spaces.base import Space, Supernet
from pipeline.strategies import level_shift
from pipeline.strategies.cost_levels import CostLevels, levels_of
from pipeline.strategies.distillation import DistillationOptions, InPlaceTeacher
from pipeline.strategies.level_paths import ExactPaths, GeneratorPaths
from pipeline.strategies.level_shift import LevelDistribution
from pipeline.strategies.options import parse_options
from pipeline.strategies.shift_gradient import Mode, ShiftGradient, none_unless_finite
from pipeline.strategies.snapshot import WeightSnapshot
from pipeline.training.config import OptimizerConfig, ScheduleConfig
from pipeline.training.step import Batch, HeldOut, OptimizerPlan, Step, Update

SPLIT = "b-update"
LARGE_RATE = 0.5
"""Logits per update above which chance decides: with ten updates of B or fewer."""
Loss = Callable[[], Tensor]

logger = logging.getLogger(__name__)


class ShiftNASOptions(DistillationOptions):
    """The table ``[train.options]``; the defaults are the paper's where it says something."""

    cost: str = "macs"
    """What the levels are levels of: a column of the space's costs, or ``latency:DEVICE``."""
    levels: int = Field(default=8, ge=1)
    """K levels of equal width between the 1 % and the 99 % quantile of the space."""
    targets: tuple[float, ...] | None = None
    """Cost in the middle of each level, rising, in place of ``levels``."""
    width: float | None = Field(default=None, gt=0)
    """Width of a level around its target; the least distance of two targets where not given."""
    shift: bool = True
    """False: all levels equally often, for ever."""
    update_every: int = Field(default=100, ge=1)
    """q: steps between two updates of B."""
    freeze: float = Field(default=0.1, ge=0, le=1)
    """Share of the run in which B stays uniform (50 of 500 epochs)."""
    gradient: Mode = "stratified"
    """How the gradient reaches B; pathwise needs the generator."""
    shift_lr: float | None = Field(default=None, gt=0)
    """Adam's rate for B; 5 / updates, at least 1e-3, where not given."""
    shift_images: int = Field(default=4096, ge=1)
    """Held-out images on which levels are compared, in batches of the run's size."""
    paths: Literal["generator", "exact"] | None = None
    """Where subnets of a level come from; the generator where the space lets gradients through."""
    generator: GeneratorConfig = GeneratorConfig()
    generator_optimizer: Literal["own", "joint"] = "own"
    """An Adam for the generator, or the run's optimizer for it and the weights together."""
    sandwich: bool = False
    """Largest and smallest subnet in every step; the largest one teaches."""
    n_random: int = Field(default=2, ge=1)
    """Subnets from B in a step of the sandwich rule."""

    @model_validator(mode="after")
    def _check_modes(self) -> Self:
        if self.gradient == "pathwise" and self.paths == "exact":
            raise ValueError('gradient = "pathwise" needs paths = "generator"')
        return self


class ShiftNAS:
    """A subnet of a level drawn from B per step; B is moved every q steps.

    Raises:
        UsageError: no such cost, an empty level, or a space through which no gradient passes.

    >>> from pipeline.spaces import load_space
    >>> space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    >>> shiftnas = ShiftNAS(space, space.supernet(), ShiftNASOptions(levels=4, paths="exact"))
    >>> shiftnas.plan(n_steps=1000)
    >>> shiftnas.optimizers()["levels"].optimizer.lr  # 9 updates: 200, 300, ... 1000
    0.5555555555555556
    """

    def __init__(
        self,
        space: Space,
        supernet: Supernet,
        options: ShiftNASOptions | None = None,
        *,
        seed: int = 0,
        latency: CostTable | None = None,
    ) -> None:
        self.space, self.options = space, options or ShiftNASOptions()
        self._supernet = supernet
        self.levels = levels_of(
            space,
            self.options.cost,
            n_levels=self.options.levels,
            targets=self.options.targets,
            width=self.options.width,
            latency=latency,
        )
        self.distribution = LevelDistribution(len(self.levels))
        self.paths = _paths_of(space, supernet, self.levels, self.options, seed)
        self.snapshot = WeightSnapshot(supernet)
        self.gradient = ShiftGradient(
            self.distribution, self.paths, self.snapshot, mode=self.options.gradient
        )
        self.n_updates = self.n_skipped = 0
        self._rate, self._moves = level_shift.PAPER_RATE, True
        table = space.cost_table()
        self.largest, self.smallest = table.maximum("macs")[1], table.minimum("macs")[1]

    @property
    def splits(self) -> Mapping[str, HeldOut]:
        """Held-out images for B; none where it stays as it is."""
        return {SPLIT: HeldOut(n_images=self.options.shift_images)} if self.options.shift else {}

    def plan(self, n_steps: int) -> None:
        """Scale the learning rate of B to the number of its updates in a run of this length."""
        planned = level_shift.planned_updates(
            n_steps, every=self.options.update_every, freeze=self.options.freeze
        )
        self._rate = self.options.shift_lr or level_shift.learning_rate_of(planned)
        self._moves = planned > 0

    def optimizers(self) -> Mapping[str, OptimizerPlan]:
        """The run's optimizer over the weights, Adam over B, and what the generator asks for."""
        plans = {"weights": OptimizerPlan()}
        constant = ScheduleConfig(kind="constant")
        if self.options.shift:
            plans["levels"] = OptimizerPlan(
                parameters={"B": self.distribution.logits},
                optimizer=OptimizerConfig(kind="adamw", lr=self._rate, weight_decay=0.0),
                schedule=constant,
            )
        if isinstance(self.paths, GeneratorPaths):
            lr, own = self.options.generator.lr, dict(self.paths.generator.named_parameters())
            if self.options.generator_optimizer == "own":
                plans["generator"] = OptimizerPlan(
                    parameters=own,
                    optimizer=OptimizerConfig(kind="adamw", lr=lr, weight_decay=0.0),
                    schedule=ScheduleConfig(kind="cosine", final_lr=lr / 100),
                )
            else:
                joint = dict(self._supernet.named_parameters())
                joint |= {f"generator.{name}": value for name, value in own.items()}
                plans["weights"] = OptimizerPlan(parameters=joint)
        return plans

    # -- a step ----------------------------------------------------------------------------

    def updates(self, step: Step) -> Iterator[Update]:
        """Yield one update of weights and generator, and every q steps one of B."""
        options = self.options
        if options.shift and not self.snapshot.taken:
            self._warn_of_rate(step)
            self.snapshot.take()
        yield self._training_update(step)
        if isinstance(self.paths, GeneratorPaths):
            self.paths.watch(step)
        done = step.index + 1
        if not options.shift or done % options.update_every:
            return
        if level_shift.is_due(
            done, step.n_steps, every=options.update_every, freeze=options.freeze
        ):
            gradient = self.gradient(step, step.batch(SPLIT))
            if gradient is None:
                self.n_skipped += 1
                if step.ranks.leads:
                    logger.warning("step %d: a loss is not finite, so B is not updated", step.index)
            else:
                self.n_updates += 1
                yield Update(optimizer="levels", gradients={"B": gradient})
        self.snapshot.take()

    def _training_update(self, step: Step) -> Update:
        losses = (self._sandwich if self.options.sandwich else self._single)(step, step.batch())
        if not isinstance(self.paths, GeneratorPaths):
            return Update(losses=losses)
        also = ("generator",) if self.options.generator_optimizer == "own" else ()
        return Update(losses=losses, beside=[partial(self.paths.own_loss, step)], also=also)

    def _single(self, step: Step, batch: Batch) -> list[Loss]:
        """One subnet of one level learns the labels."""
        subnet = self.paths.draw(step, self.distribution.draw(step.rng))
        return [lambda: step.objective(subnet.logits(step, batch), batch)]

    def _sandwich(self, step: Step, batch: Batch) -> list[Loss]:
        """The largest subnet learns the labels; some of levels, and the smallest one, from it."""
        teacher = InPlaceTeacher(step, self.largest, batch, self.options)
        levels = [self.distribution.draw(step.rng) for _ in range(self.options.n_random)]
        middle = [self.paths.draw(step, level) for level in levels]
        return [
            teacher.loss,
            *(partial(teacher.distil_from, partial(s.logits, step, batch)) for s in middle),
            partial(teacher.distil, self.smallest),
        ]

    def _warn_of_rate(self, step: Step) -> None:
        if step.ranks.leads and not self._moves:
            logger.warning(
                "B is never updated: the run has %d steps, of which %.0f %% are frozen, and an "
                "update comes every %d; a smaller train.options.update_every moves it",
                step.n_steps,
                100 * self.options.freeze,
                self.options.update_every,
            )
        elif step.ranks.leads and self._rate > LARGE_RATE:
            logger.warning(
                "B moves in a few jumps of %.1f logits, each on the evidence of one batch; a "
                "smaller train.options.update_every or shift_lr makes it smoother",
                self._rate,
            )

    # -- what it says and keeps ------------------------------------------------------------

    def log_numbers(self) -> dict[str, Any]:
        """What ``train.jsonl`` says of B and of the generator."""
        numbers: dict[str, Any] = {
            "level_entropy": self.distribution.entropy(),
            "level_probabilities": self.distribution.probabilities().tolist(),
            "level_logits": self.distribution.logits.tolist(),
            "level_losses": self.gradient.losses,
            "level_targets": list(self.levels.targets),
            "level_cost": self.levels.cost,
            "level_unit": self.levels.unit,
            "level_updates": self.n_updates,
            "level_updates_skipped": self.n_skipped,
        }
        if isinstance(self.paths, GeneratorPaths):
            resource = self.paths.objective.resource
            numbers |= {
                "generator_miss": none_unless_finite(resource.mean_error),
                "generator_entropy": self.paths.entropy,
                "resource_weight": resource.weight,
            }
        return numbers

    def save(self, folder: Path) -> None:
        """Write ``generator.safetensors``, where there is a generator."""
        if isinstance(self.paths, GeneratorPaths):
            self.paths.save(folder / FILE_NAME)

    def summary(self) -> str:
        """What came of the levels and of the generator, for people."""
        told = f"{len(self.levels)} levels of {self.levels.cost}, B moved {self.n_updates} times"
        if isinstance(self.paths, GeneratorPaths) and self.paths.miss is not None:
            miss = self.paths.miss
            told += (
                f"; the generator misses by {miss.mean:.1%} on average, {miss.worst:.1%} at most"
            )
        return told

    def state_dict(self) -> dict[str, Any]:
        """B, the weights q steps ago, what was logged last, and the generator."""
        return {
            "B": self.distribution.logits.detach(),
            "snapshot": self.snapshot.state_dict(),
            "losses": self.gradient.losses,
            "n_updates": self.n_updates,
            "n_skipped": self.n_skipped,
            "paths": self.paths.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        with torch.no_grad():
            self.distribution.logits.copy_(state["B"])
        self.snapshot.load_state_dict(state["snapshot"])
        self.gradient.losses = list(state["losses"])
        self.n_updates, self.n_skipped = state["n_updates"], state["n_skipped"]
        self.paths.load_state_dict(state["paths"])


def _paths_of(
    space: Space, supernet: Supernet, levels: CostLevels, options: ShiftNASOptions, seed: int
) -> ExactPaths | GeneratorPaths:
    passes_gradients = type(supernet).policy_forward is not Supernet.policy_forward
    kind = options.paths or ("generator" if passes_gradients else "exact")
    if kind == "exact":
        if options.gradient == "pathwise":
            raise UsageError(
                f'gradient = "pathwise" needs a generator, and no gradient passes through the '
                f"choices of {space.name}",
                hint='train.options.gradient = "stratified"',
            )
        return ExactPaths(levels)
    if not passes_gradients:
        raise UsageError(
            f'paths = "generator" needs a space through whose choices gradients pass; {space.name} '
            "is none",
            hint='train.options.paths = "exact"',
        )
    device = next(supernet.parameters()).device
    return GeneratorPaths(space, levels, seed=seed, device=device, config=options.generator)


def shiftnas(
    *,
    space: Space,
    supernet: Supernet,
    seed: int,
    options: Mapping[str, Any],
    latency: CostTable | None = None,
) -> ShiftNAS:
    """Make the strategy. Raises UsageError for options it does not have or that do not fit."""
    given = parse_options(ShiftNASOptions, options, strategy="shiftnas")
    return ShiftNAS(space, supernet, given, seed=seed, latency=latency)
