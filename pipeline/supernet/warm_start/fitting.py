"""Write one layer's trained weights into another of a different size, keeping the function.

Where the target lacks a channel it is left out; where it has one more, the filter that makes it
keeps its fresh weights and whoever reads it starts with zeros there, so it changes nothing yet.
Kernels are cropped around their centre, or padded with zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.supernet.warm_start.layers import DEFAULT_EPSILON, Layer, Norm

Picked = Tensor
"""Numbers (n,) of the source's channels; entry i goes to channel i of the target."""

_TINY = 1e-12


def norm_strength(layer: Layer) -> Tensor:
    """How far each output channel (C,) can move: |scale| + |shift| of its batch norm.

    A channel of strength zero is always zero. Without a batch norm it is the L1 norm of the
    filter and its bias.
    """
    norm = layer.norm
    if norm is not None and norm.weight is not None:
        shift = 0.0 if norm.bias is None else norm.bias.abs()
        return norm.weight.abs() + shift
    strength = layer.weight.abs().flatten(1).sum(1)
    return strength if layer.bias is None else strength + layer.bias.abs()


def reader_strength(layer: Layer) -> Tensor:
    """L1 norm (C,) of the weights with which a layer reads each input channel."""
    dims = tuple(d for d in range(layer.weight.dim()) if d != 1)
    return layer.weight.abs().sum(dims)


def pick(importance: Tensor, n: int, *, elastic: bool) -> Picked:
    """The ``n`` most important channels: by importance for an elastic target, else in order.

    An elastic target runs its leading channels, so the most important ones go first.

    >>> pick(torch.tensor([3.0, 0.0, 5.0, 4.0]), 3, elastic=False).tolist()
    [0, 2, 3]
    >>> pick(torch.tensor([3.0, 0.0, 5.0, 4.0]), 3, elastic=True).tolist()
    [2, 3, 0]
    """
    best = importance.argsort(descending=True, stable=True)[:n]
    return best if elastic else best.sort().values


def fitted_kernel(weight: Tensor, size: int) -> Tensor:
    """Crop (out, in, k, k) around the centre, or pad it with zeros, to ``size``.

    >>> fitted_kernel(torch.arange(9.0).reshape(1, 1, 3, 3), 1).item()
    4.0
    """
    k = weight.shape[-1]
    if size <= k:
        edge = (k - size) // 2
        return weight[..., edge : edge + size, edge : edge + size]
    edge = (size - k) // 2
    return torch.nn.functional.pad(weight, (edge, size - k - edge, edge, size - k - edge))


def fitted_image_channels(weight: Tensor, n: int) -> Tensor | None:
    """First-layer weights (out, in, k, k) for ``n`` image channels; None where that is unknown.

    Colour to grey adds the channels up (a grey picture has three equal ones), grey to colour
    gives each a third.
    """
    n_source = weight.shape[1]
    if n_source == n:
        return weight
    if (n_source, n) == (3, 1):
        return weight.sum(1, keepdim=True)
    return weight.repeat(1, 3, 1, 1) / 3 if (n_source, n) == (1, 3) else None


@torch.no_grad()
def fit_layer(
    target: Layer, source: Layer, *, rows: Picked, columns: Picked | None, scale: float = 1.0
) -> list[str]:
    """Write the picked channels of ``source`` into ``target``; returns the tensors written.

    ``columns`` is None where a layer has no input channels to pick (depthwise, or equal ones).
    ``scale`` multiplies the weights.
    """
    weight = source.weight[rows]
    if columns is not None:
        weight = weight[:, columns]
    if weight.dim() == 4:
        weight = fitted_kernel(weight, target.weight.shape[-1])
    weight = weight * scale
    bias = None if source.bias is None else source.bias[rows] * scale
    written = [f"{target.name}.weight"]
    n = len(rows)
    if target.norm is None:
        weight, shift = _folded(weight, bias, source.norm, rows)
        if target.bias is not None:
            target.bias[:n] = shift
            written.append(f"{target.name}.bias")
    elif target.norm.weight is None:
        weight = _into_plain_norm(target.norm, source.norm, weight, bias, rows)
        written += [f"{target.norm.name}.running_mean", f"{target.norm.name}.running_var"]
    else:
        written += fit_norm(target.norm, source.norm, bias, rows)
    target.weight[:n] = 0
    target.weight[:n, : weight.shape[1]] = weight
    return written


def _scale_shift(
    norm: Norm | None, bias: Tensor | None, rows: Picked
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(scale, shift, mean, deviation) of the picked channels, the convolution's bias included."""
    ones = torch.ones(len(rows))
    if norm is None:
        return (
            ones,
            (torch.zeros(len(rows)) if bias is None else bias),
            torch.zeros(len(rows)),
            ones,
        )
    scale = ones if norm.weight is None else norm.weight[rows]
    shift = torch.zeros(len(rows)) if norm.bias is None else norm.bias[rows]
    mean = norm.mean[rows] if bias is None else norm.mean[rows] - bias
    return scale, shift, mean, (norm.variance[rows] + norm.epsilon).sqrt()


@torch.no_grad()
def fit_norm(target: Norm, source: Norm | None, bias: Tensor | None, rows: Picked) -> list[str]:
    """Write scale, shift and statistics. Without a batch norm in the source the target's becomes
    the bias alone: exact with running statistics, which is all that a folded file still knows."""
    scale, shift, mean, deviation = _scale_shift(source, bias, rows)
    n = len(rows)
    target.mean[:n] = mean
    epsilon = DEFAULT_EPSILON if source is None else source.epsilon
    if source is not None and epsilon == target.epsilon:
        target.variance[:n] = source.variance[rows]  # to the last bit
    else:
        target.variance[:n] = (deviation**2 - target.epsilon).clamp_min(_TINY)
    written = [f"{target.name}.running_mean", f"{target.name}.running_var"]
    if target.weight is not None and target.bias is not None:
        target.weight[:n], target.bias[:n] = scale, shift
        written += [f"{target.name}.weight", f"{target.name}.bias"]
    return written


def _folded(
    weight: Tensor, bias: Tensor | None, norm: Norm | None, rows: Picked
) -> tuple[Tensor, Tensor]:
    """Weight and bias that do what convolution and batch norm did together."""
    scale, shift, mean, deviation = _scale_shift(norm, bias, rows)
    factor = scale / deviation
    return weight * factor.reshape(-1, *[1] * (weight.dim() - 1)), shift - mean * factor


def _into_plain_norm(
    target: Norm, source: Norm | None, weight: Tensor, bias: Tensor | None, rows: Picked
) -> Tensor:
    """Put scale and shift into the statistics of a batch norm that has neither.

    (w' x - m') / sqrt(v' + e) = g (w x - m) / s + b holds for w' = w sign(g), v' = s² / g² - e and
    m' = m sign(g) - b s / |g|; a channel with g = 0 is constant: w' = 0, v' = 1 - e, m' = -b.
    """
    scale, shift, mean, deviation = _scale_shift(source, bias, rows)
    n = len(rows)
    dead = scale.abs() < _TINY
    safe = torch.where(dead, torch.ones_like(scale), scale)
    ratio = deviation / safe.abs()
    variance = torch.where(dead, torch.ones_like(ratio), ratio**2)
    target.variance[:n] = (variance - target.epsilon).clamp_min(_TINY)
    target.mean[:n] = torch.where(dead, -shift, mean * safe.sign() - shift * ratio)
    sign = torch.where(dead, torch.zeros_like(scale), safe.sign())
    return weight * sign.reshape(-1, *[1] * (weight.dim() - 1))
