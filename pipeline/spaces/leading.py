"""Chains whose blocks come in several widths: a narrower one uses the leading channels.

The supernet holds every block at its largest width. A narrower block uses the first channels of
its weights (ordinal sharing) and of its batch-norm statistics, which therefore mix widths: use
batch statistics or recalibrate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from latency_tables.arch import Arch
from latency_tables.errors import SpaceError
from pipeline.spaces.base import Segment, Supernet
from pipeline.spaces.chain import ChainSpace, ChainSupernet, Position
from pipeline.spaces.entangled import inherit_part, leading
from pipeline.spaces.matrix_mapping import Gates, run_aside


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A weight of which the decision ``label`` sets how many columns each candidate uses."""

    weight: str
    label: str
    sizes: tuple[int, ...]


def _columns(module: nn.Module) -> dict[str, int]:
    """How many channels each weight reads."""
    return {name: w.shape[1] for name, w in module.named_parameters() if w.ndim > 1}


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
        self._readers: dict[Any, tuple[Reader, ...]] = {}
        self._latest: tuple[Arch, tuple[Segment, ...]] | None = None

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        """Logits (N, n_classes) of the path ``arch`` at its widths."""
        for position, segment in zip(self.chain, self._segments(arch), strict=True):
            full, narrow = self.block(position, arch), self._narrow_block(segment)
            _copy_modes(full, narrow)
            x = functional_call(narrow, leading_state(full, narrow), (x,))
        return x

    def run_choice(
        self, index: int, choice: str, x: Tensor, gates: Gates, *, dense: bool
    ) -> Tensor:
        """Masks stand on the columns of every weight that reads channels of a searched width."""
        position, arch = self.chain[index], gates.arch
        here = arch.replace(**{position.name: choice}) if position.searched else arch
        full, narrow = (
            self.block(position, here),
            self._narrow_block(self._segments_of(here)[index]),
        )
        masked: dict[str, Tensor] = {}
        with torch.autocast(x.device.type, enabled=False):
            for reader in self._readers_of(index, here, gates):
                weight = masked.get(reader.weight, full.get_parameter(reader.weight))
                mask = gates.mask(weight.shape[1], reader.sizes, reader.label)
                masked[reader.weight] = weight * mask.reshape(-1, *(1,) * (weight.ndim - 2))
        if dense:
            chosen = choice == position.choice(arch)
            moved = dict(narrow.named_buffers()) if chosen else {}
            return run_aside(full, (x,), weights=masked, statistics_of=moved)
        _copy_modes(full, narrow)
        state = leading_state(full, narrow)
        for name, weight in masked.items():
            state[name] = leading(weight, *state[name].shape)
        return cast("Tensor", functional_call(narrow, state, (x,)))

    def _readers_of(self, index: int, arch: Arch, gates: Gates) -> tuple[Reader, ...]:
        """Weights of a position with fewer columns at smaller widths."""
        labels = self._segments_of(arch)[index].labels
        key = (index, *(arch[label] for label in labels))
        if key not in self._readers:
            found = []
            for label in labels:
                if label == self.chain[index].name:
                    continue
                columns = [
                    _columns(self._narrow_block(self._segments(arch.replace(**{label: c}))[index]))
                    for c in gates.choices[label]
                ]
                for weight in columns[-1]:
                    sizes = tuple(c[weight] for c in columns)
                    if len(set(sizes)) > 1:
                        found.append(Reader(weight=weight, label=label, sizes=sizes))
            self._readers[key] = tuple(found)
        return self._readers[key]

    def _segments_of(self, arch: Arch) -> tuple[Segment, ...]:
        """Kept for the next position, which asks for the same ones."""
        if self._latest is None or self._latest[0] != arch:
            self._latest = (arch, self._segments(arch))
        return self._latest[1]

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
