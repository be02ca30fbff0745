"""Seed the blocks of one chain from another: which block from which, and which channels.

Stage i of the target takes stage i of the source; a target that begins with an expanding stage
skips a source stage that does not expand. Within a stage the first block takes the first one,
the k-th the k-th; residual blocks beyond the source's repeat its last residual one (if it has
any) with the last batch norm at zero, so that they start as identities. Every choice of a place
takes the same block.

Channels that flow from block to block are picked once per stage, so that whoever writes and
whoever reads them agree. A channel's importance is how far its writers can move it (batch norm's
|scale| + |shift|) times the L1 norm of its readers' weights: zero means that it has no effect.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.supernet.warm_start.fitting import (
    Picked,
    fit_layer,
    fit_norm,
    fitted_image_channels,
    norm_strength,
    pick,
    reader_strength,
)
from pipeline.supernet.warm_start.layers import Layer
from pipeline.supernet.warm_start.structure import Block, Chain, Place

_GATE_AT_ZERO = 0.5
"""What a sigmoid, hard or not, gives for 0."""


@dataclass(slots=True, kw_only=True)
class Seeded:
    """What was written, and which layers of the source served."""

    tensors: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)

    def add(self, written: list[str], *sources: Layer) -> None:
        """Note tensors written from layers."""
        self.tensors.update(written)
        self.used.update(layer.name for layer in sources)


def seed_chain(target: Chain, source: Chain, *, elastic: bool) -> Seeded:
    """Write the source's weights into every layer of the target that has a counterpart."""
    done = Seeded()
    blocks = [[place.blocks[0] for place in stage] for stage in source.stages]
    flows = _Flows(source, blocks, elastic=elastic)
    skip = int(_expands(target.stages[0]) and blocks[0][0].expand is None and len(blocks) > 1)
    before: tuple[int, Picked] | None = None
    if target.stem is not None and source.stem is not None:
        rows = flows.picked(-1, target.stem.out_channels)
        kernels = fitted_image_channels(source.stem.weight, target.stem.weight.shape[1])
        if kernels is not None:
            stem = _with_weight(source.stem, kernels)
            done.add(fit_layer(target.stem, stem, rows=rows, columns=None), source.stem)
            before = -1, rows
    for number, stage in enumerate(target.stages):
        at = number + skip
        if at >= len(blocks):
            before = None  # what the head reads has no counterpart
            break
        # what the stage before writes is what this one read in the source, or it is unknown
        entering = before[1] if before is not None and before[0] == at - 1 else None
        leaving = flows.picked(at, _out_channels(stage))
        for depth, place in enumerate(stage):
            block = blocks[at][min(depth, len(blocks[at]) - 1)]
            for choice in place.choices.values():
                _seed_choice(
                    choice, block, done, entering=leaving if depth else entering, leaving=leaving,
                    elastic=elastic, repeated=depth >= len(blocks[at]),
                )  # fmt: skip
        before = at, leaving
    if before is not None and before[0] == len(blocks) - 1:
        _seed_end(target, source, done, entering=before[1], elastic=elastic)
    return done


def _expands(stage: list[Place]) -> bool:
    return all(block.expand is not None for block in stage[0].blocks)


def _out_channels(stage: list[Place]) -> int:
    return next(block.out_channels for place in stage for block in place.blocks)


def _with_weight(layer: Layer, weight: Tensor) -> Layer:
    return Layer(name=layer.name, weight=weight, bias=layer.bias, norm=layer.norm)


class _Flows:
    """Importance of the channels that leave each stage of the source (-1: the stem)."""

    def __init__(self, source: Chain, blocks: list[list[Block]], *, elastic: bool) -> None:
        self.source, self.blocks, self.elastic = source, blocks, elastic

    def picked(self, stage: int, n: int) -> Picked:
        """The channels that a target with ``n`` of them takes."""
        return pick(self._importance(stage), n, elastic=self.elastic)

    def _importance(self, stage: int) -> Tensor:
        inner = self.blocks[stage] if stage >= 0 else []
        readers = [_reading(block) for block in inner[1:]]
        if stage + 1 < len(self.blocks):
            readers.append(_reading(self.blocks[stage + 1][0]))
        elif self.source.head is not None:
            readers.append(reader_strength(self.source.head))
        elif self.source.classifier is not None:
            readers.append(reader_strength(self.source.classifier))
        last = self.source.stem if stage < 0 else None
        writers = [norm_strength(b.project) for b in inner] if last is None else [
            norm_strength(last)
        ]  # fmt: skip
        strength = torch.stack(writers).sum(0)
        return strength * torch.stack(readers).sum(0) if readers else strength


