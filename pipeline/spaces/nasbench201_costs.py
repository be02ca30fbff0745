"""Costs of every NAS-Bench-201 cell, exactly, without recording 15,625 networks.

All tensors of a cell have one shape, C·H·W. So its costs follow from those of its *unit cell*, the
same operators on one channel and one pixel:

======================================  ===========================================
column                                  cost of a cell, u = that of the unit cell
======================================  ===========================================
macs, macs_pointwise, macs_spatial      u · C² · H · W
elements and bytes of activations       u · C · H · W (the peak too)
weights: n convolutions, m weights      C² · m + C · n (folded), C² · m + 2 C · n (with batch norms)
size of the file                        header of the unit cell, longer length fields, weights
======================================  ===========================================

Tests compare the table with recorded graphs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latency_tables.arch import Arch
from latency_tables.cost_table import Column, CostTable, Factor
from latency_tables.graph import (
    INPUT,
    OUTPUT,
    Constant,
    Graph,
    Node,
    Parameter,
    Section,
    Value,
    compose,
)
from latency_tables.onnx_writer import header_bytes
from pipeline.export.record import COLUMNS, fragment_costs, record, recorder_of
from pipeline.spaces.nasbench201 import CellPosition, EveryOperator, all_genes
from pipeline.spaces.nasbench201_cell import CONVOLUTIONS, LABELS, N_GENOMES, OPERATORS, steps_of

if TYPE_CHECKING:
    from pipeline.spaces.nasbench201 import NASBench201

Array = NDArray[np.float64]

NOMINAL = (
    Column(name="nominal_macs", unit="MAC"),
    Column(name="nominal_params", unit="parameter"),
)
"""What the benchmark's own files count: dead edges too."""

_LIKE = {column.name: column.name.removeprefix("nominal_") for column in NOMINAL}
_CELL = "cell01"
"""Every cell's name is as long, and every name in it."""
_PIXEL = (1, 1, 1, 1)
_BYTES = 4
_MACS = ("macs", "macs_pointwise", "macs_spatial")


def cost_table(space: NASBench201) -> CostTable:
    """The table of a space: its recorded fixed parts, and one factor for all of its cells."""
    columns = (*COLUMNS, *NOMINAL)
    names = [column.name for column in columns]
    factors = []
    fixed = {p.name for p in space.chain if not isinstance(p, CellPosition)}
    any_arch = Arch.from_genes(space.decisions, [0] * len(LABELS))
    for name, fragment in recorder_of(space.space_id).fragments(space, any_arch):
        if name in fixed:
            costs = dict(zip(names, fragment_costs(name, fragment), strict=False))
            costs |= {nominal: costs[like] for nominal, like in _LIKE.items()}
            values = np.array([costs[column] for column in names])
            factors.append(Factor(name=name, labels=(), values=values))
    cells = [position for position in space.chain if isinstance(position, CellPosition)]
    factors.append(Factor(name="cells", labels=LABELS, values=_cells(cells, columns)))
    return CostTable(space.decisions, columns, factors)


def _cells(positions: list[CellPosition], columns: tuple[Column, ...]) -> Array:
    """All cells together: (5, 5, 5, 5, 5, 5, n_columns)."""
    genes = all_genes()
    steps = [steps_of(tuple(OPERATORS[g] for g in row)) for row in genes.tolist()]
    unit = np.stack(
        [_unit_costs(tuple((s.kind, s.reads) for s in cell)) for cell in steps]
    )  # (15,625, n_columns)
    total = np.zeros((len(genes), len(columns)))
    for (channels, height, width), n in Counter((p.channels, *p.size) for p in positions).items():
        costs = {
            **_scaled(unit, channels, height * width),
            **_nominal(genes, channels, height * width),
        }
        for i, column in enumerate(columns):
            if column.reduce == "max":
                total[:, i] = np.maximum(total[:, i], costs[column.name])
            else:
                total[:, i] += n * costs[column.name]
    return total.reshape(*[len(OPERATORS)] * len(LABELS), len(columns))


def _scaled(unit: Array, channels: int, pixels: int) -> dict[str, Array]:
    """Costs (N,) of cells with these channels and pixels, from those of unit cells."""
    of = {column.name: unit[:, i] for i, column in enumerate(COLUMNS)}
    n_pointwise, n_spatial = of["macs_pointwise"], of["macs_spatial"] / 9
    n_weights = channels**2 * of["macs"]
    n_biases = channels * (n_pointwise + n_spatial)
    costs = {}
    for name, values in of.items():
        costs[name] = values * (channels**2 if name in _MACS else channels) * pixels
    costs["n_operators"] = of["n_operators"]
    costs["weight_bytes"] = _BYTES * (n_weights + n_biases)
    costs["params"] = n_weights + 2 * n_biases
    longer = n_pointwise * _longer(channels, 1) + n_spatial * _longer(channels, 9)
    costs["size_bytes"] = costs["weight_bytes"] + of["size_bytes"] + longer
    return costs


