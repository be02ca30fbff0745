"""The ShuffleNetV2 space of SPOS: 20 blocks, 4 operators each, 4^20 ≈ 1.1e12 subnets.

Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling", 2020; also
the main space of the Supernet Shifting paper (table 7).

Operators: ``k3``, ``k5``, ``k7`` (a shuffle block with that depthwise kernel) and ``xception``
(three depthwise 3×3 + 1×1 pairs). A stage's first block projects: it keeps all channels in a
second branch instead of splitting them, and may have stride 2.

Presets: ``paper`` (224 px), ``tiny`` (ten blocks, for 8 to 32 px; where the picture is small,
the first stages keep stride 1 so that at least 2×2 positions are left).

Deviation: a subnet's batch norms have weights and biases, as in the paper's retrained networks;
inside the supernet they have none, as in the paper's supernet.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from latency_tables.errors import SpaceError
from pipeline.spaces.chain import FIXED, ChainSpace, Position
from pipeline.spaces.layers import Head, conv_bn, depthwise_bn, stage_strides

OPERATORS = ("k3", "k5", "k7", "xception")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Sizes of the fixed parts and the stages."""

    stem_channels: int
    stem_stride: int
    channels: tuple[int, ...]
    repeats: tuple[int, ...]
    features: int
    paper_initialisation: bool


PRESETS = {
    "paper": Preset(
        stem_channels=16,
        stem_stride=2,
        channels=(64, 160, 320, 640),
        repeats=(4, 4, 8, 4),
        features=1024,
        paper_initialisation=True,
    ),
    "tiny": Preset(
        stem_channels=16,
        stem_stride=1,
        channels=(24, 48, 96, 192),
        repeats=(2, 2, 4, 2),
        features=256,
        paper_initialisation=False,
    ),
}


def shuffle_split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Even and odd channels of (N, C, H, W) as two tensors (N, C/2, H, W)."""
    _, c, h, w = x.shape
    shuffled = x.reshape(-1, c // 2, 2, h, w).transpose(1, 2).reshape(-1, c, h, w)
    even, odd = shuffled.chunk(2, dim=1)
    return even, odd


def _main_branch(
    operator: str, in_channels: int, mid: int, out_channels: int, *, stride: int, affine: bool
) -> nn.Sequential:
    if operator == "xception":
        layers = [
            *depthwise_bn(in_channels, 3, stride=stride, affine=affine),
            *conv_bn(in_channels, mid, 1, affine=affine),
            *depthwise_bn(mid, 3, affine=affine),
            *conv_bn(mid, mid, 1, affine=affine),
            *depthwise_bn(mid, 3, affine=affine),
            *conv_bn(mid, out_channels, 1, affine=affine),
        ]
    else:
        layers = [
            *conv_bn(in_channels, mid, 1, affine=affine),
            *depthwise_bn(mid, int(operator[1:]), stride=stride, affine=affine),
            *conv_bn(mid, out_channels, 1, affine=affine),
        ]
    return nn.Sequential(*layers)


class ShuffleBlock(nn.Module):
    """Stride 1: the even channels pass, the odd ones go through the main branch."""

    def __init__(self, channels: int, operator: str, *, affine: bool) -> None:
        super().__init__()
        half = channels // 2
        self.main = _main_branch(operator, half, half, half, stride=1, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        passed, x = shuffle_split(x)
        return torch.cat((passed, self.main(x)), dim=1)


class ProjectionBlock(nn.Module):
    """First block of a stage: both branches see all channels, both may have stride 2."""

    def __init__(
        self, in_channels: int, channels: int, operator: str, *, stride: int, affine: bool
    ) -> None:
        super().__init__()
        kernel = 3 if operator == "xception" else int(operator[1:])
        self.projection = nn.Sequential(
            *depthwise_bn(in_channels, kernel, stride=stride, affine=affine),
            *conv_bn(in_channels, in_channels, 1, affine=affine),
        )
        self.main = _main_branch(
            operator, in_channels, channels // 2, channels - in_channels, stride=stride,
            affine=affine,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) → (N, C, ceil(H / stride), ceil(W / stride))."""
        return torch.cat((self.projection(x), self.main(x)), dim=1)


def _initialise_as_paper(network: nn.Module) -> None:
    """First conv and classifier N(0, 0.01), other convs N(0, 1/fan), fan = weight.shape[1]."""
    first = True
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0, 0.01 if first else 1.0 / module.weight.shape[1])
            first = False
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        elif isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.ones_(module.weight)
            nn.init.constant_(module.bias, 0.0001)


def shufflenetv2(*, preset: str, input_shape: tuple[int, int, int], n_classes: int) -> ChainSpace:
    """Make the space.

    >>> space = shufflenetv2(preset="paper", input_shape=(3, 224, 224), n_classes=1000)
    >>> len(space.decisions)
    20
    """
    if preset not in PRESETS:
        raise SpaceError(f"shufflenetv2 has no preset {preset!r}; known: {', '.join(PRESETS)}")
    sizes = PRESETS[preset]
    in_channels, height, width = input_shape
    if min(height, width) < 4:
        raise SpaceError(f"shufflenetv2 needs pictures of 4x4 or more, not {height}x{width}")
    chain = [_stem(in_channels, sizes)]
    c, index = sizes.stem_channels, 0
    strides = stage_strides(-(-min(height, width) // sizes.stem_stride), len(sizes.channels))
    for channels, repeats, stride in zip(sizes.channels, sizes.repeats, strides, strict=True):
        for repeat in range(repeats):
            index += 1
            name = f"block{index:02d}"
            if repeat == 0:
                chain.append(_projection_position(name, c, channels, stride))
            else:
                chain.append(_shuffle_position(name, channels))
        c = channels
    chain.append(_head(c, sizes, n_classes))
    return ChainSpace(
        name="shufflenetv2",
        preset=preset,
        options=asdict(sizes),
        input_shape=input_shape,
        n_classes=n_classes,
        chain=tuple(chain),
        supernet_affine=False,
        initialise=_initialise_as_paper if sizes.paper_initialisation else None,
    )


def _stem(in_channels: int, sizes: Preset) -> Position:
    return Position(
        name="stem",
        choices=(FIXED,),
        key=("stem", in_channels, sizes.stem_channels, sizes.stem_stride),
        build=lambda _, affine: nn.Sequential(
            *conv_bn(in_channels, sizes.stem_channels, 3, stride=sizes.stem_stride, affine=affine)
        ),
    )


def _head(channels: int, sizes: Preset, n_classes: int) -> Position:
    return Position(
        name="head",
        choices=(FIXED,),
        key=("head", channels, sizes.features, n_classes),
        build=lambda _, affine: Head(
            channels, sizes.features, n_classes, dropout=0.1, bias=False, affine=affine
        ),
    )


def _projection_position(name: str, in_channels: int, channels: int, stride: int) -> Position:
    return Position(
        name=name,
        choices=OPERATORS,
        key=("projection", in_channels, channels, stride),
        build=lambda operator, affine: ProjectionBlock(
            in_channels, channels, operator, stride=stride, affine=affine
        ),
    )


def _shuffle_position(name: str, channels: int) -> Position:
    return Position(
        name=name,
        choices=OPERATORS,
        key=("shuffle", channels),
        build=lambda operator, affine: ShuffleBlock(channels, operator, affine=affine),
    )
