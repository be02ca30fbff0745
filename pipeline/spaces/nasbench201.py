"""The NAS-Bench-201 space: one cell of 6 edges with 5 operators, 15,625 genomes.

Dong and Yang, "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search",
2020. CIFAR-10: stem conv 3×3 with 16 channels, three stages of equal cells with 16, 32 and 64
channels, a residual block with stride 2 between the stages, batch norm, ReLU, pooling, classifier.
Six decisions are made once and hold for every cell.

Operators of an edge: ``none``, ``skip``, ``conv1x1``, ``conv3x3`` (ReLU, convolution, batch norm)
and ``avgpool3x3`` (padding is not counted). Labels and order of operators are those in which the
latencies of the space were published.

Presets: ``paper`` (5 cells per stage) and ``tiny`` (one cell per stage, half of the channels).

* The canonical form sets dead edges to ``none``: nothing of them is built, trained or inherited, in
  the supernet either. ``graph_key`` is that of isomorphic live cells: 15,625 genomes, 9,445
  canonical ones, 5,264 networks. (The benchmark's 6,466 groups follow another rule: some hold cells
  with different numbers of convolutions, and some cells that run the same are in two groups.)
  Isomorphic cells cost the same but for the peak of memory, which depends on the order of nodes.
* 341 genomes ignore their picture: no path leads through the cell, and the classifier sees
  constants. They are architectures like any other, as in the benchmark; all of them share one
  canonical form and one ``graph_key``. Each cell multiplies by zero, so they can be recorded and
  timed, and their costs are those of stem, residual blocks and head.
* Costs are those of the network that is built. The benchmark's own figures count the operators
  of dead edges too: columns ``nominal_macs`` and ``nominal_params`` (equal to ``macs`` and
  ``params`` of cells without dead convolutions).

Deviation: in the benchmark a convolution whose input is zero for ever, by ``none``, still adds its
batch norm's bias. Such an edge is on no path from the input, so it is left out here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from latency_tables.arch import Arch, Decision
from latency_tables.cost_table import CostTable
from latency_tables.errors import InvalidArchError, SpaceError
from pipeline.spaces.chain import FIXED, ChainSpace, ChainSupernet, Position
from pipeline.spaces.layers import conv_bn
from pipeline.spaces.matrix_mapping import Gates
from pipeline.spaces.nasbench201_cell import (
    CONVOLUTIONS,
    LABELS,
    OPERATORS,
    Operators,
    cell_key,
    live_operators,
    steps_of,
)
from pipeline.spaces.nasbench201_masked import cell_output

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.spaces.policy import Policy

DECISIONS = tuple(Decision(label=label, choices=OPERATORS) for label in LABELS)
PUBLISHED_NAMES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""What the benchmark calls :data:`OPERATORS`."""
EVERY = "every"
"""Name of the module that holds the convolutions of all edges, in the supernet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Channels of each stage, and cells per stage."""

    channels: tuple[int, int, int]
    n_cells: int


PRESETS = {
    "paper": Preset(channels=(16, 32, 64), n_cells=5),
    "tiny": Preset(channels=(8, 16, 32), n_cells=1),
}


# -- modules -------------------------------------------------------------------------------------


