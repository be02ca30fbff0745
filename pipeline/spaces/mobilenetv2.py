"""The MobileNetV2 space of K-shot NAS and GreedyNAS: 21 layers, 13 operators each, 13^21 subnets.

Su et al., "K-shot NAS: Learnable Weight-Sharing for NAS with K-shot Supernets", 2021, section 5.1;
You et al., "GreedyNAS", 2020; Chu et al., "FairNAS", 2021 (preset ``fairnas``).

Operators: ``mb3_k3`` … ``mb6_k7`` (inverted residuals: expansion, depthwise kernel), the same with
``_se`` (squeeze and excitation on the expanded channels), and ``identity``. The identity of a
stage's first layer is a 1×1 convolution with the stage's stride and batch norm, so that every
layer has 13 operators. Stem (conv 3×3), ``mb1`` (expansion 1, k3) and head are fixed.

Presets: ``paper`` (224 px); ``fairnas`` (19 layers, 6 operators: no SE, no identity); ``tiny``
(8 layers, 13 operators, for 8 to 32 px). On small pictures the first of the stages that should
have stride 2 keep stride 1, so that at least 2×2 positions are left.

Moving an inner identity within its stage gives an isomorphic network, so ``graph_key`` drops
inner identities. The weights in a supernet differ, so the canonical form keeps them.

The paper names no activation: ReLU here, and a hard sigmoid as the gate of SE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from latency_tables.arch import Arch
from latency_tables.errors import SpaceError
from pipeline.spaces.chain import FIXED, ChainSpace, Position
from pipeline.spaces.layers import Head, stage_strides
from pipeline.spaces.mobile_blocks import (
    IDENTITY,
    OPERATORS,
    PLAIN,
    Layer,
    layer_module,
    mb1_module,
    stem_module,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Operators and sizes. ``strides``: of each stage's first layer, on large pictures."""

    operators: tuple[str, ...]
    stem_channels: int
    stem_stride: int
    mb1_channels: int
    channels: tuple[int, ...]
    repeats: tuple[int, ...]
    strides: tuple[int, ...]
    features: int


PRESETS = {
    "paper": Preset(
        operators=OPERATORS,
        stem_channels=32,
        stem_stride=2,
        mb1_channels=16,
        channels=(32, 40, 80, 96, 192, 320),
        repeats=(4, 4, 4, 4, 4, 1),
        strides=(2, 2, 2, 1, 2, 1),
        features=1280,
    ),
    "fairnas": Preset(
        operators=PLAIN,
        stem_channels=32,
        stem_stride=2,
        mb1_channels=16,
        channels=(32, 40, 80, 96, 192, 320),
        repeats=(2, 4, 4, 4, 4, 1),
        strides=(2, 2, 2, 1, 2, 1),
        features=1280,
    ),
    "tiny": Preset(
        operators=OPERATORS,
        stem_channels=16,
        stem_stride=1,
        mb1_channels=8,
        channels=(16, 24, 32, 48),
        repeats=(2, 3, 2, 1),
        strides=(2, 2, 1, 2),
        features=192,
    ),
}


class MobileSpace(ChainSpace):
    """A chain of stages, whose inner identities may move without changing the network."""

    def __init__(self, *, repeats: tuple[int, ...], **given: Any) -> None:
        super().__init__(**given)
        self.repeats = repeats

    def graph_key(self, arch: Arch) -> str:
        """First operator of each stage and its further operators without identities."""
        genes, stages = [str(arch[d.label]) for d in self.decisions], []
        for length in self.repeats:
            first, *rest = genes[:length]
            genes = genes[length:]
            stages.append("-".join([first, *(op for op in rest if op != IDENTITY)]))
        return "|".join(stages)


