"""Passes of an elastic convolutional supernet in which gradients reach the choices.

Where masks of :mod:`pipeline.spaces.matrix_mapping` stand:

    stem_width, widths   columns of what reads the map: expanding convolution, projecting shortcut,
                         head; in blocks without expansion the middle is the map itself
    kernel               rings of the depthwise kernel: 3×3, what 5×5 has around it, …
    expand               columns of the projecting convolution and of the squeeze, which read the
                         middle channels; their number follows from the block's input channels as
                         well, whose decision therefore has a part in this mask. The channels that
                         the squeeze leaves are masked where the excitation reads them
    depth                γ and β of the last batch norm of the blocks that the shallowest network
                         lacks, which are never a stage's first: x + gate · f(x)
    last_width           columns of the classifier
    resolution           nothing is switched on or off by it: the logits times the entry that was
                         chosen, in the dense pass as well, so other resolutions have no gradient

Whether a stage's first block has a projecting shortcut depends on the chosen widths. In the dense
pass the largest network runs at the chosen resolution; batch norms work channel by channel, and
running statistics move only where those of ``forward`` would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latency_tables.arch import Arch
from pipeline.spaces.base import Supernet
from pipeline.spaces.elastic_cnn.blocks import (
    HEAD_EXPANSION,
    Block,
    BlockSize,
    middle_channels,
    part,
)
from pipeline.spaces.elastic_cnn.sizes import (
    LAST_WIDTH,
    RESOLUTION,
    STEM_WIDTH,
    Stage,
    block_name,
)
from pipeline.spaces.matrix_mapping import Gates, Masked, Sizes, run_aside
from pipeline.spaces.mobile_blocks import SE_REDUCTION, make_divisible
from pipeline.supernet.resolution import resized

if TYPE_CHECKING:
    from pipeline.spaces.elastic_cnn.space import ElasticSpace
    from pipeline.spaces.policy import Policy


def policy_logits(
    supernet: Supernet, space: ElasticSpace, x: Tensor, policy: Policy, *, dense: bool
) -> Tensor:
    """Logits (N, n_classes) of ``policy.arch``; see :meth:`Supernet.policy_forward`."""
    like = supernet.get_parameter("head.classifier.weight")
    with torch.autocast(like.device.type, enabled=False):
        gates, masked = Gates(policy, like), Masked(supernet)
        _Masks(space, gates, masked).multiply(dense=dense)
    logits = _dense(space, masked, x, gates.arch) if dense else masked.run(x, gates.arch)
    return logits * gates.chosen(RESOLUTION) if gates.searches(RESOLUTION) else logits


class _Masks:
    """Multiplies the weights of every piece."""

    def __init__(self, space: ElasticSpace, gates: Gates, masked: Masked) -> None:
        self.space, self.gates, self.masked = space, gates, masked

    def multiply(self, *, dense: bool) -> None:
        """Of all blocks for a dense pass, otherwise of those that are present."""
        sizes, before = self.space.sizes, (STEM_WIDTH, self.space.sizes.stem_widths)
        depths = self.space.subnet(self.gates.arch).depths
        for stage, depth in zip(sizes.stages, depths, strict=True):
            for i in range(stage.depths[-1] if dense else depth):
                self._block(stage, i, *before)
                before = (f"{stage.name}_width", stage.widths)
        label, widths = before
        if sizes.wide_head:
            self._columns("head.expand.conv", widths, label)
            self._columns("head.mix.conv", tuple(HEAD_EXPANSION * c for c in widths), label)
        else:
            self._columns("head.mix.conv", widths, label)
        self._columns("head.classifier", sizes.last_widths, LAST_WIDTH)

    def _block(self, stage: Stage, index: int, before: str, widths: tuple[int, ...]) -> None:
        """``before``: the decision on the block's input channels; ``widths``: its candidates."""
        name, expand = block_name(stage, index), f"{stage.name}_expand"
        block = self.masked.supernet.get_submodule(name)
        if not isinstance(block, Block):
            raise TypeError(f"{name} is a {type(block).__name__}, not a block")
        if block.expand is not None:
            self._columns(f"{name}.expand.conv", widths, before)
        if block.shortcut is not None and block.shortcut.conv is not None:
            self._columns(f"{name}.shortcut.conv", widths, before)
        middles = tuple(tuple(middle_channels(c, e) for e in stage.expands) for c in widths)
        self._columns(f"{name}.project.conv", middles, before, expand)
        if block.se is not None:
            squeezed = tuple(tuple(make_divisible(n // SE_REDUCTION) for n in m) for m in middles)
            self._columns(f"{name}.se.gate.0", middles, before, expand)
            self._columns(f"{name}.se.gate.2", squeezed, before, expand)
        if self.gates.searches(f"{stage.name}_kernel"):
            rings = self.gates.mask(
                _rings(stage.kernels[-1]), stage.kernels, f"{stage.name}_kernel"
            )
            self.masked.multiply(
                f"{name}.depthwise.conv.weight", rings.reshape(stage.kernels[-1], -1)
            )
        if index >= stage.depths[0]:
            gate = self.gates.mask(stage.depths[-1], stage.depths, f"{stage.name}_depth")[index]
            self.masked.multiply(f"{name}.project.norm.weight", gate)
            self.masked.multiply(f"{name}.project.norm.bias", gate)

    def _columns(self, name: str, sizes: Sizes, *labels: str) -> None:
        """Mask what a layer reads."""
        if any(self.gates.searches(label) for label in labels):
            mask = self.gates.mask(_largest(sizes), sizes, *labels)
            self.masked.multiply(f"{name}.weight", mask, axis=1)


def _largest(sizes: Sizes) -> int:
    last = sizes[-1]
    return last if isinstance(last, int) else last[-1]


def _rings(kernel: int) -> tuple[int, ...]:
    """Position of every tap: below k where a k×k kernel in the middle has it.

    >>> _rings(3)
    (2, 2, 2, 2, 0, 2, 2, 2, 2)
    """
    away = [abs(i - kernel // 2) for i in range(kernel)]
    return tuple(2 * max(row, column) for row in away for column in away)


def _dense(space: ElasticSpace, masked: Masked, x: Tensor, arch: Arch) -> Tensor:
    with torch.device("meta"):
        subnet = space.network(arch)
    return run_aside(
        _Dense(masked.supernet, space, arch),
        (resized(x, space.input_shape_of(arch)[1:]),),
        weights={f"supernet.{name}": weight for name, weight in masked.weights.items()},
        statistics_of={f"supernet.{name}": buffer for name, buffer in subnet.named_buffers()},
        part=part,
    )


class _Dense(nn.Module):
    """Every block of a supernet at full size."""

    def __init__(self, supernet: nn.Module, space: ElasticSpace, arch: Arch) -> None:
        super().__init__()
        self.supernet = supernet
        self.names = [name for name, _ in space.positions()]
        self.sizes = dict(space.named_blocks(space.subnet(arch)))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) at their resolution → (N, n_classes)."""
        for name in self.names:
            module = self.supernet.get_submodule(name)
            x = _block(module, x, self.sizes.get(name)) if isinstance(module, Block) else module(x)
        return x


def _block(block: Block, x: Tensor, size: BlockSize | None) -> Tensor:
    """:class:`Block` at full size, with the shortcut of ``size``; None for an absent block."""
    y = x if block.expand is None else block.expand(x)
    y = block.depthwise(y)
    if block.se is not None:
        y = block.se(y)
    y = block.project(y)
    if block.shortcut is None:
        return cast(Tensor, y)
    x = block.shortcut.pooled(x)
    if size is not None and size.in_channels != size.channels and block.shortcut.conv is not None:
        return cast(Tensor, block.shortcut.conv(x) + y)
    if block.drop_path is not None:
        y = block.drop_path(y)
    missing = y.shape[1] - x.shape[1]  # channels beyond the active ones, which nothing reads
    return cast(Tensor, F.pad(x, (0, 0, 0, 0, 0, missing)) + y)
