"""The NAS-Bench-Macro space: 8 layers, 3 operators each, 6,561 subnets with known accuracies.

Su et al., "Prioritized Architecture Sampling with Monto-Carlo Tree Search", 2021. CIFAR-10,
stem conv 3×3 stride 1, stages of 2, 3 and 3 layers whose first layer has stride 2, last 1×1
conv, pooling, classifier.

Operators: ``identity``, ``mb3_k3`` and ``mb6_k5`` (inverted residuals). The identity of a
stage's first layer is a 1×1 convolution with stride 2 and batch norm.

Presets: ``paper`` (stem 32, stages 64, 128, 256, last 1280), ``half`` and ``tiny`` (half and
a quarter of the widths). On pictures under 16 px the first stages keep stride 1, so that 2×2
positions are left.

Moving an inner identity within its stage gives an isomorphic network, so ``graph_key`` drops
inner identities (6,561 genomes, 3,969 networks). The weights in a supernet differ, so the
canonical form keeps them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import Tensor, nn

from latency_tables.arch import Arch
from latency_tables.errors import SpaceError
from pipeline.spaces.chain import FIXED, ChainSpace, Position
from pipeline.spaces.drop_path import DropPath
from pipeline.spaces.layers import Head, conv_bn, depthwise_bn, stage_strides

OPERATORS = ("identity", "mb3_k3", "mb6_k5")
STAGES = (2, 3, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Channel counts."""

    stem_channels: int
    channels: tuple[int, int, int]
    features: int


PRESETS = {
    "paper": Preset(stem_channels=32, channels=(64, 128, 256), features=1280),
    "half": Preset(stem_channels=16, channels=(32, 64, 128), features=640),
    "tiny": Preset(stem_channels=8, channels=(16, 32, 64), features=320),
}


class InvertedResidual(nn.Module):
    """1×1 expansion, depthwise k×k, linear 1×1; added to the input where the shapes agree."""

    def __init__(
        self, in_channels: int, channels: int, *, kernel: int, expand: int, stride: int,
        affine: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        mid = in_channels * expand
        self.residual = stride == 1 and in_channels == channels
        self.body = nn.Sequential(
            *conv_bn(in_channels, mid, 1, affine=affine),
            *depthwise_bn(mid, kernel, stride=stride, relu=True, affine=affine),
            *conv_bn(mid, channels, 1, relu=False, affine=affine),
        )
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) → (N, C, ceil(H / stride), ceil(W / stride))."""
        y: Tensor = self.body(x)
        return x + self.drop_path(y) if self.residual else y


class NASBenchMacro(ChainSpace):
    """A chain whose inner identities may move without changing the network."""

    def graph_key(self, arch: Arch) -> str:
        """First operator of each stage and its further operators without identities."""
        genes, stages = [str(arch[d.label]) for d in self.decisions], []
        for length in STAGES:
            first, *rest = genes[:length]
            genes = genes[length:]
            stages.append("-".join([first, *(op for op in rest if op != "identity")]))
        return "|".join(stages)


def _layer(
    operator: str, in_channels: int, channels: int, *, stride: int, affine: bool
) -> nn.Module:
    if operator == "identity":
        if stride == 1 and in_channels == channels:
            return nn.Identity()
        return nn.Sequential(
            *conv_bn(in_channels, channels, 1, stride=stride, relu=False, affine=affine)
        )
    kernel, expand = {"mb3_k3": (3, 3), "mb6_k5": (5, 6)}[operator]
    return InvertedResidual(
        in_channels, channels, kernel=kernel, expand=expand, stride=stride, affine=affine
    )


def _position(name: str, in_channels: int, channels: int, stride: int) -> Position:
    return Position(
        name=name,
        choices=OPERATORS,
        key=(in_channels, channels, stride),
        build=lambda operator, affine: _layer(
            operator, in_channels, channels, stride=stride, affine=affine
        ),
    )


def nasbench_macro(
    *, preset: str, input_shape: tuple[int, int, int], n_classes: int
) -> NASBenchMacro:
    """Make the space.

    >>> space = nasbench_macro(preset="paper", input_shape=(3, 32, 32), n_classes=10)
    >>> 3 ** len(space.decisions)
    6561
    """
    if preset not in PRESETS:
        raise SpaceError(f"nasbench_macro has no preset {preset!r}; known: {', '.join(PRESETS)}")
    sizes = PRESETS[preset]
    image_channels = input_shape[0]
    stem = Position(
        name="stem",
        choices=(FIXED,),
        key=("stem", image_channels, sizes.stem_channels),
        build=lambda _, affine: nn.Sequential(
            *conv_bn(image_channels, sizes.stem_channels, 3, affine=affine)
        ),
    )
    chain, c = [stem], sizes.stem_channels
    strides = stage_strides(min(input_shape[1:]), len(STAGES))
    for channels, length, stride in zip(sizes.channels, STAGES, strides, strict=True):
        for index in range(length):
            name = f"layer{len(chain)}"
            chain.append(_position(name, c, channels, stride if index == 0 else 1))
            c = channels
    chain.append(
        Position(
            name="head",
            choices=(FIXED,),
            key=("head", c, sizes.features, n_classes),
            build=lambda _, affine: Head(c, sizes.features, n_classes, affine=affine),
        )
    )
    return NASBenchMacro(
        name="nasbench_macro",
        preset=preset,
        options=asdict(sizes),
        input_shape=input_shape,
        n_classes=n_classes,
        chain=tuple(chain),
        supernet_affine=True,
    )


def arch_of_genome(space: ChainSpace, genome: str) -> Arch:
    """The architecture that the benchmark writes as, for example, ``"22212220"``."""
    return Arch.from_genes(space.decisions, [int(digit) for digit in genome])
