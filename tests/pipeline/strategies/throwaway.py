"""Small strategies that prove the shapes of updates: each has the skeleton of a published one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latency_tables.arch import Arch
from pipeline.spaces.base import Space, Supernet
from pipeline.training.config import OptimizerConfig, ScheduleConfig
from pipeline.training.step import OptimizerPlan, Step, Update


class Stateless:
    """One optimizer over the supernet; nothing outlives a step."""

    def __init__(self, space: Space) -> None:
        self.space = space

    def optimizers(self) -> Mapping[str, OptimizerPlan]:
        return {"weights": OptimizerPlan()}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class FairLike(Stateless):
    """As FairNAS: m models on one batch, every operator once, one update with summed gradients."""

    def __init__(self, space: Space) -> None:
        super().__init__(space)
        self.trained: list[tuple[Arch, ...]] = []

    def updates(self, step: Step) -> Iterator[Update]:
        batch = step.batch()
        orders = [step.rng.permutation(len(d.choices)) for d in self.space.decisions]
        genes = np.stack(orders, axis=1)  # (models, decisions)
        archs = tuple(Arch.from_genes(self.space.decisions, g.tolist()) for g in genes)
        self.trained.append(archs)
        yield Update(losses=[partial(step.loss, arch, batch) for arch in archs])


class GreedyLike(Stateless):
    """As GreedyNAS: draw paths, score them without gradient, train the best on own batches.

    Keeps a pool of the best paths between steps.
    """

    def __init__(self, space: Space, *, drawn: int = 4, kept: int = 2) -> None:
        super().__init__(space)
        self.drawn, self.kept = drawn, kept
        self.pool: list[list[int]] = []
        self.seen: list[Tensor] = []  # images of every batch

    def updates(self, step: Step) -> Iterator[Update]:
        archs = [self.space.sample(step.rng) for _ in range(self.drawn)]
        scoring = step.batch("scoring")
        with torch.no_grad():
            scores = [float(step.loss(arch, scoring)) for arch in archs]
        best = sorted(range(self.drawn), key=scores.__getitem__)[: self.kept]
        self.pool = [list(archs[i].genes(self.space.decisions)) for i in best]
        for i in best:
            batch = step.batch()
            self.seen.append(batch.images)
            yield Update(losses=[partial(step.loss, archs[i], batch)])

    def state_dict(self) -> dict[str, Any]:
        return {"pool": self.pool}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.pool = [list(genes) for genes in state["pool"]]


class ShotLike(Stateless):
    """As K-shot: two optimizers in turn, the second one with gradients made by hand.

    Odd steps move ``sigma`` by the gradient of |sigma - 1|^2 / 2, which is sigma - 1.
    """

    def __init__(self, space: Space) -> None:
        super().__init__(space)
        self.sigma = nn.Parameter(torch.full((3,), 5.0))

    def optimizers(self) -> Mapping[str, OptimizerPlan]:
        settings = OptimizerConfig(lr=0.5, momentum=0.0, weight_decay=0.0)
        plan = OptimizerPlan(
            parameters={"sigma": self.sigma},
            optimizer=settings,
            schedule=ScheduleConfig(kind="constant"),
        )
        return {"weights": OptimizerPlan(), "sigma": plan}

    def updates(self, step: Step) -> Iterator[Update]:
        if step.index % 2 == 0:
            arch = self.space.sample(step.rng)
            yield Update(losses=[partial(step.loss, arch, step.batch())])
        else:
            yield Update(optimizer="sigma", gradients=lambda: {"sigma": self.sigma.detach() - 1.0})

    def state_dict(self) -> dict[str, Any]:
        return {"sigma": self.sigma}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self.sigma.copy_(state["sigma"])


class OuterLike(Stateless):
    """As SUMNAS: some inner steps from W, then W moves by epsilon (W_end - W).

    Also keeps a copy of the weights of the step before, as ShiftNAS does.
    """

    def __init__(self, space: Space, *, inner: int = 2, epsilon: float = 0.25) -> None:
        super().__init__(space)
        self.inner, self.epsilon = inner, epsilon
        self.before: dict[str, Tensor] = {}

    def optimizers(self) -> Mapping[str, OptimizerPlan]:
        outer = OptimizerConfig(lr=self.epsilon, momentum=0.0, weight_decay=0.0)
        return {
            "weights": OptimizerPlan(),
            "outer": OptimizerPlan(optimizer=outer, schedule=ScheduleConfig(kind="constant")),
        }

    def updates(self, step: Step) -> Iterator[Update]:
        start = snapshot(step.supernet)
        for _ in range(self.inner):
            arch = self.space.sample(step.rng)
            yield Update(losses=[partial(step.loss, arch, step.batch())])
        end = snapshot(step.supernet)
        with torch.no_grad():
            for name, parameter in step.supernet.named_parameters():
                parameter.copy_(start[name])
        yield Update(optimizer="outer", gradients={k: start[k] - end[k] for k in start})
        self.before = start

    def state_dict(self) -> dict[str, Any]:
        return {"before": self.before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.before = dict(state["before"])


def snapshot(supernet: Supernet) -> dict[str, Tensor]:
    """Copies of all parameters by name."""
    return {k: p.detach().clone() for k, p in supernet.named_parameters()}
