"""Does the score by which levels are shifted tell how far a subnet is from trained?

Section 3 of the paper's appendix: a supernet is trained with uniform paths; at four stages 30
random subnets are scored by their loss with the weights q steps before minus that with the weights
now, then each is fine-tuned by itself for an epoch; Kendall's tau between scores and the fall of
the loss. The paper has 0.24, 0.63, 0.75, 0.72 after 30, 60, 90, 120 of 500 epochs.

Losses are those on the held-out images of the study, normalised by their batches, as in training.
A subnet is fine-tuned at the learning rate of its stage, which stays, from fresh momenta.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, cast

from latency_tables.arch import Arch
from latency_tables.ranking import kendall_tau
from pipeline.randomness import numpy_generator
from pipeline.spaces.base import Space
from pipeline.supernet.scoring import materialise
from pipeline.training.config import ScheduleConfig
from pipeline.training.schedules import learning_rate
from tests.bench.shiftnas_study.methods import Method
from tests.bench.shiftnas_study.world import World

PAPER_TAUS = (0.24, 0.63, 0.75, 0.72)


def sufficiency(world: World, uniform: Method, seed: int) -> list[dict[str, Any]]:
    """Scores and falls of the loss at every stage of one uniform training."""
    folder = world.folder(uniform, seed)
    return [
        world.kept(
            folder / f"sufficiency-{end}.json",
            lambda before=before, end=end: _stage(world, folder, seed, before, end),  # type: ignore[misc]
        )
        for before, end in world.stages()
    ]


def _stage(world: World, folder: Path, seed: int, before: int, end: int) -> dict[str, Any]:
    archs = random_subnets(world)
    supernet = world.load(folder / f"after-{end}.safetensors")
    now = [_loss(world, world.space, supernet, arch) for arch in archs]
    earlier = world.load(folder / f"after-{before}.safetensors")
    scores = [
        _loss(world, world.space, earlier, arch) - loss
        for arch, loss in zip(archs, now, strict=True)
    ]
    falls = []
    lr = learning_rate(ScheduleConfig(kind="cosine"), world.optimizer.lr, end, world.scale.steps)
    optimizer = world.optimizer.model_copy(update={"lr": lr})
    constant = ScheduleConfig(kind="constant")
    for arch, loss in zip(archs, now, strict=True):
        start = materialise(world.space, arch, supernet)
        with tempfile.TemporaryDirectory() as scratch:
            one, tuned = world.alone(
                arch, seed, Path(scratch), steps=world.scale.tune_steps, start=start,
                optimizer=optimizer, schedule=constant,
            )  # fmt: skip
        falls.append(loss - _loss(world, cast("Space", one), tuned, Arch({})))
    return {
        "step": end,
        "lr": lr,
        "score": scores,
        "fall": falls,
        "tau": kendall_tau(scores, falls),
    }


def random_subnets(world: World) -> list[Arch]:
    """The same for every seed and stage, all different."""
    rng, found = numpy_generator(0, "tau", world.space.name), dict[Arch, None]()
    while len(found) < world.scale.tau_archs:
        found[world.space.canonical(world.space.sample(rng))] = None
    return list(found)


def _loss(world: World, space: Space, supernet: Any, arch: Arch) -> float:
    policy = "batch" if world.policy == "recalibrate" else world.policy
    return world.scorer(space, supernet, policy).score(arch).loss
