"""Operators of the MobileNet spaces: inverted residuals with and without SE, and identities."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn

from latency_tables.errors import SpaceError
from pipeline.spaces.drop_path import DropPath
from pipeline.spaces.layers import conv_bn, depthwise_bn

IDENTITY = "identity"
PLAIN = tuple(f"mb{expand}_k{kernel}" for expand in (3, 6) for kernel in (3, 5, 7))
"""The six inverted residuals without SE."""
OPERATORS = (*PLAIN, *(f"{name}_se" for name in PLAIN), IDENTITY)
SE_REDUCTION = 4
_NAME = re.compile(r"mb(?P<expand>\d+)_k(?P<kernel>\d+)(?P<se>_se)?")


def make_divisible(value: float, divisor: int = 8) -> int:
    """The multiple of ``divisor`` nearest to ``value``, at least ``divisor`` and 0.9 ``value``.

    Sandler et al., MobileNetV2, 2018: channel counts that suit the hardware.

    >>> make_divisible(12), make_divisible(11.9), make_divisible(3), make_divisible(9.5)
    (16, 16, 8, 16)
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * value else rounded + divisor


class SqueezeExcitation(nn.Module):
    """Scale every channel by a gate that follows from the means of all channels.

    Hu et al., "Squeeze-and-Excitation Networks", 2018, with a hard sigmoid as MobileNetV3 has it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = make_divisible(channels // SE_REDUCTION)
        self.gate = nn.Sequential(
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(squeezed, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        gate: Tensor = self.gate(x.mean((2, 3), keepdim=True))  # (N, C, 1, 1)
        return x * gate


class InvertedResidual(nn.Module):
    """1×1 expansion, depthwise k×k, SE if wanted, linear 1×1; added to the input if ``residual``.

    ``mid``: the expanded channels; None means that there is no expansion.
    """

    def __init__(
        self, in_channels: int, mid: int | None, channels: int, *, kernel: int, stride: int,
        residual: bool, se: bool = False, affine: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.residual = residual
        expanded = in_channels if mid is None else mid
        self.body = nn.Sequential(
            *(() if mid is None else conv_bn(in_channels, mid, 1, affine=affine)),
            *depthwise_bn(expanded, kernel, stride=stride, relu=True, affine=affine),
            *((SqueezeExcitation(expanded),) if se else ()),
            *conv_bn(expanded, channels, 1, relu=False, affine=affine),
        )
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) → (N, C, ceil(H / stride), ceil(W / stride))."""
        y: Tensor = self.body(x)
        return x + self.drop_path(y) if self.residual else y


def expansion(operator: str) -> int:
    """How many times as many channels an operator's middle has as its input; identities: 0.

    Raises:
        SpaceError: no operator is written like this.

    >>> expansion("mb6_k5_se"), expansion("identity")
    (6, 0)
    """
    return 0 if operator == IDENTITY else int(_parts(operator)["expand"])


def _parts(operator: str) -> re.Match[str]:
    parts = _NAME.fullmatch(operator)
    if parts is None:
        raise SpaceError(f"no operator {operator!r}; known: {', '.join(OPERATORS)}")
    return parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Place of a searched layer: what goes in and comes out, whatever the operator."""

    name: str
    in_channels: int
    channels: int
    stride: int


def layer_module(
    operator: str, layer: Layer, *, affine: bool, in_channels: int = 0, mid: int = 0
) -> nn.Module:
    """The module of one operator, for example ``"mb6_k5_se"``, at ``layer``.

    ``in_channels`` and ``mid`` (the expanded channels) may be fewer than the layer's own; 0 means
    that they are not.

    Raises:
        SpaceError: no operator is written like this.
    """
    in_channels = in_channels or layer.in_channels
    keeps_shape = layer.stride == 1 and layer.in_channels == layer.channels
    if operator == IDENTITY:
        if keeps_shape:
            return nn.Identity()
        return nn.Sequential(
            *conv_bn(in_channels, layer.channels, 1, stride=layer.stride, relu=False, affine=affine)
        )
    return InvertedResidual(
        in_channels,
        mid or layer.in_channels * expansion(operator),
        layer.channels,
        kernel=int(_parts(operator)["kernel"]),
        stride=layer.stride,
        residual=keeps_shape,
        se=bool(_parts(operator)["se"]),
        affine=affine,
    )


def stem_module(image_channels: int, channels: int, *, stride: int, affine: bool) -> nn.Module:
    """Convolution 3×3, batch norm, ReLU."""
    return nn.Sequential(*conv_bn(image_channels, channels, 3, stride=stride, affine=affine))


def mb1_module(in_channels: int, channels: int, *, affine: bool) -> nn.Module:
    """The fixed layer after the stem: depthwise 3×3 and linear 1×1; never a residual."""
    return InvertedResidual(
        in_channels, None, channels, kernel=3, stride=1, residual=False, affine=affine
    )
