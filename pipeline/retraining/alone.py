"""One network as a supernet of one architecture, so that the one training loop trains it.

The space of one has no decisions; sampling it gives the empty architecture, and SPOS on it is
plain training. Drop path and dropout are switched on in the network that is trained; what is kept
afterwards are weights in the names of ``space.network(arch)``, which has neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latency_tables.arch import Arch
from latency_tables.cost_table import CostTable
from latency_tables.errors import UsageError
from pipeline.spaces.base import Segment, Space, Supernet
from pipeline.spaces.described import DescribedSpace
from pipeline.spaces.drop_path import switch_on
from pipeline.supernet.resolution import resized


class Alone(Supernet):
    """A supernet that holds ``network`` only; ``size`` is the (height, width) that it takes."""

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        """Logits (N, n_classes) for images (N, C, H, W) of any size; ``arch`` says nothing."""
        logits: Tensor = self.network(resized(x, self.size))
        return logits

    def subnet_parameters(self, arch: Arch) -> list[nn.Parameter]:
        """All of them."""
        return list(self.parameters())


class SpaceOfOne(DescribedSpace):
    """The space whose only architecture is ``arch`` of ``space``.

    >>> import numpy as np
    >>> from pipeline.spaces import load_space
    >>> space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    >>> one = SpaceOfOne(space, space.sample(np.random.default_rng(0)))
    >>> one.decisions, one.sample(np.random.default_rng(1))
    ((), Arch({}))
    """

    def __init__(self, space: Space, arch: Arch) -> None:
        space.validate(arch)
        super().__init__(
            name="alone",
            preset=space.preset,
            options={"space": space.describe(), "arch": dict(arch)},
            input_shape=space.input_shape,
            n_classes=space.n_classes,
            decisions=(),
        )
        self.space, self.only = space, arch

    def input_shape_of(self, arch: Arch) -> tuple[int, int, int]:
        """What the network takes."""
        return self.space.input_shape_of(self.only)

    def canonical(self, arch: Arch) -> Arch:
        """Nothing to drop."""
        return arch

    def graph_key(self, arch: Arch) -> str:
        """That of the network in its own space."""
        return self.space.graph_key(self.only)

    def positions(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The segments that are there; none depends on anything."""
        return tuple((segment.name, ()) for segment in self.space.segments(self.only))

    def segments(self, arch: Arch) -> tuple[Segment, ...]:
        """The pieces of the network."""
        return tuple(replace(segment, labels=()) for segment in self.space.segments(self.only))

    def supernet(self) -> Alone:
        """The network with fresh weights."""
        return Alone(self.space.network(self.only), self.input_shape_of(self.only)[1:])

    def network(self, arch: Arch) -> nn.Sequential:
        """The structure with fresh weights."""
        return self.space.network(self.only)

    def inherit(
        self, network: nn.Sequential, arch: Arch, supernet: Supernet, *, share: bool = False
    ) -> None:
        """Give ``network`` the weights; see :class:`pipeline.spaces.base.Space`."""
        if not isinstance(supernet, Alone):
            raise UsageError(f"{type(supernet).__name__} is not a network of its own")
        own = supernet.network
        state: dict[str, Any] = {name: buffer.clone() for name, buffer in own.named_buffers()}
        for name, parameter in own.named_parameters():
            state[name] = parameter if share else nn.Parameter(parameter.detach().clone())
        network.load_state_dict(state, assign=True)

    def cost_table(self) -> CostTable:
        """Exact costs, of one network."""
        from pipeline.export.record import space_cost_table

        return space_cost_table(self)


def regularise(
    supernet: Alone,
    *,
    drop_path: float,
    dropout: float | None,
    input_shape: tuple[int, int, int],
) -> None:
    """Switch on drop path and dropout, in place; weights and their names stay.

    Raises:
        UsageError: the network has no residual branch to drop, or no classifier that dropout can
            come before; nothing is left out silently.
    """
    switch_on(supernet, drop_path)
    if dropout is None:
        return
    own = [module for module in supernet.modules() if isinstance(module, nn.Dropout)]
    for module in own:
        module.p = dropout
    if dropout and not own:
        _drop_before_classifier(supernet, dropout, input_shape)


def _drop_before_classifier(
    supernet: Alone, rate: float, input_shape: tuple[int, int, int]
) -> None:
    """Put dropout before the last linear layer, and see to it that it is called."""
    linear = [module for module in supernet.modules() if isinstance(module, nn.Linear)]
    called: list[bool] = []
    if linear:
        linear[-1].register_forward_pre_hook(_dropping(rate))
        watch = linear[-1].register_forward_pre_hook(lambda module, given: called.append(True))
        training = supernet.training
        device = linear[-1].weight.device
        with torch.no_grad():
            supernet.eval()(torch.zeros(1, *input_shape, device=device), Arch({}))
        supernet.train(training)
        watch.remove()
    if not called:
        raise UsageError(
            f"dropout = {rate:g}, but this network has no linear layer that it could come before",
            hint="--set dropout=0",
        )


def _dropping(rate: float) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def drop(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (F.dropout(given[0], rate, module.training), *given[1:])

    return drop
