"""The MobileNetV2 space with a width coefficient for each of 24 layers: 5^24 · 13^21 subnets.

Su et al., "K-shot NAS", 2021, section 5.1: coefficients 0.2, 0.4, 0.6, 0.8 and 1.0. The paper does
not say what they scale. Here:

    stem_width          output channels of the stem
    mb1_width           output channels of the fixed first layer
    layer01_width …     expanded (middle) channels of that layer's operator
    head_width          features of the last 1×1 convolution

always of the count at full width, rounded to a multiple of 8. Inputs and outputs of the searched
layers keep their channels, so residuals stay legal. An identity has no middle, and rounding may
give two coefficients the same channels: the canonical form then takes the largest of those that
mean the same (1.0 for identities).

The supernet is that of :mod:`pipeline.spaces.mobilenetv2` at full width. A narrower layer uses the
leading channels of its weights (ordinal sharing, figure 3 of the paper) and of its batch-norm
statistics, which therefore mix widths: use batch statistics or recalibrate.

Presets: ``paper`` (224 px), ``tiny`` (5 layers, for 8 to 32 px).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from torch import nn

from latency_tables.arch import Arch, Decision
from pipeline.spaces.base import Segment
from pipeline.spaces.chain import Position
from pipeline.spaces.layers import Head
from pipeline.spaces.leading import LeadingSpace
from pipeline.spaces.mobile_blocks import (
    IDENTITY,
    OPERATORS,
    Layer,
    expansion,
    layer_module,
    make_divisible,
    mb1_module,
    stem_module,
)
from pipeline.spaces.mobilenetv2 import PRESETS as FULL_PRESETS
from pipeline.spaces.mobilenetv2 import MobileSpace, Preset, mobile_chain, mobile_layers

COEFFICIENTS = (0.2, 0.4, 0.6, 0.8, 1.0)

PRESETS = {
    "paper": FULL_PRESETS["paper"],
    "tiny": Preset(
        operators=OPERATORS,
        stem_channels=32,
        stem_stride=1,
        mb1_channels=16,
        channels=(24, 32),
        repeats=(2, 3),
        strides=(2, 2),
        features=160,
    ),
}


def scaled(channels: int, coefficient: float) -> int:
    """``channels`` times a coefficient of at most one, as a multiple of 8.

    >>> [scaled(48, c) for c in COEFFICIENTS], [scaled(16, c) for c in COEFFICIENTS]
    ([16, 24, 32, 40, 48], [8, 8, 16, 16, 16])
    """
    return min(channels, make_divisible(channels * coefficient))


class WidthSpace(LeadingSpace, MobileSpace):
    """A chain of stages in which every layer has an operator and a width."""

    def __init__(self, *, sizes: Preset, layers: tuple[Layer, ...], **given: Any) -> None:
        super().__init__(repeats=sizes.repeats, **given)
        self.sizes, self.layers = sizes, layers
        self.decisions += tuple(
            Decision(label=f"{position.name}_width", choices=COEFFICIENTS)
            for position in self.chain
        )

    def canonical(self, arch: Arch) -> Arch:
        """Widths that mean the same become the largest of them."""
        full = {f"{name}_width": channels for name, channels in self._full(arch).items()}
        return arch.replace(
            **{
                label: max(c for c in COEFFICIENTS if scaled(n, c) == scaled(n, float(arch[label])))
                for label, n in full.items()
            }
        )

    def _full(self, arch: Arch) -> dict[str, int]:
        """What each position's coefficient scales, at full width; 0 for identities."""
        return {
            "stem": self.sizes.stem_channels,
            "mb1": self.sizes.mb1_channels,
            **{x.name: x.in_channels * expansion(str(arch[x.name])) for x in self.layers},
            "head": self.sizes.features,
        }

    def _scaled(self, arch: Arch) -> dict[str, int]:
        """What each position's coefficient leaves; 0 for identities."""
        return {
            name: scaled(channels, float(arch[f"{name}_width"]))
            for name, channels in self._full(arch).items()
        }

    def graph_key(self, arch: Arch) -> str:
        """Fixed channels, and per stage operators with their middle; inner identities dropped."""
        channels = self._scaled(arch)
        stages, names = [], [layer.name for layer in self.layers]
        for length in self.repeats:
            first, *rest = [(str(arch[name]), channels[name]) for name in names[:length]]
            names = names[length:]
            kept = [first, *(x for x in rest if x[0] != IDENTITY)]
            stages.append("-".join(f"{operator}@{mid}" for operator, mid in kept))
        fixed = ".".join(str(channels[name]) for name in ("stem", "mb1", "head"))
        return "|".join([fixed, *stages])

    def positions(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Name and labels of every position."""
        return tuple((p.name, self._labels(p)) for p in self.chain)

    def _labels(self, position: Position) -> tuple[str, ...]:
        """Its operator and width, and the width before it where that changes its input."""
        before = {"mb1": ("stem_width",), self.layers[0].name: ("mb1_width",)}
        return (*before.get(position.name, ()), *position.labels, f"{position.name}_width")

    def segments(self, arch: Arch) -> tuple[Segment, ...]:
        """One segment per position."""
        channels = self._scaled(arch)
        stem, mb1 = channels["stem"], channels["mb1"]
        features, stride = channels["head"], self.sizes.stem_stride
        image, last = self.input_shape[0], self.layers[-1].channels
        made: list[tuple[tuple[Any, ...], Callable[[], nn.Module]]] = [
            (
                ("stem", image, stem, stride),
                partial(stem_module, image, stem, stride=stride, affine=True),
            ),
            (("mb1", stem, mb1), partial(mb1_module, stem, mb1, affine=True)),
        ]
        in_channels = mb1
        for x in self.layers:
            operator, mid = str(arch[x.name]), channels[x.name]
            make = partial(layer_module, operator, x, affine=True, in_channels=in_channels, mid=mid)
            made.append(((operator, in_channels, mid, x.channels, x.stride), make))
            in_channels = x.channels
        head = partial(Head, last, features, self.n_classes, affine=True)
        made.append((("head", last, features, self.n_classes), head))
        return tuple(
            Segment(name=p.name, labels=self._labels(p), key=key, build=build)
            for p, (key, build) in zip(self.chain, made, strict=True)
        )


def mobilenetv2_widths(
    *, preset: str, input_shape: tuple[int, int, int], n_classes: int
) -> WidthSpace:
    """Make the space.

    >>> space = mobilenetv2_widths(preset="paper", input_shape=(3, 224, 224), n_classes=1000)
    >>> [len(d.choices) for d in space.decisions].count(13), len(space.decisions)
    (21, 45)
    """
    name = "mobilenetv2_widths"
    sizes, layers = mobile_layers(name, PRESETS, preset=preset, input_shape=input_shape)
    return WidthSpace(
        name=name,
        preset=preset,
        options={**asdict(sizes), "coefficients": COEFFICIENTS},
        input_shape=input_shape,
        n_classes=n_classes,
        chain=mobile_chain(sizes, layers, input_shape[0], n_classes),
        supernet_affine=True,
        sizes=sizes,
        layers=layers,
    )
