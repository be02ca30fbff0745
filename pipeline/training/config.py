"""Settings of supernet training, without torch.

One table of the run file, ``[train]``, with the tables ``[train.optimizer]``,
``[train.schedule]``, ``[train.checkpoint]`` and ``[train.options]`` (read by the strategy) below
it. Everything that changes the result is part of the resume check; how often a checkpoint or a
log line is written is not.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PrecisionName = Literal["fp32", "bf16"]

DEFAULT_EPOCHS = 20.0


class _Strict(BaseModel):
    """Unknown keys are refused and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OptimizerConfig(_Strict):
    """One optimizer. ``momentum`` and ``nesterov`` belong to sgd, ``betas`` to adamw."""

    kind: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(default=0.1, gt=0)
    """Learning rate at the end of the warm-up."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=4e-5, ge=0)
    decay: Literal["matrices", "all"] = "matrices"
    """``matrices``: only tensors with more than one dimension decay (SPOS); ``all``: every one."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov = true needs momentum > 0, for example momentum = 0.9")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas = {list(self.betas)}: both must lie in [0, 1)")
        return self


class ScheduleConfig(_Strict):
    """Learning rate per step: a linear warm-up, then the decay to ``final_lr`` at the last step."""

    kind: Literal["linear", "cosine", "constant"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    final_lr: float = Field(default=0.0, ge=0)
    """Where linear and cosine end: the value that the step after the last one would have."""


class CheckpointConfig(_Strict):
    """When the state is written; both intervals may be given. 0 switches an interval off."""

    seconds: float = Field(default=60.0, ge=0)
    steps: int = Field(default=0, ge=0)


class TrainConfig(_Strict):
    """How a supernet is trained.

    >>> TrainConfig(epochs=20).total_steps(batches_per_epoch=17)
    340
    >>> TrainConfig(steps=150_000, batch_size=1024).total_steps(batches_per_epoch=1252)
    150000
    """

    strategy: str = "spos"
    options: dict[str, Any] = {}
    """Settings of the strategy itself."""
    epochs: float | None = Field(default=None, gt=0)
    """One epoch is as many steps as the train split has batches; 20 where steps is not given."""
    steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=128, ge=2)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    clip_norm: float | None = Field(default=None, gt=0)
    """Upper bound of the norm of all gradients of an update."""
    clip_value: float | None = Field(default=None, gt=0)
    """Upper bound of the size of each gradient element."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """``auto`` times what the device supports on the first batch and takes the fastest."""
    channels_last: Literal["auto", "on", "off"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of torch; its own choice where not given. Part of a CPU result's last bits."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_every: int | None = Field(default=None, ge=1)
    """Steps per line of train.jsonl; about 200 lines per run where not given."""
    blow_up_factor: float | None = Field(default=10.0, gt=1)
    """Stop where a loss is this many times its running median and this many times chance level."""
    blow_up_after: int = Field(default=50, ge=1)
    """Steps before the running median is trusted."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps exclude each other: keep one of the two")
        if self.steps is not None and self.schedule.warmup_steps >= self.steps:
            raise ValueError(
                f"schedule.warmup_steps = {self.schedule.warmup_steps} leaves nothing of "
                f"steps = {self.steps}; fewer warm-up steps are allowed"
            )
        return self

    def total_steps(self, batches_per_epoch: int) -> int:
        """Number of strategy steps of the whole run."""
        if self.steps is not None:
            return self.steps
        return max(1, math.ceil((self.epochs or DEFAULT_EPOCHS) * batches_per_epoch))

    def log_interval(self, total_steps: int) -> int:
        """Steps per line of train.jsonl."""
        return self.log_every or min(100, max(1, total_steps // 200))

    def numerics(self) -> dict[str, Any]:
        """The settings that change the result, JSON-ready: a resumed run must agree on them."""
        return self.model_dump(mode="json", exclude={"checkpoint", "log_every"})