class Cell(nn.Module):
    """A cell with the convolutions that it uses: label of the edge → convolution, batch norm."""

    def __init__(self, operators: Operators, edges: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.steps = steps_of(operators)
        self.edges = nn.ModuleDict(dict(edges))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        values = [x]
        for step in self.steps:
            a = values[step.reads[0]]
            if step.kind == "relu":
                value = F.relu(a)
            elif step.kind == "pool":
                value = F.avg_pool2d(a, 3, stride=1, padding=1, count_include_pad=False)
            elif step.kind == "add":
                value = a + values[step.reads[1]]
            elif step.kind == "zero":
                value = a * 0.0
            else:
                value = self.edges[step.edge](a)
            values.append(value)
        return values[-1]


class EveryOperator(nn.Module):
    """Both convolutions of all six edges; the other operators have no weights."""

    def __init__(self, channels: int, *, affine: bool) -> None:
        super().__init__()
        self.edges = nn.ModuleDict(
            {
                label: nn.ModuleDict(
                    {name: _convolution(name, channels, affine=affine) for name in CONVOLUTIONS}
                )
                for label in LABELS
            }
        )

    def cell(self, operators: Operators) -> Cell:
        """A cell that runs, not copies, the convolutions of its live edges."""
        edges = {}
        for label, name in _convolutions(operators):
            edges[label] = self.edges.get_submodule(f"{label}.{name}")
        return Cell(operators, edges)

    def convolutions(self) -> dict[str, dict[str, nn.Module]]:
        """Label of the edge → operator → module."""
        return {
            label: {name: self.edges.get_submodule(f"{label}.{name}") for name in CONVOLUTIONS}
            for label in LABELS
        }


class ResidualBlock(nn.Module):
    """Two times ReLU, conv 3×3, batch norm with stride 2; added to a pooled 1×1 projection."""

    def __init__(self, in_channels: int, channels: int, *, affine: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(),
            *conv_bn(in_channels, channels, 3, stride=2, affine=affine),
            *conv_bn(channels, channels, 3, relu=False, affine=affine),
        )
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2), nn.Conv2d(in_channels, channels, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) → (N, C, H / 2, W / 2)."""
        y: Tensor = self.shortcut(x) + self.body(x)
        return y


def _convolution(name: str, channels: int, *, affine: bool) -> nn.Module:
    """Without the ReLU, which edges that leave one node share."""
    return nn.Sequential(
        *conv_bn(channels, channels, CONVOLUTIONS[name], relu=False, affine=affine)
    )


def _convolutions(operators: Operators) -> Iterator[tuple[str, str]]:
    """Label and operator of every live edge that holds a convolution."""
    for label, operator in zip(LABELS, live_operators(operators), strict=True):
        if operator in CONVOLUTIONS:
            yield label, operator


# -- the space -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CellPosition(Position):
    """A place for a cell. Its choice, made by all six decisions, is the live cell's operators."""

    channels: int
    size: tuple[int, int]

    @property
    def labels(self) -> tuple[str, ...]:
        """Every decision."""
        return LABELS

    def choice(self, arch: Mapping[str, object]) -> str:
        """Operators of the live edges, ``none`` for the others."""
        return "-".join(live_operators(operators_of(arch)))


class CellSupernet(ChainSupernet):
    """Every convolution of every edge in every cell; a subnet runs those on its live edges."""

    def block(self, position: Position, arch: Arch) -> nn.Module:
        """The module that ``arch`` runs at ``position``; a cell's convolutions are not copied."""
        if not isinstance(position, CellPosition):
            return super().block(position, arch)
        return self._every(position).cell(operators_of(arch))

    def _every(self, position: Position) -> EveryOperator:
        every = self.blocks.get_submodule(f"{position.name}.{EVERY}")
        if not isinstance(every, EveryOperator):
            raise SpaceError(f"position {position.name!r} of the supernet holds no cell")
        return every

    def policy_forward(self, x: Tensor, policy: Policy, *, dense: bool = False) -> Tensor:
        """Logits (N, n_classes) of ``policy.arch``; see :class:`Supernet`."""
        gates = Gates(policy, like=next(self.parameters()))
        for position in self.chain:
            if isinstance(position, CellPosition):
                x = cell_output(self._every(position).convolutions(), x, gates, dense=dense)
            else:
                x = super().block(position, gates.arch)(x)
        return x


class NASBench201(ChainSpace):
    """A chain of cells that share one genotype."""

    def __init__(
        self,
        *,
        preset: str,
        sizes: Preset,
        input_shape: tuple[int, int, int],
        n_classes: int,
        chain: tuple[Position, ...],
    ) -> None:
        super().__init__(
            name="nasbench201",
            preset=preset,
            options=asdict(sizes),
            input_shape=input_shape,
            n_classes=n_classes,
            chain=chain,
            supernet_affine=True,
        )
        self.decisions = DECISIONS

    def canonical(self, arch: Arch) -> Arch:
        """``arch`` with every dead edge set to ``none``."""
        return Arch(dict(zip(LABELS, live_operators(operators_of(arch)), strict=True)))

    def graph_key(self, arch: Arch) -> str:
        """What the live cell computes; equal for isomorphic cells."""
        return cell_key(operators_of(arch))

    def supernet(self) -> CellSupernet:
        """A freshly initialised supernet."""
        return CellSupernet(self.chain, affine=self.supernet_affine)

    def cost_table(self) -> CostTable:
        """Exact costs: a factor per fixed part, and one of 15,625 entries for all cells."""
        if self._cost_table is None:
            from pipeline.spaces.nasbench201_costs import cost_table

            self._cost_table = cost_table(self)
        return self._cost_table


