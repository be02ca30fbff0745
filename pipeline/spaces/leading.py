"""Chains whose blocks come in several widths: a narrower one uses the leading channels.

The supernet holds every block at its largest width. A narrower block uses the first channels of
its weights (ordinal sharing) and of its batch-norm statistics, which therefore mix widths: use
batch statistics or recalibrate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from latency_tables.arch import Arch
from latency_tables.errors import SpaceError
from pipeline.spaces.base import Segment, Supernet
from pipeline.spaces.chain import ChainSpace, ChainSupernet, Position
from pipeline.spaces.entangled import inherit_part, leading


def leading_state(source: nn.Module, target: nn.Module) -> dict[str, Tensor]:
    """Views of the weights and statistics of ``source`` that a narrower ``target`` uses."""
    given = {**dict(source.named_parameters()), **dict(source.named_buffers())}
    wanted = {**dict(target.named_parameters()), **dict(target.named_buffers())}
    return {name: leading(given[name], *t.shape) for name, t in wanted.items()}


def _copy_modes(source: nn.Module, target: nn.Module) -> None:
    """Make every module train and track as its original does: passes without dropout set them one
    by one."""
    for original, module in zip(source.modules(), target.modules(), strict=True):
        module.training = original.training
        if isinstance(original, nn.BatchNorm2d) and isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = original.track_running_stats


class LeadingSupernet(ChainSupernet):
    """Every block at full width; a path runs the leading channels of each."""

    def __init__(
        self,
        chain: tuple[Position, ...],
        *,
        affine: bool,
        initialise: Callable[[nn.Module], None] | None,
        segments: Callable[[Arch], tuple[Segment, ...]],
    ) -> None:
        super().__init__(chain, affine=affine, initialise=initialise)
        self._segments = segments
        # structure without weights; not a ModuleDict, because nothing of it is to be saved
        self._narrow: dict[Any, nn.Module] = {}

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        """Logits (N, n_classes) of the path ``arch`` at its widths."""
        for position, segment in zip(self.chain, self._segments(arch), strict=True):
            full, narrow = self.block(position, arch), self._narrow_block(segment)
            _copy_modes(full, narrow)
            x = functional_call(narrow, leading_state(full, narrow), (x,))
        return x

    def _narrow_block(self, segment: Segment) -> nn.Module:
        if segment.key not in self._narrow:
            with torch.device("meta"):
                self._narrow[segment.key] = segment.build()
        return self._narrow[segment.key]


class LeadingSpace(ChainSpace):
    """A chain at full width, whose subclasses say in ``segments`` how narrow a block is."""

    def supernet(self) -> LeadingSupernet:
        """A freshly initialised supernet at full width."""
        return LeadingSupernet(
            self.chain,
            affine=self.supernet_affine,
            initialise=self.initialise,
            segments=self.segments,
        )

    def inherit(
        self, network: nn.Sequential, arch: Arch, supernet: Supernet, *, share: bool = False
    ) -> None:
        """Give ``network`` the leading channels of the supernet's weights; see :class:`Space`."""
        if not isinstance(supernet, LeadingSupernet):
            raise SpaceError(f"{type(supernet).__name__} is not a supernet of {self.name}")
        for position in self.chain:
            target = network.get_submodule(position.name)
            inherit_part(target, supernet.block(position, arch), share=share)
