"""Building blocks that several spaces share."""

from __future__ import annotations

from torch import nn


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    relu: bool = True,
    affine: bool = True,
) -> list[nn.Module]:
    """Convolution without bias, batch norm, and ReLU if wanted; output size is ceil(H / stride)."""
    layers: list[nn.Module] = [
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(out_channels, affine=affine),
    ]
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return layers


def depthwise_bn(
    channels: int, kernel: int, *, stride: int = 1, relu: bool = False, affine: bool = True
) -> list[nn.Module]:
    """Depthwise convolution and batch norm."""
    return conv_bn(
        channels, channels, kernel, stride=stride, groups=channels, relu=relu, affine=affine
    )


def stage_strides(size: int, n_stages: int) -> tuple[int, ...]:
    """Stride of each stage for maps of ``size`` pixels: 2 as long as 2×2 positions are left.

    Where a picture is too small to be halved in every stage, the early stages keep stride 1. On
    maps of 1×1, depthwise kernels would see padding only (and run far slower than on 2×2).

    >>> stage_strides(32, 3), stage_strides(8, 3)
    ((2, 2, 2), (1, 2, 2))
    """
    halvings = 0
    while halvings < n_stages and -(-size // 2) >= 2:
        size, halvings = -(-size // 2), halvings + 1
    return (1,) * (n_stages - halvings) + (2,) * halvings


class Head(nn.Sequential):
    """1×1 convolution, global average pooling, dropout and classifier."""

    def __init__(
        self,
        in_channels: int,
        features: int,
        n_classes: int,
        *,
        dropout: float = 0.0,
        bias: bool = True,
        affine: bool = True,
    ) -> None:
        layers = [
            *conv_bn(in_channels, features, 1, affine=affine),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ]
        if dropout:
            layers.append(nn.Dropout(dropout))
        super().__init__(*layers, nn.Linear(features, n_classes, bias=bias))