def mobile_space(
    name: str,
    presets: Mapping[str, Preset],
    *,
    preset: str,
    input_shape: tuple[int, int, int],
    n_classes: int,
) -> MobileSpace:
    """Make a space of stages of inverted residuals from one of its presets.

    Raises:
        SpaceError: an unknown preset, or pictures that are too small.
    """
    sizes, layers = mobile_layers(name, presets, preset=preset, input_shape=input_shape)
    return MobileSpace(
        name=name,
        preset=preset,
        options=asdict(sizes),
        input_shape=input_shape,
        n_classes=n_classes,
        chain=mobile_chain(sizes, layers, input_shape[0], n_classes),
        supernet_affine=True,
        repeats=sizes.repeats,
    )


def mobile_layers(
    name: str, presets: Mapping[str, Preset], *, preset: str, input_shape: tuple[int, int, int]
) -> tuple[Preset, tuple[Layer, ...]]:
    """Sizes of a preset and its searched layers on pictures of this shape.

    Raises:
        SpaceError: an unknown preset, or pictures that are too small.
    """
    if preset not in presets:
        raise SpaceError(f"{name} has no preset {preset!r}; known: {', '.join(presets)}")
    _, height, width = input_shape
    if min(height, width) < 4:
        raise SpaceError(f"{name} needs pictures of 4x4 or more, not {height}x{width}")
    sizes = presets[preset]
    layers: list[Layer] = []
    c = sizes.mb1_channels
    strides = fitted_strides(-(-min(height, width) // sizes.stem_stride), sizes.strides)
    for channels, length, first in zip(sizes.channels, sizes.repeats, strides, strict=True):
        for stride in (first, *(1,) * (length - 1)):
            layers.append(
                Layer(
                    name=f"layer{len(layers) + 1:02d}",
                    in_channels=c,
                    channels=channels,
                    stride=stride,
                )
            )
            c = channels
    return sizes, tuple(layers)


def fitted_strides(size: int, strides: tuple[int, ...]) -> tuple[int, ...]:
    """The strides on maps of ``size`` pixels: early stages keep 1 where 2×2 would not be left.

    >>> fitted_strides(112, (2, 2, 2, 1, 2, 1)), fitted_strides(8, (2, 2, 2, 1, 2, 1))
    ((2, 2, 2, 1, 2, 1), (1, 1, 2, 1, 2, 1))
    """
    halvings = iter(stage_strides(size, strides.count(2)))
    return tuple(next(halvings) if stride == 2 else 1 for stride in strides)


def mobile_chain(
    sizes: Preset, layers: tuple[Layer, ...], image_channels: int, n_classes: int
) -> tuple[Position, ...]:
    """Stem, mb1, the searched layers and the head."""
    stem, mb1, last = sizes.stem_channels, sizes.mb1_channels, layers[-1].channels
    return (
        Position(
            name="stem",
            choices=(FIXED,),
            key=("stem", image_channels, stem, sizes.stem_stride),
            build=lambda _, affine: stem_module(
                image_channels, stem, stride=sizes.stem_stride, affine=affine
            ),
        ),
        Position(
            name="mb1",
            choices=(FIXED,),
            key=("mb1", stem, mb1),
            build=lambda _, affine: mb1_module(stem, mb1, affine=affine),
        ),
        *(_position(layer, sizes.operators) for layer in layers),
        Position(
            name="head",
            choices=(FIXED,),
            key=("head", last, sizes.features, n_classes),
            build=lambda _, affine: Head(last, sizes.features, n_classes, affine=affine),
        ),
    )


def _position(layer: Layer, operators: tuple[str, ...]) -> Position:
    return Position(
        name=layer.name,
        choices=operators,
        key=(layer.in_channels, layer.channels, layer.stride),
        build=lambda operator, affine: layer_module(operator, layer, affine=affine),
    )


def mobilenetv2(*, preset: str, input_shape: tuple[int, int, int], n_classes: int) -> MobileSpace:
    """Make the space.

    >>> space = mobilenetv2(preset="paper", input_shape=(3, 224, 224), n_classes=1000)
    >>> len(space.decisions), len(space.decisions[0].choices)
    (21, 13)
    """
    return mobile_space(
        "mobilenetv2", PRESETS, preset=preset, input_shape=input_shape, n_classes=n_classes
    )
