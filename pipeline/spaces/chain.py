"""Spaces that are a chain of choice blocks: at each position one of several modules.

ShuffleNetV2-SPOS and NAS-Bench-Macro are of this kind. A space of this kind is a list of
:class:`Position`; the supernet holds every module of every position and runs one per position.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from latency_tables.arch import Arch, Decision
from latency_tables.cost_table import CostTable
from latency_tables.errors import SpaceError
from pipeline.spaces.base import Segment, Supernet
from pipeline.spaces.described import DescribedSpace
from pipeline.spaces.matrix_mapping import Gates, run_aside

if TYPE_CHECKING:
    from pipeline.spaces.policy import Policy

FIXED = "fixed"
"""Name of the only choice of a position that is not searched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """One place in the chain. ``build(choice, affine)`` makes the module of one choice.

    ``key`` names the structure apart from the choice: positions with equal keys hold equal
    modules.
    """

    name: str
    choices: tuple[str, ...]
    key: Hashable
    build: Callable[[str, bool], nn.Module]

    @property
    def searched(self) -> bool:
        """Whether there is anything to decide here."""
        return len(self.choices) > 1

    @property
    def labels(self) -> tuple[str, ...]:
        """The decision made here, if any."""
        return (self.name,) if self.searched else ()

    def choice(self, arch: Mapping[str, Any]) -> str:
        """What ``arch`` takes here."""
        return str(arch[self.name]) if self.searched else self.choices[0]


class ChainSupernet(Supernet):
    """Every module of every position; a path runs one module per position."""

    def __init__(
        self,
        chain: tuple[Position, ...],
        *,
        affine: bool,
        initialise: Callable[[nn.Module], None] | None = None,
    ) -> None:
        super().__init__()
        self.chain = chain
        self.blocks = nn.ModuleDict(
            {
                p.name: nn.ModuleDict({choice: p.build(choice, affine) for choice in p.choices})
                for p in chain
            }
        )
        if initialise is not None:
            initialise(self)

    def block(self, position: Position, arch: Arch) -> nn.Module:
        """The module that ``arch`` runs at ``position``."""
        choices = self.blocks[position.name]
        if not isinstance(choices, nn.ModuleDict):
            raise SpaceError(f"position {position.name!r} of the supernet holds no choices")
        return choices[position.choice(arch)]

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        """Logits (N, n_classes) of the path ``arch``."""
        for position in self.chain:
            x = self.block(position, arch)(x)
        return x

    def policy_forward(self, x: Tensor, policy: Policy, *, dense: bool = False) -> Tensor:
        """Logits (N, n_classes) of the path ``policy.arch``; see :class:`Supernet`.

        Choices share no weights, so there is no mask: the output of the chosen module is multiplied
        by its entry. Dense, it is the sum over all modules of a position.
        """
        gates = Gates(policy, like=next(self.parameters()))
        for index, position in enumerate(self.chain):
            if not position.searched:
                x = self.run_choice(index, position.choices[0], x, gates, dense=dense)
                continue
            chosen = position.choice(gates.arch)
            outputs = (
                gates.entry(position.name, choice)
                * self.run_choice(index, choice, x, gates, dense=dense)
                for choice in (position.choices if dense else (chosen,))
            )
            x = reduce(torch.add, outputs)
        return x

    def run_choice(
        self, index: int, choice: str, x: Tensor, gates: Gates, *, dense: bool
    ) -> Tensor:
        """Output of one module of a position, with gradients to what else it depends on.

        Args:
            dense: at full size; modules that were not chosen keep their running statistics.
        """
        position = self.chain[index]
        module = self.blocks.get_submodule(f"{position.name}.{choice}")
        if choice == position.choice(gates.arch):
            return cast("Tensor", module(x))
        return run_aside(module, (x,), weights={}, statistics_of={})

    def subnet_parameters(self, arch: Arch) -> list[nn.Parameter]:
        """The parameters on the path ``arch``."""
        return [q for p in self.chain for q in self.block(p, arch).parameters()]