def _reading(block: Block) -> Tensor:
    """How strongly a block reads each channel; without an expansion, how strongly it passes it."""
    return _middle(block) if block.expand is None else reader_strength(block.expand)


def _middle(block: Block) -> Tensor:
    """Importance of the channels between a block's depthwise and last convolution."""
    return norm_strength(block.depthwise) * reader_strength(block.project)


def _seed_choice(
    target: Block | Layer, source: Block, done: Seeded, *, entering: Picked | None,
    leaving: Picked, elastic: bool, repeated: bool,
) -> None:  # fmt: skip
    if isinstance(target, Layer):
        # a 1×1 convolution in place of a stage's first block: it learns to write at this scale
        if target.norm is not None and target.norm.weight is not None and not repeated:
            written = fit_norm(target.norm, source.project.norm, source.project.bias, leaving)
            done.add([name for name in written if "running" not in name])
        return
    if (target.expand is None) != (source.expand is None) or entering is None:
        return
    norm = target.project.norm
    if repeated and (norm is None or norm.weight is None or norm.bias is None):
        return  # nothing there could keep it from changing what the source computes
    if not repeated or source.in_channels == source.out_channels:
        _seed_block(target, source, done, entering=entering, leaving=leaving, elastic=elastic)
    if repeated and norm is not None and norm.weight is not None and norm.bias is not None:
        with torch.no_grad():
            norm.weight.zero_()
            norm.bias.zero_()
        done.add([f"{norm.name}.weight", f"{norm.name}.bias"])


def _seed_block(
    target: Block, source: Block, done: Seeded, *, entering: Picked, leaving: Picked, elastic: bool
) -> None:
    if target.expand is None or source.expand is None:
        middle = entering
    else:
        middle = pick(_middle(source), target.depthwise.out_channels, elastic=elastic)
        written = fit_layer(target.expand, source.expand, rows=middle, columns=entering)
        done.add(written, source.expand)
    written = fit_layer(target.depthwise, source.depthwise, rows=middle, columns=None)
    done.add(written, source.depthwise)
    scale = _seed_squeeze(target, source, done, middle=middle, elastic=elastic)
    written = fit_layer(target.project, source.project, rows=leaving, columns=middle, scale=scale)
    done.add(written, source.project)
    if target.shortcut is None:
        return
    if source.shortcut is not None:
        written = fit_layer(target.shortcut, source.shortcut, rows=leaving, columns=entering)
        done.add(written, source.shortcut)
    else:  # nothing goes beside the source's block
        with torch.no_grad():
            target.shortcut.weight.zero_()
        done.add([f"{target.shortcut.name}.weight"])


def _seed_squeeze(
    target: Block, source: Block, done: Seeded, *, middle: Picked, elastic: bool
) -> float:
    """Seed an SE; returns the factor that the convolution behind it needs to make up for it."""
    if target.squeeze is None:
        return 1.0
    down, up = target.squeeze
    if source.squeeze is not None:
        from_down, from_up = source.squeeze
        importance = norm_strength(from_down) * reader_strength(from_up)
        rows = pick(importance, down.out_channels, elastic=elastic)
        done.add(fit_layer(down, from_down, rows=rows, columns=middle), from_down)
        done.add(fit_layer(up, from_up, rows=middle, columns=rows), from_up)
        return 1.0
    with torch.no_grad():  # a gate of 1/2 for every channel, whatever comes in
        up.weight.zero_()
        done.add([f"{up.name}.weight"])
        if up.bias is not None:
            up.bias.zero_()
            done.add([f"{up.name}.bias"])
    return 1 / _GATE_AT_ZERO


def _seed_end(
    target: Chain, source: Chain, done: Seeded, *, entering: Picked, elastic: bool
) -> None:
    """Head and classifier; a classifier for another number of classes stays fresh."""
    features = entering
    last = None if source.tail or target.tail else source.classifier
    if (target.head is None) != (source.head is None):
        return
    if target.head is not None and source.head is not None:
        importance = norm_strength(source.head)
        if last is not None and last.weight.shape[1] == len(importance):
            importance = importance * reader_strength(last)
        features = pick(importance, target.head.out_channels, elastic=elastic)
        written = fit_layer(target.head, source.head, rows=features, columns=entering)
        done.add(written, source.head)
    given = target.classifier
    if given is None or last is None or given.out_channels != last.out_channels:
        return
    if last.weight.shape[1] > int(features.max()):
        rows = torch.arange(last.out_channels)
        done.add(fit_layer(given, last, rows=rows, columns=features), last)
