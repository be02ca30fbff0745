"""What the engine and a strategy say to each other: Step, Update, OptimizerPlan, Strategy.

A strategy is a generator. For every step of training the engine calls ``updates(step)`` and
executes each :class:`Update` that comes out *before* it asks for the next one, so code after a
``yield`` sees the new weights. The strategy decides which subnets see which batch and what is
summed; the engine owns precision, gradients, optimizers, learning rates and checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latency_tables.arch import Arch
from latency_tables.errors import UsageError
from pipeline.spaces.base import Supernet
from pipeline.training.config import OptimizerConfig, ScheduleConfig
from pipeline.training.precision import Precision
from pipeline.training.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from pipeline.training.teacher import Teacher


class Batch(Protocol):
    """Images float (N, C, H, W); labels are classes int64 (N,) or soft float (N, n_classes)."""

    @property
    def images(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...


class Stream(Protocol):
    """Training batches by number; number i is the same batch whoever asks, and when."""

    @property
    def batches_per_epoch(self) -> int: ...
    def batch(self, number: int, /) -> Batch: ...


Gradients = Mapping[str, Tensor]
"""Gradients by parameter name; parameters that are absent are not touched at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One step of one optimizer.

    Give either ``losses``, whose gradients are summed (each loss is built and differentiated
    before the next one, so memory is that of one subnet), or ``gradients``: ready ones or a
    function that makes them, called when the update is executed.

    ``beside`` are further losses that are differentiated with the others, but are no part of the
    loss that is logged and watched. ``also`` names further optimizers that step on the gradients of
    the same losses, each clipped by itself.

    ``scale`` multiplies the gradients. The clipping bounds replace those of the run file; ready
    gradients are clipped only where a bound is given here.
    """

    losses: Sequence[Callable[[], Tensor]] = ()
    beside: Sequence[Callable[[], Tensor]] = ()
    gradients: Gradients | Callable[[], Gradients] | None = None
    optimizer: str = "weights"
    also: Sequence[str] = ()
    scale: float = 1.0
    clip_norm: float | None = None
    clip_value: float | None = None

    def __post_init__(self) -> None:
        if bool(self.losses) == (self.gradients is not None):
            raise UsageError("an Update carries either losses or gradients: give one of the two")
        if self.gradients is not None and (self.beside or self.also):
            raise UsageError("ready gradients are those of one optimizer, and of no further loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerPlan:
    """What an optimizer moves, and how. ``None`` means: the supernet's, the run file's.

    A strategy that brings parameters of its own saves them in its ``state_dict``; the engine
    saves the optimizer's state by parameter name.
    """

    parameters: Mapping[str, nn.Parameter] | None = None
    optimizer: OptimizerConfig | None = None
    schedule: ScheduleConfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """What a strategy asks for in ``splits``: held-out images in batches that take turns.

    Batches have the size of the run's; a plain number of images in its place asks for one batch of
    all of them, the same every time.
    """

    n_images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of training, as the strategy sees it.

    ``index`` counts from 0 to ``n_steps``, the length of the whole run. ``rng`` depends on the
    run's seed and ``index`` only, so a strategy that draws from nothing else has no random state
    to save. Where every rank has paths of its own (``own_paths``), it depends on the rank, too.
    """

    index: int
    n_steps: int = 1
    supernet: Supernet
    rng: np.random.Generator
    device: torch.device
    next_batch: Callable[[str], Batch]
    precision: Precision
    label_smoothing: float = 0.0
    teacher: Teacher | None = None
    ranks: Ranks = ALONE
    own_paths: bool = False

    @property
    def progress(self) -> float:
        """Share of the run that is done: 0 in the first step, below 1 in the last one."""
        return self.index / self.n_steps

    def autocast(self) -> AbstractContextManager[None]:
        """Run forward passes of a strategy's own in the run's number format."""
        return self.precision.autocast(self.device)

    def batch(self, split: str = "train") -> Batch:
        """The next batch of a split: a new one each call, on the device."""
        return self.next_batch(split)

    def loss(self, arch: Arch, batch: Batch) -> Tensor:
        """Loss (scalar, fp32) of one subnet with the run's precision: :meth:`objective`.

        Wrap it for an update, ``partial(step.loss, arch, batch)``, or call it under
        ``torch.no_grad()`` to score a path by its cross entropy.
        """
        images = batch.images.contiguous(memory_format=self.precision.memory_format)
        with self.autocast():
            logits = self.supernet(images, arch)  # (N, n_classes)
        # fp32 or wider
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return self.objective(logits, batch)

    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        """What is minimised (scalar) for logits (N, n_classes) of a batch.

        Cross entropy with the run's label smoothing, and the divergence from the teacher's answers
        where the run has one. Without gradients the teacher has no say: scores are cross entropy.
        """
        labels = batch.labels
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if self.teacher is None or not torch.is_grad_enabled():
            return loss
        return self.teacher.mixed(loss, logits, batch)

    def agree(self, scores: Tensor) -> Tensor:
        """Scores of the step's subnets on a training batch, as all ranks decide on them.

        Each rank has seen its part of the batch: the mean is the score on the whole. Ranks with
        paths of their own keep their own scores.
        """
        return scores if self.own_paths else self.ranks.mean(scores)

    def spread(self, scores: Sequence[Callable[[], Tensor]]) -> Tensor:
        """Values (n,) of functions that score subnets on a held-out batch, each called once.

        Held-out batches are whole on every rank, so ranks with the same paths share them out; the
        result does not depend on how many ranks there are.
        """
        if self.own_paths:
            return torch.stack([score() for score in scores])
        return self.ranks.spread(scores, self.device)

    def collect(self, value: Any) -> list[Any]:
        """A JSON value of every rank, where each has paths of its own; else the common one.

        For what strategies keep from step to step, which must be alike on all ranks.
        """
        return self.ranks.gather(value) if self.own_paths else [value]


class Strategy(Protocol):
    """Decides which subnets a step trains, and how.

    ``state_dict`` returns nested dicts and lists of JSON values and tensors: whatever outlives a
    step. ``load_state_dict`` must copy into tensors that an optimizer holds, not replace them.

    A strategy may also have ``plan(n_steps)``, told before :meth:`optimizers` how long the run is;
    ``log_numbers()``, JSON values for the lines of ``train.jsonl`` (rank 0 asks, so nothing in it
    may wait for other ranks); ``save(folder)``, for files of its own beside the weights; and
    ``summary()``, a line for people at the end.
    """

    def optimizers(self) -> Mapping[str, OptimizerPlan]:
        """The optimizers that updates may name."""
        ...

    def updates(self, step: Step) -> Iterator[Update]:
        """The updates of one step; each is executed before the next one is asked for."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that outlives a step, apart from the supernet's weights."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        ...