def nasbench201(*, preset: str, input_shape: tuple[int, int, int], n_classes: int) -> NASBench201:
    """Make the space.

    >>> space = nasbench201(preset="paper", input_shape=(3, 32, 32), n_classes=10)
    >>> arch = arch_of_string(
    ...     "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|"
    ...     "+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"
    ... )
    >>> costs = space.cost_table().costs(arch)
    >>> int(costs["params"]), int(costs["macs"])
    (802426, 113951360)

    Raises:
        SpaceError: an unknown preset, or pictures whose sides are no multiples of four.
    """
    if preset not in PRESETS:
        raise SpaceError(f"nasbench201 has no preset {preset!r}; known: {', '.join(PRESETS)}")
    sizes = PRESETS[preset]
    image_channels, height, width = input_shape
    if min(height, width) < 4 or height % 4 or width % 4:
        raise SpaceError(
            f"nasbench201 halves its pictures twice, so their sides must be multiples of 4, "
            f"not {height}x{width}"
        )
    first = sizes.channels[0]
    chain = [
        Position(
            name="stem",
            choices=(FIXED,),
            key=("stem", image_channels, first),
            build=lambda _, affine: nn.Sequential(
                *conv_bn(image_channels, first, 3, relu=False, affine=affine)
            ),
        )
    ]
    for stage, channels in enumerate(sizes.channels):
        if stage:
            chain.append(_reduction(stage, sizes.channels[stage - 1], channels))
        for index in range(stage * sizes.n_cells, (stage + 1) * sizes.n_cells):
            size = (height >> stage, width >> stage)
            chain.append(_cell(f"cell{index + 1:02d}", channels, size))
    chain.append(_head(sizes.channels[-1], n_classes))
    return NASBench201(
        preset=preset,
        sizes=sizes,
        input_shape=input_shape,
        n_classes=n_classes,
        chain=tuple(chain),
    )


def _cell(name: str, channels: int, size: tuple[int, int]) -> CellPosition:
    def build(choice: str, affine: bool) -> nn.Module:
        if choice == EVERY:
            return EveryOperator(channels, affine=affine)
        operators = tuple(choice.split("-"))
        edges = {
            label: _convolution(operator, channels, affine=affine)
            for label, operator in _convolutions(operators)
        }
        return Cell(operators, edges)

    return CellPosition(
        name=name,
        choices=(EVERY,),
        key=("cell", channels),
        build=build,
        channels=channels,
        size=size,
    )


def _reduction(number: int, in_channels: int, channels: int) -> Position:
    return Position(
        name=f"reduction{number}",
        choices=(FIXED,),
        key=("reduction", in_channels, channels),
        build=lambda _, affine: ResidualBlock(in_channels, channels, affine=affine),
    )


def _head(channels: int, n_classes: int) -> Position:
    return Position(
        name="head",
        choices=(FIXED,),
        key=("head", channels, n_classes),
        build=lambda _, affine: nn.Sequential(
            nn.BatchNorm2d(channels, affine=affine),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, n_classes),
        ),
    )


# -- genomes -------------------------------------------------------------------------------------


def operators_of(arch: Mapping[str, object]) -> Operators:
    """The operator of every edge, in the order of the edges."""
    return tuple(str(arch[label]) for label in LABELS)


def arch_of_string(text: str) -> Arch:
    """The architecture that the benchmark writes as ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|``.

    Raises InvalidArchError where the text is no such genome.

    >>> arch_of_string(string_of_arch(Arch.from_genes(DECISIONS, (0, 1, 2, 3, 4, 0)))).genes(
    ...     DECISIONS
    ... )
    (0, 1, 2, 3, 4, 0)
    """
    known = dict(zip(PUBLISHED_NAMES, OPERATORS, strict=True))
    found = []
    for node in text.split("+"):
        for start, entry in enumerate(node.strip("|").split("|")):
            name, _, source = entry.partition("~")
            if name not in known or source != str(start):
                raise InvalidArchError(
                    f"{entry!r} in {text!r} is no operator and its source; operators: "
                    f"{', '.join(known)}, sources in order from 0"
                )
            found.append(known[name])
    if [len(node.strip("|").split("|")) for node in text.split("+")] != [1, 2, 3]:
        raise InvalidArchError(f"{text!r} does not give three nodes one, two and three operators")
    return Arch(dict(zip(LABELS, found, strict=True)))


def string_of_arch(arch: Arch) -> str:
    """How the benchmark writes an architecture."""
    names = dict(zip(OPERATORS, PUBLISHED_NAMES, strict=True))
    ops = [names[operator] for operator in operators_of(arch)]
    nodes = [ops[first:end] for first, end in pairwise((0, 1, 3, 6))]
    return "+".join(f"|{'|'.join(f'{op}~{i}' for i, op in enumerate(node))}|" for node in nodes)


def all_genes() -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Every genome as choice indices (15,625, 6), the last edge running fastest."""
    return np.array(list(product(range(len(OPERATORS)), repeat=len(LABELS))), dtype=np.int64)
