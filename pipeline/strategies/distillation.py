"""In-place distillation: the largest subnet of a step teaches the other ones.

    z, y      logits and labels;  p = softmax(z_teacher), constant;  q = softmax(z_student)

    KL        Σ p log(p / q)                                                 the default
    D_α       Σ q ((p / q)^α − 1) / (α (α − 1))      α → 1: KL(p‖q), α → 0: KL(q‖p)
              ∇D_α = −(1/α) Σ q (p / q)^α ∇ log q    with (p / q)^α ≤ 5, p and q constant in it
    adaptive  the larger one of D_α⁻ and D_α⁺, α⁻ = −1, α⁺ = 1, for each batch

D_α is that of Wang et al., "AlphaNet: Improved Training of Supernets with Alpha-Divergence", 2021:
a negative α punishes most where q > p, a positive one where q < p.

Whether the teacher's logits come from its training pass, where dropout may be on (as in
AttentiveNAS's public code), or from a pass of their own without dropout is
``teacher_dropout``; the default is without. Batch norms use the statistics of the batch either way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from latency_tables.arch import Arch
from pipeline.strategies.passes import probing, subnet_logits, without_dropout
from pipeline.training.step import Batch, Step

NEAR_ONE = 1e-3
"""An α this near to 1 has the value of KL: the formula would divide rounding errors by α − 1."""


class DistillationOptions(BaseModel):
    """What strategies with in-place distillation have in ``[train.options]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    divergence: Literal["kl", "alpha"] = "kl"
    """``alpha``: the larger one of two α-divergences (AlphaNet)."""
    alpha_min: float = -1.0
    """α⁻."""
    alpha_max: float = 1.0
    """α⁺."""
    ratio_clip: float = Field(default=5.0, ge=1)
    """Upper bound of (p / q)^α in the gradient."""
    teacher_dropout: bool = False
    """Take the teacher's logits from its training pass, dropout and all."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.alpha_min < self.alpha_max:
            raise ValueError(
                f"alpha_min = {self.alpha_min:g} must be less than alpha_max = {self.alpha_max:g}"
            )
        return self


class InPlaceTeacher:
    """The losses of one step: cross entropy of the teacher, divergence from it for the others.

    ``loss`` must be computed before any ``distil``; the losses of an update are, in their order.
    """

    def __init__(self, step: Step, arch: Arch, batch: Batch, options: DistillationOptions) -> None:
        self.step, self.arch, self.batch, self.options = step, arch, batch, options
        self._logits: Tensor | None = None

    def loss(self) -> Tensor:
        """Loss (scalar) of the teacher from the labels, with the run's smoothing and its dropout.

        A run with a teacher of its own (``[train.teacher]``) teaches this subnet, too.
        """
        step = self.step
        logits = subnet_logits(step, self.arch, self.batch)
        self._logits = logits.detach()
        if not self.options.teacher_dropout and has_dropout(step.supernet):
            with probing(step.supernet):
                self._logits = subnet_logits(step, self.arch, self.batch)
        return step.objective(logits, self.batch)

    def distil(self, arch: Arch) -> Tensor:
        """Divergence (scalar) of a subnet from the teacher, without dropout."""
        return self.distil_from(partial(subnet_logits, self.step, arch, self.batch))

    def distil_from(self, answer: Callable[[], Tensor]) -> Tensor:
        """:meth:`distil` for a pass that gives the logits (N, n_classes) of a subnet."""
        if self._logits is None:
            raise RuntimeError("the teacher's loss comes first: there are no logits yet")
        with without_dropout(self.step.supernet):
            student = answer()
        options = self.options
        if options.divergence == "kl":
            return kl_divergence(student, self._logits)
        divergence = partial(alpha_divergence, student, self._logits, ratio_clip=options.ratio_clip)
        low, high = divergence(alpha=options.alpha_min), divergence(alpha=options.alpha_max)
        return torch.where(low.detach() > high.detach(), low, high)


def has_dropout(network: nn.Module) -> bool:
    """Whether anything in it drops units, channels or whole branches."""
    return any(
        type(m).__name__.lower().startswith("drop") and getattr(m, "p", 1)
        for m in network.modules()
    )


def kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(p‖q), the mean over images (scalar); logits (N, n_classes), the teacher's are constant.

    >>> round(float(kl_divergence(torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]).log())), 6)
    0.130812
    """
    log_p, log_q = F.log_softmax(teacher.detach(), dim=1), F.log_softmax(student, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()


def alpha_divergence(
    student: Tensor, teacher: Tensor, *, alpha: float, ratio_clip: float = 5.0
) -> Tensor:
    """D_α, the mean over images (scalar): its value, with the clipped gradient.

    >>> student, teacher = torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]).log()
    >>> round(float(alpha_divergence(student, teacher, alpha=-1.0)), 6)
    0.166667
    """
    log_p, log_q = F.log_softmax(teacher.detach(), dim=1), F.log_softmax(student, dim=1)
    q = log_q.detach().exp()
    log_ratio = log_p - log_q.detach()  # log(p / q), (N, n_classes)
    # ((p / q)^α − 1) / α. The −1 adds nothing to the gradient, and α near 0 stays accurate with it
    excess = log_ratio
    if alpha != 0:
        excess = (alpha * log_ratio).expm1().clamp(max=ratio_clip - 1) / alpha
    if abs(alpha - 1) < NEAR_ONE:
        value = (q * (excess + 1) * log_ratio).sum(dim=1).mean()
    else:
        value = (q * excess).sum(dim=1).mean() / (alpha - 1)
    gradient = -(q * excess * log_q).sum(dim=1).mean()
    return value + gradient - gradient.detach()