def _nominal(genes: NDArray[np.int64], channels: int, pixels: int) -> dict[str, Array]:
    """Costs (N,) with every convolution that the genes name."""
    n_weights = np.zeros(len(genes))
    n_norms = np.zeros(len(genes))
    for operator, kernel in CONVOLUTIONS.items():
        n = (genes == OPERATORS.index(operator)).sum(axis=1)
        n_weights += n * (channels * kernel) ** 2
        n_norms += n * channels
    return {"nominal_macs": n_weights * pixels, "nominal_params": n_weights + 2 * n_norms}


def _longer(channels: int, area: int) -> int:
    """By how many bytes the lengths of one convolution's weight and bias outgrow a unit cell's."""
    sizes = ((_BYTES * channels**2 * area, _BYTES * area), (_BYTES * channels, _BYTES))
    return sum(_varint_length(size) - _varint_length(unit) for size, unit in sizes)


def _varint_length(number: int) -> int:
    return max(1, -(-number.bit_length() // 7))


# -- unit cells ----------------------------------------------------------------------------------

UnitStep = tuple[str, tuple[int, ...]]
"""A step without its edge: kind, values that it reads."""

_EXAMPLES = {
    "relu": ("none", "none", "none", "conv1x1", "none", "none"),
    "conv1x1": ("none", "none", "none", "conv1x1", "none", "none"),
    "conv3x3": ("none", "none", "none", "conv3x3", "none", "none"),
    "pool": ("none", "none", "none", "avgpool3x3", "none", "none"),
    "add": ("skip", "none", "none", "skip", "skip", "none"),
    "zero": ("none", "none", "none", "none", "none", "none"),
}
"""Cells whose last step, or only ReLU, shows how a kind of step is recorded."""


@lru_cache(maxsize=N_GENOMES)
def _unit_costs(steps: tuple[UnitStep, ...]) -> Array:
    """Costs (n_columns,) of a cell with one channel and one pixel; no weights in size_bytes.

    Rules are those of :mod:`latency_tables.costs`, written for steps: a graph per cell would take
    ten times as long.
    """
    n = Counter(kind for kind, _ in steps)
    written, peak = _memory(steps)
    costs = dict.fromkeys((column.name for column in COLUMNS), 0)
    costs["macs_pointwise"] = n["conv1x1"]
    costs["macs_spatial"] = 9 * n["conv3x3"]
    costs["macs"] = costs["macs_pointwise"] + costs["macs_spatial"]
    costs["n_operators"] = len(steps)
    costs["activation_elements"] = written
    costs["activation_bytes"] = _BYTES * written
    costs["activation_peak_bytes"] = _BYTES * peak
    costs["elements_pointwise"] = n["conv1x1"]
    costs["elements_pooled"] = n["pool"]
    costs["size_bytes"] = sum(
        _header(kind, tuple(_width(r, steps) for r in reads), _width(i, steps))
        for i, (kind, reads) in enumerate(steps, 1)
    )
    return np.array(list(costs.values()), dtype=np.float64)


def _memory(steps: tuple[UnitStep, ...]) -> tuple[int, int]:
    """Tensors that are written, and the most that live at once.

    A ReLU works in place where nothing else reads its operand.
    """
    uses = Counter(read for _, reads in steps for read in reads)
    places = [0]  # value → the value whose memory it lies in
    last: dict[int, int] = {}
    for i, (kind, reads) in enumerate(steps, 1):
        in_place = kind == "relu" and uses[reads[0]] == 1
        places.append(places[reads[0]] if in_place else i)
        last.update((places[value], i) for value in (*reads, i))
    last[places[-1]] = len(steps) + 1
    live, peak = {0}, 1
    for i in range(1, len(steps) + 1):
        live.add(places[i])
        peak = max(peak, len(live))
        live = {place for place in live if last[place] > i}
    return len(set(places) - {0}), peak


def _width(value: int, steps: tuple[UnitStep, ...]) -> str:
    """A name as long as that of a value: serial number, input or output of the cell."""
    if value in (0, len(steps)):
        return OUTPUT if value else INPUT
    return f"{_CELL}/{'1' * len(str(value))}"


@lru_cache(maxsize=1024)
def _header(kind: str, reads: tuple[str, ...], output: str) -> int:
    """Bytes of one step in a file, without weights; names are as long as in a network."""
    node, weights, constants = _recorded(kind)
    section = Section(
        input=Value(name=INPUT, shape=_PIXEL),
        output=Value(name=output, shape=_PIXEL),
        nodes=(replace(node, inputs=(*reads, *node.inputs[len(reads) :]), outputs=(output,)),),
        parameters=weights,
        constants=constants,
        values=(),
    )
    return header_bytes(Graph(sections=(section,)))


@lru_cache(maxsize=len(_EXAMPLES))
def _recorded(kind: str) -> tuple[Node, tuple[Parameter, ...], tuple[Constant, ...]]:
    """The operator of a kind of step, its weights and its constants, as recorded of a real cell."""
    cell = EveryOperator(1, affine=True).cell(_EXAMPLES[kind])
    (section,) = compose([(_CELL, record(cell, _PIXEL))]).sections
    node = section.nodes[0 if kind == "relu" else -1]
    return (
        node,
        tuple(p for p in section.parameters if p.name in node.inputs),
        tuple(c for c in section.constants if c.name in node.inputs),
    )
