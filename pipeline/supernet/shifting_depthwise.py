"""Gradients of large depthwise kernels on CPUs.

oneDNN, which computes convolutions for torch on CPUs, has a fast gradient for the weights of 3×3
depthwise convolutions only; that of a 5×5 kernel takes up to two hundred times as long as its
forward pass. Here it is put together from 3×3 ones, with the same result up to rounding:
dw[i + a, j + b] = dw3[i, j] of the picture shifted by the centre (a, b) of each 3×3 part. Forward
passes and the gradient of the input are oneDNN's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def large_depthwise(modules: Iterable[nn.Module]) -> list[nn.Conv2d]:
    """Depthwise convolutions on CPUs whose own gradient is slow."""
    return [
        m
        for m in modules
        if type(m) is nn.Conv2d
        and m.groups == m.in_channels == m.out_channels
        and m.bias is None
        and m.padding_mode == "zeros"
        and m.kernel_size[0] == m.kernel_size[1]
        and m.kernel_size[0] in (5, 7)
        and m.padding == (m.kernel_size[0] // 2,) * 2
        and m.stride == m.dilation == (1, 1)
        and m.weight.device.type == "cpu"
        and m.weight.dtype == torch.float32
    ]


@contextmanager
def fast_gradients(convolutions: Iterable[nn.Conv2d]) -> Iterator[None]:
    """Compute weight gradients of :func:`large_depthwise` convolutions from 3×3 ones inside."""
    changed = list(convolutions)
    try:
        for conv in changed:
            conv._conv_forward = _forward  # type: ignore[method-assign, assignment]
        yield
    finally:
        for conv in changed:
            del conv._conv_forward


def weight_gradient(x: Tensor, dy: Tensor, kernel: int) -> Tensor:
    """The gradient (C, 1, k, k) of a depthwise kernel with stride 1 and padding k // 2.

    Args:
        x: the input (N, C, H, W).
        dy: the gradient of the output (N, C, H, W).
        kernel: k, odd.

    >>> x, dy = torch.randn(2, 3, 6, 6), torch.randn(2, 3, 6, 6)
    >>> w = torch.zeros(3, 1, 5, 5, requires_grad=True)
    >>> F.conv2d(x, w, padding=2, groups=3).backward(dy)
    >>> torch.allclose(weight_gradient(x, dy, 5), w.grad, atol=1e-4)
    True
    """
    channels, reach = x.shape[1], kernel // 2
    small = x.new_empty(channels, 1, 3, 3)
    found = x.new_empty(channels, 1, kernel, kernel)
    # centres whose 3×3 neighbourhoods cover -reach ... reach; the last one may overlap
    centres = [min(c, reach - 1) for c in range(1 - reach, reach + 2, 3)]
    for a in centres:
        for b in centres:
            # shifted[y, x] = x[y + a - 1, x + b - 1], zero outside: it brings its own padding
            shifted = F.pad(x, (1 - b, 1 + b, 1 - a, 1 + a))
            _, part, _ = torch.ops.aten.convolution_backward(
                dy, shifted, small, None, [1, 1], [0, 0], [1, 1], False, [0, 0], channels,
                [False, True, False],
            )  # fmt: skip
            found[:, :, reach + a - 1 : reach + a + 2, reach + b - 1 : reach + b + 2] = part
    return found


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution with stride 1, padding k // 2 and no bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (dy,) = gradients
        x, weight = ctx.saved_tensors
        kernel, dx, dw = weight.shape[-1], None, None
        if ctx.needs_input_grad[0]:
            dx, _, _ = torch.ops.aten.convolution_backward(
                dy, x, weight, None, [1, 1], [kernel // 2] * 2, [1, 1], False, [0, 0],
                len(weight), [True, False, False],
            )  # fmt: skip
        if ctx.needs_input_grad[1]:
            dw = weight_gradient(x, dy, kernel)
        return dx, dw


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = _Depthwise.apply(x, weight)  # type: ignore[no-untyped-call]
    return found
