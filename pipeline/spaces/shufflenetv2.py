"""The ShuffleNetV2 space of SPOS: 20 blocks, 4 operators each, 4^20 ≈ 1.1e12 subnets.

Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling", 2020; also
the main space of the Supernet Shifting paper (table 7).

Operators: ``k3``, ``k5``, ``k7`` (a shuffle block with that depthwise kernel) and ``xception``
(three depthwise 3×3 + 1×1 pairs). A stage's first block projects: it keeps all channels in a
second branch instead of splitting them, and may have stride 2.

Presets: ``paper`` (224 px), ``paper-x0.5`` to ``paper-x4`` (stages that many times as deep, as in
figure 4 of Supernet Shifting), ``tiny`` (ten blocks, for 8 to 32 px; where the picture is small,
the first stages keep stride 1 so that at least 2×2 positions are left).

Deviation: a subnet's batch norms have weights and biases, as in the paper's retrained networks;
inside the supernet they have none, as in the paper's supernet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

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

    @property
    def initialise(self) -> Callable[[nn.Module], None] | None:
        """What replaces torch's initial weights, if anything."""
        return _initialise_as_paper if self.paper_initialisation else None


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
DEPTH_MULTIPLIERS = (0.5, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
PRESETS |= {
    f"paper-x{m:g}": replace(
        PRESETS["paper"], repeats=tuple(int(n * m) for n in PRESETS["paper"].repeats)
    )
    for m in DEPTH_MULTIPLIERS
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

    def __init__(
        self, channels: int, operator: str, *, affine: bool, mid: int | None = None
    ) -> None:
        super().__init__()
        half = channels // 2
        self.main = _main_branch(operator, half, mid or half, half, stride=1, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        passed, x = shuffle_split(x)
        return torch.cat((passed, self.main(x)), dim=1)


class ProjectionBlock(nn.Module):
    """First block of a stage: both branches see all channels, both may have stride 2."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        operator: str,
        *,
        stride: int,
        affine: bool,
        mid: int | None = None,
    ) -> None:
        super().__init__()
        kernel = 3 if operator == "xception" else int(operator[1:])
        self.projection = nn.Sequential(
            *depthwise_bn(in_channels, kernel, stride=stride, affine=affine),
            *conv_bn(in_channels, in_channels, 1, affine=affine),
        )
        self.main = _main_branch(
            operator, in_channels, mid or channels // 2, channels - in_channels, stride=stride,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Sizes of one searched block; ``stride`` is 0 where it splits its channels."""

    name: str
    in_channels: int
    channels: int
    stride: int

    def module(self, operator: str, affine: bool, mid: int | None = None) -> nn.Module:
        """The block with one operator, ``mid`` channels wide inside (half its output)."""
        if not self.stride:
            return ShuffleBlock(self.channels, operator, affine=affine, mid=mid)
        return ProjectionBlock(
            self.in_channels, self.channels, operator, stride=self.stride, affine=affine, mid=mid
        )

    @property
    def key(self) -> tuple[int, ...]:
        """What two blocks of the same structure share."""
        return self.in_channels, self.channels, self.stride


def shuffle_blocks(
    space: str,
    presets: Mapping[str, Preset],
    *,
    preset: str,
    input_shape: tuple[int, int, int],
) -> tuple[Preset, tuple[Block, ...]]:
    """Sizes of a preset and its searched blocks for pictures of ``input_shape``.

    Raises:
        SpaceError: an unknown preset, or pictures that are too small.
    """
    if preset not in presets:
        raise SpaceError(f"{space} has no preset {preset!r}; known: {', '.join(presets)}")
    sizes = presets[preset]
    _, height, width = input_shape
    if min(height, width) < 4:
        raise SpaceError(f"{space} needs pictures of 4x4 or more, not {height}x{width}")
    blocks: list[Block] = []
    in_channels = sizes.stem_channels
    strides = stage_strides(-(-min(height, width) // sizes.stem_stride), len(sizes.channels))
    for channels, repeats, stride in zip(sizes.channels, sizes.repeats, strides, strict=True):
        for repeat in range(repeats):
            blocks.append(
                Block(
                    name=f"block{len(blocks) + 1:02d}",
                    in_channels=in_channels,
                    channels=channels,
                    stride=0 if repeat else stride,
                )
            )
            in_channels = channels
    return sizes, tuple(blocks)


def shufflenetv2(*, preset: str, input_shape: tuple[int, int, int], n_classes: int) -> ChainSpace:
    """Make the space.

    >>> space = shufflenetv2(preset="paper", input_shape=(3, 224, 224), n_classes=1000)
    >>> len(space.decisions)
    20
    """
    sizes, blocks = shuffle_blocks("shufflenetv2", PRESETS, preset=preset, input_shape=input_shape)
    searched = (Position(name=b.name, choices=OPERATORS, key=b.key, build=b.module) for b in blocks)
    return ChainSpace(
        name="shufflenetv2",
        preset=preset,
        options=asdict(sizes),
        input_shape=input_shape,
        n_classes=n_classes,
        chain=(stem(input_shape[0], sizes), *searched, head(sizes, n_classes)),
        supernet_affine=False,
        initialise=sizes.initialise,
    )


def stem(in_channels: int, sizes: Preset) -> Position:
    """The fixed first convolution."""
    return Position(
        name="stem",
        choices=(FIXED,),
        key=("stem", in_channels, sizes.stem_channels, sizes.stem_stride),
        build=lambda _, affine: nn.Sequential(
            *conv_bn(in_channels, sizes.stem_channels, 3, stride=sizes.stem_stride, affine=affine)
        ),
    )


def head(sizes: Preset, n_classes: int) -> Position:
    """The fixed last convolution and the classifier."""
    channels = sizes.channels[-1]
    return Position(
        name="head",
        choices=(FIXED,),
        key=("head", channels, sizes.features, n_classes),
        build=lambda _, affine: Head(
            channels, sizes.features, n_classes, dropout=0.1, bias=False, affine=affine
        ),
    )
