"""What every search space offers to training, search, measuring and export."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor, nn

from latency_tables import keys
from latency_tables.arch import Arch, Decision
from latency_tables.cost_table import CostTable
from latency_tables.errors import SpaceError

if TYPE_CHECKING:
    from pipeline.spaces.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One piece of a network: a module with one input and one output.

    ``labels`` are the decisions on which its module *or its input shape* depends. Two segments
    with equal ``key`` and equal input shape have the same structure, so a recorder needs to look
    at one of them only.
    """

    name: str
    labels: tuple[str, ...]
    key: Hashable
    build: Callable[[], nn.Module]


class Supernet(nn.Module):
    """A network that holds the weights of every architecture of a space."""

    mixes: bool = False
    """Whether :meth:`source_of` makes weights for a subnet that it is asked for (K-shot NAS): they
    are overwritten when it is asked for the next one."""

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        """Logits (N, n_classes) of the subnet ``arch`` for images (N, C, H, W)."""
        raise TypeError(f"{type(self).__name__} does not say how to run a subnet")

    def policy_forward(self, x: Tensor, policy: Policy, *, dense: bool = False) -> Tensor:
        """Logits (N, n_classes) of ``policy.arch``, with gradients that reach ``policy.one_hot``.

        Sliced, the values are those of :meth:`forward` to the last bit, and the gradient is that
        through active units (:mod:`pipeline.spaces.matrix_mapping`).

        Args:
            dense: compute everything at full size, so that inactive units have a gradient as well;
                equal up to rounding, and as expensive as the largest subnet.

        Raises:
            SpaceError: the space has no such pass.
        """
        from pipeline.spaces import SPACES

        raise SpaceError(
            f"{type(self).__name__} has no pass in which gradients reach the choices; supernets of "
            f"these spaces have one: {', '.join(SPACES)}"
        )

    def subnet_parameters(self, arch: Arch) -> list[nn.Parameter]:
        """The parameters that ``arch`` uses."""
        raise TypeError(f"{type(self).__name__} does not say what a subnet holds")

    def source_of(self, arch: Arch) -> Supernet:
        """The supernet of the space that holds the weights of ``arch``: this one, unless it is
        made of several. See ``mixes`` for how long it holds them."""
        return self

    def layout(self) -> dict[str, Any]:
        """What beside the space defines the tensors, JSON-ready; empty for its plain supernet."""
        return {}


class Space(Protocol):
    """A set of architectures, their networks and their costs."""

    name: str
    preset: str
    input_shape: tuple[int, int, int]
    n_classes: int
    decisions: tuple[Decision, ...]

    def describe(self) -> dict[str, Any]:
        """Everything that defines the space, JSON-ready; its hash is ``space_id``."""
        ...

    @property
    def space_id(self) -> str:
        """Content hash of :meth:`describe`; equal for equal spaces on any machine."""
        ...

    def input_shape_of(self, arch: Arch) -> tuple[int, int, int]:
        """(C, H, W) that the network of ``arch`` takes: smaller than ``input_shape`` where the
        resolution is searched, which is then the largest one."""
        ...

    def sample(self, rng: np.random.Generator) -> Arch:
        """One architecture, every genome equally likely."""
        ...

    def validate(self, arch: Arch) -> None:
        """Raise InvalidArchError, naming the allowed choices, unless ``arch`` is of this space."""
        ...

    def canonical(self, arch: Arch) -> Arch:
        """Drop genes that change neither function nor inherited weights."""
        ...

    def graph_key(self, arch: Arch) -> str:
        """A name that isomorphic networks share: key of latency, MACs, stand-alone accuracy."""
        ...

    def positions(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Name and labels of every segment that any architecture may have, in order."""
        ...

    def segments(self, arch: Arch) -> tuple[Segment, ...]:
        """The pieces of the network of ``arch``, in order; absent ones are left out."""
        ...

    def supernet(self) -> Supernet:
        """A freshly initialised supernet (torch's global generator is used)."""
        ...

    def network(self, arch: Arch) -> nn.Sequential:
        """The structure of one subnet, named by segment, with affine BN and fresh weights."""
        ...

    def inherit(
        self, network: nn.Sequential, arch: Arch, supernet: Supernet, *, share: bool = False
    ) -> None:
        """Give ``network`` the supernet's weights of ``arch``.

        With ``share`` the parameters are the supernet's own tensors (no copy); buffers, such as
        running statistics, are always copied, so recalibrating never touches the supernet.
        """
        ...

    def cost_table(self) -> CostTable:
        """Exact costs of every choice (cached)."""
        ...


def net_id(space: Space, arch: Arch) -> str:
    """Identity of a network for latency tables: equal for isomorphic networks of a space."""
    return keys.net_id(space.space_id, space.graph_key(arch))
