"""The ShuffleNetV2 space with a channel scale for every block: 8^20 · 4^20 subnets.

Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling", 2020, section
4.2: each block's middle channels are 0.2, 0.4, ... 1.6 times half of its output channels, rounded
down; inputs and outputs of the blocks keep their channels. The authors published a network of this
space (328 M MACs), not how its supernet shares weights.

Our reading: ordinal sharing. The supernet holds every operator at scale 1.6, a narrower block uses
the leading channels (:mod:`pipeline.spaces.leading`), and its batch norms have weights.

Presets: those of :mod:`pipeline.spaces.shufflenetv2`.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from latency_tables.arch import Arch, Decision
from pipeline.spaces.base import Segment
from pipeline.spaces.chain import Position
from pipeline.spaces.leading import LeadingSpace
from pipeline.spaces.shufflenetv2 import (
    OPERATORS,
    PRESETS,
    Block,
    head,
    shuffle_blocks,
    stem,
)

SCALES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)


def middle(channels: int, scale: float) -> int:
    """Channels inside a block of ``channels`` outputs.

    >>> [middle(64, scale) for scale in SCALES]
    [6, 12, 19, 25, 32, 38, 44, 51]
    """
    return channels // 2 * round(10 * scale) // 10


class ScaledShuffleSpace(LeadingSpace):
    """A chain in which every searched block has an operator and a scale."""

    def __init__(self, *, blocks: tuple[Block, ...], **given: Any) -> None:
        super().__init__(**given)
        self.blocks = {block.name: block for block in blocks}
        self.decisions += tuple(
            Decision(label=_scale_label(block.name), choices=SCALES) for block in blocks
        )

    def positions(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Name and labels of every position."""
        return tuple((p.name, self._labels(p)) for p in self.chain)

    def _labels(self, position: Position) -> tuple[str, ...]:
        return (*position.labels, _scale_label(position.name)) if position.searched else ()

    def segments(self, arch: Arch) -> tuple[Segment, ...]:
        """One segment per position."""
        made = []
        for p in self.chain:
            operator, mid = p.choice(arch), None
            build = partial(p.build, operator, True)
            if p.searched:
                block = self.blocks[p.name]
                mid = middle(block.channels, float(arch[_scale_label(p.name)]))
                build = partial(block.module, operator, True, mid)
            key = (p.key, operator, mid)
            made.append(Segment(name=p.name, labels=self._labels(p), key=key, build=build))
        return tuple(made)


def _scale_label(block: str) -> str:
    return f"{block}_scale"


def shufflenetv2_scales(
    *, preset: str, input_shape: tuple[int, int, int], n_classes: int
) -> ScaledShuffleSpace:
    """Make the space.

    >>> space = shufflenetv2_scales(preset="paper", input_shape=(3, 224, 224), n_classes=1000)
    >>> len(space.decisions)
    40
    """
    name = "shufflenetv2_scales"
    sizes, blocks = shuffle_blocks(name, PRESETS, preset=preset, input_shape=input_shape)
    return ScaledShuffleSpace(
        name=name,
        preset=preset,
        options={**asdict(sizes), "scales": SCALES},
        input_shape=input_shape,
        n_classes=n_classes,
        chain=(stem(input_shape[0], sizes), *map(_widest, blocks), head(sizes, n_classes)),
        supernet_affine=True,
        initialise=sizes.initialise,
        blocks=blocks,
    )


def _widest(block: Block) -> Position:
    """A block in the supernet: its largest scale."""
    return Position(
        name=block.name,
        choices=OPERATORS,
        key=block.key,
        build=partial(block.module, mid=middle(block.channels, SCALES[-1])),
    )
