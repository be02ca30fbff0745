"""What tests of strategies share: steps made by hand, gradients, a kill and what follows it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latency_tables.arch import Arch
from pipeline.randomness import numpy_generator
from pipeline.spaces.base import Space, Supernet
from pipeline.training.config import CheckpointConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from pipeline.training.engine import TrainResult, train
from pipeline.training.precision import Precision
from pipeline.training.step import OptimizerPlan, Step, Strategy, Update
from tests.pipeline.training.toys import ToyBatch, ToyStream, toy_config, toy_space, toy_supernet

LR = 0.05


def plain(steps: int, **changes: Any) -> TrainConfig:
    """SGD without momentum, decay or schedule: an update is W − lr · gradient."""
    settings: dict[str, Any] = {
        "steps": steps,
        "optimizer": OptimizerConfig(lr=LR, momentum=0.0, weight_decay=0.0),
        "schedule": ScheduleConfig(kind="constant"),
        "label_smoothing": 0.0,
    }
    return toy_config(**(settings | changes))


class FixedStream:
    """One batch, whatever its number: images on which paths are compared."""

    batches_per_epoch = 1

    def __init__(self, seed: int = 1) -> None:
        self.kept = ToyStream(seed=seed).batch(0)

    def batch(self, number: int, /) -> ToyBatch:
        return self.kept


def run(
    folder: Path,
    strategy: Strategy,
    *,
    space: Space | None = None,
    supernet: Supernet | None = None,
    config: TrainConfig | None = None,
) -> TrainResult:
    """Train on synthetic batches; the split scoring holds one batch, b-update many."""
    space = space or toy_space()
    return train(
        space,
        supernet or toy_supernet(space),
        strategy,
        {"train": ToyStream(), "scoring": FixedStream(), "b-update": ToyStream(seed=2)},
        config or plain(8),
        folder,
        seed=0,
    )


def hand_step(supernet: Supernet, *, index: int = 0, double: bool = False, **more: Any) -> Step:
    """A step outside the engine, on the engine's batches and random numbers."""
    streams = {"train": ToyStream(), "scoring": FixedStream(), "b-update": ToyStream(seed=2)}
    numbers = {split: iter(range(1000)) for split in streams}

    def next_batch(split: str) -> ToyBatch:
        batch = streams[split].batch(next(numbers[split]))  # type: ignore[attr-defined]
        images = batch.images.double() if double else batch.images
        return ToyBatch(images=images, labels=batch.labels)

    return Step(
        index=index,
        supernet=supernet,
        rng=numpy_generator(0, "training", "step", index),
        device=torch.device("cpu"),
        next_batch=next_batch,
        precision=Precision(),
        **more,
    )


def gradients(supernet: Supernet, losses: list[Callable[[], Tensor]]) -> dict[str, Tensor]:
    """Sum of the gradients of some losses, by parameter name."""
    supernet.zero_grad(set_to_none=True)
    for loss in losses:
        loss().backward()  # type: ignore[no-untyped-call]
    return {k: p.grad.clone() for k, p in supernet.named_parameters() if p.grad is not None}


def path_gradients(supernet: Supernet, arch: Arch, number: int) -> dict[str, Tensor]:
    """Gradients of one path on train batch ``number``, without the engine."""
    batch = ToyStream().batch(number)
    images = batch.images.contiguous(memory_format=torch.channels_last)
    return gradients(supernet, [lambda: F.cross_entropy(supernet(images, arch), batch.labels)])


def move(supernet: Supernet, by: Mapping[str, Tensor], lr: float = LR) -> None:
    """W − lr · gradient, where there is one."""
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            if name in by:
                parameter -= lr * by[name]


def twin(space: Space) -> Supernet:
    """The supernet that the engine starts with, for computing by hand."""
    return toy_supernet(space).to(memory_format=torch.channels_last).train()


def assert_equal_weights(found: Supernet, expected: Supernet) -> None:
    for (name, a), b in zip(found.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5, msg=name)


class KilledError(BaseException):
    """The end of a process: the engine handles it no more than it would SIGKILL."""


class Dying:
    """A strategy that dies in step ``at``, after the first update of it was executed."""

    def __init__(self, strategy: Strategy, at: int) -> None:
        self.strategy, self.at = strategy, at

    def __getattr__(self, name: str) -> Any:
        return getattr(self.strategy, name)  # what only some strategies have

    def optimizers(self) -> Mapping[str, OptimizerPlan]:
        return self.strategy.optimizers()

    def updates(self, step: Step) -> Iterator[Update]:
        for update in self.strategy.updates(step):
            yield update
            if step.index == self.at:
                raise KilledError

    def state_dict(self) -> dict[str, Any]:
        return self.strategy.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.strategy.load_state_dict(state)


def assert_a_killed_run_ends_with_the_same_bits(
    folder: Path, make: Callable[[Space, Supernet], Strategy], space: Space | None = None
) -> None:
    """Train once; train again, dying in steps 1 and 3 (checkpoints at 0, 2, 4); compare all bits.

    ``make`` gives a fresh strategy, as a fresh process would. Momentum, decay and smoothing are on.
    """
    space = space or toy_space()
    config = toy_config(steps=5, checkpoint=CheckpointConfig(seconds=0, steps=2))

    def once(to: Path, die_at: int | None = None) -> tuple[TrainResult, Strategy]:
        fresh = not (to / "checkpoints").exists()  # else the weights come from the checkpoint
        supernet = toy_supernet(space, seed=0 if fresh else 99)
        strategy = make(space, supernet)
        supernet = getattr(strategy, "supernet", supernet)
        shown = strategy if die_at is None else Dying(strategy, die_at)
        return run(to, shown, space=space, supernet=supernet, config=config), strategy

    whole, first = once(folder / "whole")
    for at in (1, 3):
        with pytest.raises(KilledError):
            once(folder / "broken", at)
    resumed, last = once(folder / "broken")
    assert resumed.weights_path.read_bytes() == whole.weights_path.read_bytes()
    assert plain_state(last.state_dict()) == plain_state(first.state_dict())


def plain_state(state: Any) -> str:
    """A strategy's state as text, tensors included."""
    return json.dumps(state, default=lambda t: t.tolist(), sort_keys=True)


def generator(*names: str | int) -> np.random.Generator:
    """Random numbers for a test."""
    return numpy_generator(0, "test", *names)
