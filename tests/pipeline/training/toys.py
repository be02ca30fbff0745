"""Small spaces and synthetic batches for tests of training and scoring."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.randomness import torch_generator
from pipeline.spaces import load_space
from pipeline.spaces.base import Space, Supernet
from pipeline.strategies.spos import SPOS
from pipeline.training.config import CheckpointConfig, OptimizerConfig, TrainConfig
from pipeline.training.engine import TrainResult, train
from pipeline.training.step import Strategy

SHAPE = (1, 8, 8)
CLASSES = 4


@dataclass(frozen=True, kw_only=True)
class ToyBatch:
    images: Tensor
    labels: Tensor


class ToyStream:
    """Noisy copies of one fixed picture per class; batch i is always the same."""

    def __init__(self, *, batch_size: int = 16, batches_per_epoch: int = 4, seed: int = 0) -> None:
        self.batch_size, self._per_epoch, self.seed = batch_size, batches_per_epoch, seed
        self.means = torch.randn((CLASSES, *SHAPE), generator=torch_generator(0, "means"))

    @property
    def batches_per_epoch(self) -> int:
        return self._per_epoch

    def batch(self, number: int, /) -> ToyBatch:
        generator = torch_generator(self.seed, "toy", number)
        labels = torch.randint(CLASSES, (self.batch_size,), generator=generator)
        noise = torch.randn((self.batch_size, *SHAPE), generator=generator)
        return ToyBatch(images=self.means[labels] + 0.5 * noise, labels=labels)


def toy_space(name: str = "nasbench_macro") -> Space:
    return load_space(name, preset="tiny", input_shape=SHAPE, n_classes=CLASSES)


def toy_supernet(space: Space, seed: int = 0) -> Supernet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return space.supernet()


def toy_config(**changes: Any) -> TrainConfig:
    """Eight steps of plain SGD on one thread, in one fixed precision."""
    settings: dict[str, Any] = {
        "steps": 8,
        "optimizer": OptimizerConfig(lr=0.05, weight_decay=1e-2),
        "precision": "fp32",
        "channels_last": "on",
        "threads": 1,
        "log_every": 2,
        "checkpoint": CheckpointConfig(seconds=0, steps=3),
    }
    return TrainConfig(**(settings | changes))


def toy_train(
    folder: Path,
    *,
    space: Space | None = None,
    supernet: Supernet | None = None,
    strategy: Strategy | None = None,
    config: TrainConfig | None = None,
    **more: Any,
) -> TrainResult:
    """Train on synthetic batches of the splits train, scoring and b-update."""
    space = space or toy_space()
    return train(
        space,
        supernet or toy_supernet(space),
        strategy or SPOS(space),
        {"train": ToyStream(), "scoring": ToyStream(seed=1), "b-update": ToyStream(seed=2)},
        config or toy_config(),
        folder,
        seed=0,
        **more,
    )