class ChainSpace(DescribedSpace):
    """A space given by its chain. See :class:`pipeline.spaces.base.Space` for the methods.

    ``supernet_affine``: whether batch norms inside the supernet have weights and biases. A subnet
    always has them; where the supernet has none they start at one and zero, which is the same
    function.
    """

    def __init__(
        self,
        *,
        name: str,
        preset: str,
        options: Mapping[str, Any],
        input_shape: tuple[int, int, int],
        n_classes: int,
        chain: tuple[Position, ...],
        supernet_affine: bool,
        initialise: Callable[[nn.Module], None] | None = None,
    ) -> None:
        super().__init__(
            name=name,
            preset=preset,
            options=options,
            input_shape=input_shape,
            n_classes=n_classes,
            decisions=tuple(Decision(label=p.name, choices=p.choices) for p in chain if p.searched),
        )
        self.chain = chain
        self.supernet_affine, self.initialise = supernet_affine, initialise
        self._cost_table: CostTable | None = None

    def canonical(self, arch: Arch) -> Arch:
        """Every gene chooses a module with weights of its own, so nothing can be dropped."""
        return arch

    def graph_key(self, arch: Arch) -> str:
        """The choices in order; subclasses merge isomorphic networks."""
        return "-".join(str(arch[d.label]) for d in self.decisions)

    def positions(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Name and labels of every position."""
        return tuple((p.name, p.labels) for p in self.chain)

    def segments(self, arch: Arch) -> tuple[Segment, ...]:
        """One segment per position."""
        return tuple(
            Segment(
                name=p.name,
                labels=p.labels,
                key=(p.key, p.choice(arch)),
                build=partial(p.build, p.choice(arch), True),
            )
            for p in self.chain
        )

    def supernet(self) -> ChainSupernet:
        """A freshly initialised supernet."""
        return ChainSupernet(self.chain, affine=self.supernet_affine, initialise=self.initialise)

    def network(self, arch: Arch) -> nn.Sequential:
        """The structure of one subnet with affine BN and fresh weights."""
        self.validate(arch)
        network = nn.Sequential(OrderedDict((s.name, s.build()) for s in self.segments(arch)))
        if self.initialise is not None and next(network.parameters()).device.type != "meta":
            self.initialise(network)
        return network

    def inherit(
        self, network: nn.Sequential, arch: Arch, supernet: Supernet, *, share: bool = False
    ) -> None:
        """Give ``network`` the supernet's weights of ``arch``; see :class:`Space`."""
        if not isinstance(supernet, ChainSupernet):
            raise SpaceError(f"{type(supernet).__name__} is not a supernet of {self.name}")
        for position in self.chain:
            source = supernet.block(position, arch)
            target = network.get_submodule(position.name)
            _inherit_block(target, source, share=share)

    def cost_table(self) -> CostTable:
        """Exact costs of every choice (cached)."""
        if self._cost_table is None:
            from pipeline.export.record import space_cost_table

            self._cost_table = space_cost_table(self)
        return self._cost_table


def _inherit_block(target: nn.Module, source: nn.Module, *, share: bool) -> None:
    """Copy (or share) parameters, copy buffers; batch norms without weights get ones and zeros."""
    state: dict[str, Tensor] = {}
    for name, parameter in source.named_parameters():
        state[name] = parameter if share else parameter.detach().clone()
    for name, buffer in source.named_buffers():
        state[name] = buffer.clone()
    for name, module in target.named_modules():
        if isinstance(module, nn.BatchNorm2d) and f"{name}.weight" not in state:
            mean = state[f"{name}.running_mean"]
            state[f"{name}.weight"] = nn.Parameter(torch.ones_like(mean))
            state[f"{name}.bias"] = nn.Parameter(torch.zeros_like(mean))
    target.load_state_dict(state, assign=True)
