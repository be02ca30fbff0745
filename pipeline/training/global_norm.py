"""Batch norm over the images of all ranks, so that a batch in parts is normalised as a whole.

Inside :class:`GlobalBatchNorm` every batch norm in training mode, whatever module calls it, takes
mean and variance over all ranks. With r = 1 ... R ranks of n values per channel each:

    μ = mean of μ_r      σ² = mean of σ_r² + variance of μ_r            (exact: equal parts)
    y = (x − μ) / √(σ² + ε) · w + b
    ∂L/∂x = w / √(σ² + ε) · (g − mean of g − x̂ · mean of g x̂)           g = ∂L/∂y, x̂ = normalised x

Both means of the last line are over all ranks, too; L is then the sum of the ranks' losses, whose
gradient the ranks average afterwards (Ioffe and Szegedy, 2015, equations of section 3).

torch has this as ``nn.SyncBatchNorm`` for GPUs only, as a module to convert to; here CPU and GPU
give the same and spaces need not know. Every batch norm costs a message in each direction, and all
ranks must run the same subnets in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from latency_tables.errors import UsageError
from pipeline.training.ranks import Ranks


class GlobalBatchNorm(TorchFunctionMode):
    """While entered, batch norms in training mode use the statistics of all ranks.

    Raises:
        UsageError: regions are compiled, where no message to other ranks can be part of a graph.
    """

    def __init__(self, ranks: Ranks, *, compiled: bool = False) -> None:
        super().__init__()
        if compiled:
            raise UsageError(
                "train.compile = true and batch norm over the images of all ranks exclude each "
                "other",
                hint="--set train.ranks.batch_norm=rank, or --set train.compile=false",
            )
        self.ranks = ranks

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm and not self.ranks.apart:
            return self._batch_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        n = x.numel() // x.shape[1] * self.ranks.world
        y: Tensor
        y, mean, var = _Normalise.apply(x, self.ranks, eps)  # type: ignore[no-untyped-call]
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (n / max(1, n - 1))).to(running_var.dtype), momentum)
        shape = (1, -1, *(1,) * (x.ndim - 2))
        if weight is not None:
            y = y * weight.reshape(shape)
        if bias is not None:
            y = y + bias.reshape(shape)
        return y.to(x.dtype)


class _Normalise(torch.autograd.Function):
    """x (N, C, ...) to x̂ with mean and variance (C,), in fp32 or wider."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        axes = [0, *range(2, x.ndim)]
        shape = (1, -1, *(1,) * (x.ndim - 2))
        own_var, own_mean = torch.var_mean(wide, dim=axes, correction=0)
        of_all = ranks.stacked(torch.stack((own_mean, own_var)))  # (world, 2, C)
        mean = of_all[:, 0].mean(dim=0)
        var = of_all[:, 1].mean(dim=0) + of_all[:, 0].var(dim=0, correction=0)
        scale = (var + eps).rsqrt()
        normalised = (wide - mean.reshape(shape)) * scale.reshape(shape)
        ctx.save_for_backward(normalised, scale)
        ctx.ranks, ctx.axes, ctx.shape, ctx.dtype = ranks, axes, shape, x.dtype
        ctx.mark_non_differentiable(mean, var)
        return normalised, mean, var

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        normalised, scale = ctx.saved_tensors
        g, axes, shape = gradients[0], ctx.axes, ctx.shape
        own = torch.stack((g.mean(dim=axes), (g * normalised).mean(dim=axes)))
        means = ctx.ranks.stacked(own).mean(dim=0)  # (2, C)
        inner = g - means[0].reshape(shape) - normalised * means[1].reshape(shape)
        return (inner * scale.reshape(shape)).to(ctx.dtype), None, None
