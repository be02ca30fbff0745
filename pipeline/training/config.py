"""Settings of supernet training, without torch.

One table of the run file, ``[train]``, with the tables ``[train.optimizer]``,
``[train.schedule]``, ``[train.teacher]``, ``[train.checkpoint]`` and ``[train.options]`` (read by
the strategy) below it. Everything that changes the result is part of the resume check; how often a
checkpoint or a log line is written is not.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from latency_tables.errors import ConfigError

PrecisionName = Literal["fp32", "bf16"]

DEFAULT_EPOCHS = 20.0
DEFAULT_DECAY_EPOCHS = 2.4


class _Strict(BaseModel):
    """Unknown keys are refused and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OptimizerConfig(_Strict):
    """One optimizer.

    ``momentum`` belongs to sgd and rmsprop, ``nesterov`` to sgd, ``betas`` to adamw, ``rho`` and
    ``eps`` to rmsprop.
    """

    kind: Literal["sgd", "adamw", "rmsprop"] = "sgd"
    lr: float = Field(default=0.1, gt=0)
    """Learning rate at the end of the warm-up."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    rho: float = Field(default=0.9, ge=0, lt=1)
    """Share of the mean square that a step keeps."""
    eps: float = Field(default=1e-3, gt=0)
    """Added to the mean square inside the root, as in TensorFlow."""
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
    """Learning rate per step: a linear warm-up, then the decay.

    ``linear`` and ``cosine`` end at ``final_lr``; ``exponential`` multiplies the rate by
    ``decay_rate`` every ``decay_epochs`` (or ``decay_steps``), counted from the end of the
    warm-up, and stays at ``floor`` times the base rate once it is down there.

    >>> mobile = ScheduleConfig(kind="exponential", warmup_epochs=5, decay_epochs=2.4)
    >>> in_steps = mobile.in_steps(steps_per_epoch=100, total_steps=9000)
    >>> in_steps.warmup_steps, in_steps.decay_steps
    (500, 240.0)
    """

    kind: Literal["linear", "cosine", "constant", "exponential"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    warmup_epochs: float | None = Field(default=None, ge=0)
    """The warm-up in epochs, instead of ``warmup_steps``."""
    final_lr: float = Field(default=0.0, ge=0)
    """Where linear and cosine end: the value that the step after the last one would have."""
    decay_rate: float = Field(default=0.97, gt=0, lt=1)
    decay_epochs: float | None = Field(default=None, gt=0)
    """Epochs per factor of ``decay_rate``; 2.4 where ``decay_steps`` is not given either."""
    decay_steps: float | None = Field(default=None, gt=0)
    staircase: bool = True
    """Decay in jumps, once per ``decay_epochs``; false: a little in every step."""
    floor: float = Field(default=0.0, ge=0, lt=1)
    """Share of the base rate below which exponential does not go (BigNAS: 0.05)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_steps and self.warmup_epochs is not None:
            raise ValueError("warmup_steps and warmup_epochs exclude each other: keep one")
        if self.decay_steps is not None and self.decay_epochs is not None:
            raise ValueError("decay_steps and decay_epochs exclude each other: keep one")
        return self

    def in_steps(self, steps_per_epoch: int, total_steps: int) -> ScheduleConfig:
        """The same schedule with every length in steps.

        Raises:
            ConfigError: the warm-up leaves nothing of ``total_steps``.
        """
        warmup = self.warmup_steps
        if self.warmup_epochs is not None:
            warmup = round(self.warmup_epochs * steps_per_epoch)
        if warmup and warmup >= total_steps:
            raise ConfigError(
                f"the warm-up of {warmup} steps ({warmup / steps_per_epoch:g} epochs) leaves "
                f"nothing of {total_steps} steps; a shorter one is allowed",
                hint="a shorter schedule.warmup_epochs (or warmup_steps), or more epochs",
            )
        decay = self.decay_steps
        if decay is None and self.kind == "exponential":
            decay = (self.decay_epochs or DEFAULT_DECAY_EPOCHS) * steps_per_epoch
        lengths = {"warmup_steps": warmup, "decay_steps": decay}
        return self.model_copy(update={**lengths, "warmup_epochs": None, "decay_epochs": None})


class TeacherConfig(_Strict):
    """``[train.teacher]``: a trained network whose answers are learnt beside the labels.

    loss = (1 − weight) · cross entropy + weight · temperature² · divergence of the softened answers
    """

    model: str
    """An .onnx file, a .pt2 file of torch.export, a folder with subnet.onnx and manifest.json, or
    the supernet.safetensors of a run folder, which stands for its network of the most MACs."""
    weight: float = Field(default=0.5, gt=0, le=1)
    temperature: float = Field(default=1.0, gt=0)
    kind: Literal["kl", "alpha"] = "kl"
    """``alpha``: AlphaNet's pair of α-divergences, −1 and 1; temperature 1 only."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "alpha" and self.temperature != 1:
            raise ValueError('kind = "alpha" is for temperature = 1 only')
        return self


class RanksConfig(_Strict):
    """What several processes do with a step; of no meaning for a single one."""

    paths: Literal["same", "per_rank"] = "same"
    """``same``: every rank trains the subnets of the step on its part of the images;
    ``per_rank``: every rank draws subnets of its own, each weighs 1/world."""
    batch_norm: Literal["global", "rank"] | None = None
    """Images that batch norm takes its statistics from while training: those of all ranks
    (``global``; the default where paths are the same) or those of one."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.paths == "per_rank" and self.batch_norm == "global":
            raise ValueError(
                'batch_norm = "global" needs paths = "same": ranks with subnets of their own have '
                "no batch norms in common"
            )
        return self

    @property
    def global_batch_norm(self) -> bool:
        """Whether batch norm sees the images of all ranks."""
        return self.paths == "same" and self.batch_norm != "rank"


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
    warm_start: str | None = Field(default=None, min_length=1)
    """Weights that the supernet starts from: .safetensors, .pth, .onnx, or the folder of a run."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Probability that the last residual branch is dropped; earlier ones less, linearly."""
    teacher: TeacherConfig | None = None
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of a moving average of the weights, which is what is saved at the end (0.9999)."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Upper bound of the norm of all gradients of an update."""
    clip_value: float | None = Field(default=None, gt=0)
    """Upper bound of the size of each gradient element."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """``auto`` times what the device supports on the first batch and takes the fastest."""
    channels_last: Literal["auto", "on", "off"] = "auto"
    compile: bool = False
    """Compile choice and elastic blocks one by one with torch.compile; part of the last bits."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of torch; its own choice where not given. Part of a CPU result's last bits."""
    ranks: RanksConfig = RanksConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_every: int | None = Field(default=None, ge=1)
    """Steps per line of train.jsonl; about 200 lines per run where not given."""
    tensorboard: bool = False
    """Write the numbers of train.jsonl for TensorBoard, too; needs ``hilnas[tensorboard]``."""
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
        left_out = {"checkpoint": True, "log_every": True, "tensorboard": True}
        # where the teacher's file lies is no matter: its hash is compared instead
        return self.model_dump(mode="json", exclude={**left_out, "teacher": {"model"}})
