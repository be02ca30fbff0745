"""NAS-Bench-201: 6 edges with 5 operators, 15 cells in three stages of 16, 32 and 64 channels.

Dong and Yang, 2020. A convolution's activation and an average pool have no weights, so edges that
leave one node share them: they are costs of the node (a factor over its outgoing edges), the
convolutions are costs of the edge. All input shapes share one table: they scale its columns, which
the model standardises. Cells that do not depend on their input are left out: nobody deploys a
constant.

An edge on no path of operators from input to output is dead; some graph compilers drop it,
eager PyTorch runs it. The costs of what is left are columns of their own (``live_*``), in one
factor over all edges, since an edge lives or dies by the others.
"""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from latency_tables.cost_table import Column, CostTable, Factor
from tests.bench.oracle_data.layers import NAMES, Part, columns
from tests.bench.oracle_data.series import Columns, Genes, Series, Space, decision, series_of

OPERATORS = ("none", "skip", "conv1x1", "conv3x3", "avgpool3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""In the order of the bits of ``live_mask``."""
LABELS = tuple(f"op_e{i}{j}" for i, j in EDGES)
_STAGES = ((16, 32), (32, 16), (64, 8))
_CELLS, _RUNS = 5, 40
_NONE = 0

LIVE_NAMES = tuple(f"live_{name}" for name in NAMES)
_POOL = 4
_CONVOLUTIONS = {2: 1, 3: 3}
"""Operator → kernel."""


def reads(file: Columns) -> bool:
    """Whether a file holds cells with their latencies."""
    return set(LABELS) <= set(file) and "arch_idx" in file


def reads_measured(file: Columns) -> bool:
    """Whether a file holds measurements by the index of the cell."""
    return {"arch_idx", "device", "framework", "task", "lat_ms_median"} <= set(file)


def read(file: Columns) -> list[Series]:
    """One series per column of milliseconds."""
    genes, groups, connected, note = _cells(file)
    built = space()
    return [
        series_of(
            f"nb201/{name.removesuffix('_ms')}",
            built,
            genes[connected],
            values.astype(np.float64)[connected],
            groups=groups[connected],
            notes=note,
        )
        for name, values in file.items()
        if name.endswith("_ms")
    ]


def read_measured(file: Columns, cells: Columns) -> list[Series]:
    """One series per device, framework and task; ``cells`` is the file that :func:`read` takes."""
    genes, groups, connected, _ = _cells(cells)
    row = {int(index): i for i, index in enumerate(cells["arch_idx"])}
    at = np.array([row[int(index)] for index in file["arch_idx"]])
    names = np.array(
        ["-".join(x) for x in zip(*(file[c] for c in ("device", "framework", "task")), strict=True)]
    )
    latency = file["lat_ms_median"].astype(np.float64)
    variance = file.get("lat_ms_var", np.full(len(at), np.nan)).astype(np.float64)
    half = 1.96 * np.sqrt(np.nan_to_num(variance) / _RUNS)
    built = space()
    found = []
    for name in sorted(set(names.tolist())):
        mine = names == name
        chosen = mine & connected[at]
        found.append(
            series_of(
                f"nb201/{name}",
                built,
                genes[at[chosen]],
                latency[chosen],
                groups=groups[at[chosen]],
                half_ms=half[chosen],
                notes=_left_out(mine, connected[at]),
            )
        )
    return found


def space() -> Space:
    """The space with the costs of its edges and nodes; see the top of the module."""
    decisions = [decision(label, OPERATORS) for label in LABELS]
    edge = np.stack([_edge(operator).row() for operator in range(len(OPERATORS))])
    factors = [Factor(name="outside", labels=(), values=_fixed().row())]
    factors += [Factor(name=label, labels=(label,), values=edge) for label in LABELS]
    for node in range(3):
        labels = tuple(
            label for label, (start, _) in zip(LABELS, EDGES, strict=True) if start == node
        )
        factors.append(Factor(name=f"node{node}", labels=labels, values=_node(len(labels))))
    table = CostTable(decisions, columns(), factors)
    return Space(name="nb201", table=_with_live(table))


def _with_live(table: CostTable) -> CostTable:
    """The same factors, and one that holds the costs of live edges in columns of its own."""
    width = len(NAMES)
    sizes = [len(OPERATORS)] * len(EDGES)
    cells = np.array(list(product(*map(range, sizes))), dtype=np.int64)
    costs = table.batch(np.where(live_edges(cells), cells, _NONE))
    joint = np.concatenate([np.zeros((len(cells), width)), costs], axis=1)
    factors = [
        Factor(
            name=f.name,
            labels=f.labels,
            values=np.concatenate([f.values, np.zeros_like(f.values)], axis=-1),
        )
        for f in table.factors
    ]
    factors.append(Factor(name="live", labels=LABELS, values=joint.reshape(*sizes, 2 * width)))
    units = [
        Column(name=name, unit=c.unit) for name, c in zip(LIVE_NAMES, table.columns, strict=True)
    ]
    return CostTable(table.decisions, [*table.columns, *units], factors)


def live_edges(cells: Genes) -> NDArray[np.bool_]:
    """Which edges lie on a path from input to output: (N, 6) operators → (N, 6).

    >>> live_edges(np.array([[3, 0, 0, 1, 0, 0]])).astype(int)  # node 1 leads nowhere
    array([[0, 0, 0, 1, 0, 0]])
    """
    real = cells != _NONE
    reached = np.zeros((len(cells), 4), dtype=np.bool_)  # (N, nodes) from the input
    useful = reached.copy()  # to the output
    reached[:, 0] = useful[:, 3] = True
    for edge, (i, j) in enumerate(EDGES):  # in the order of the nodes
        reached[:, j] |= real[:, edge] & reached[:, i]
    for edge, (i, j) in reversed(list(enumerate(EDGES))):
        useful[:, i] |= real[:, edge] & useful[:, j]
    return np.stack(
        [real[:, e] & reached[:, i] & useful[:, j] for e, (i, j) in enumerate(EDGES)], axis=1
    )


def _edge(operator: int) -> Part:
    part = Part()
    for channels, size in _STAGES if operator in _CONVOLUTIONS else ():
        for _ in range(_CELLS):
            part.conv(channels, channels, kernel=_CONVOLUTIONS[operator], size=size)
    return part


def _node(n_edges: int) -> NDArray[np.float64]:
    """What edges that leave one node share: (5, … n_edges times …, 5, n_columns)."""
    rows = []
    for operators in product(range(len(OPERATORS)), repeat=n_edges):
        part = Part()
        for channels, size in _STAGES:
            for _ in range(_CELLS):
                if _CONVOLUTIONS.keys() & set(operators):
                    part.written(channels * size**2)
                if _POOL in operators:
                    part.pool(channels, size=size)
        rows.append(part.row())
    return np.stack(rows).reshape(*[len(OPERATORS)] * n_edges, len(NAMES))


def _fixed() -> Part:
    part = Part().conv(3, 16, kernel=3, size=32)
    for (c_in, _), (c_out, size) in pairwise(_STAGES):
        part.conv(c_in, c_out, kernel=3, size=size, act=True)
        part.conv(c_out, c_out, kernel=3, size=size)
        part.pool(c_in, size=size).conv(c_in, c_out, kernel=1, size=size).written(c_out * size**2)
    return part.written(64).linear(64, 10)


def _cells(file: Columns) -> tuple[Genes, Genes, NDArray[np.bool_], tuple[str, ...]]:
    genes = np.stack([file[label] for label in LABELS], axis=1).astype(np.int64)
    live = live_edges(genes)
    connected = live.any(axis=1)
    classes = file.get("iso_live_class")
    if classes is None:  # at least dead edges make no new network
        classes = np.unique(np.where(live, genes, _NONE), axis=0, return_inverse=True)[1]
    note = _left_out(np.ones_like(connected), connected)
    return genes, classes.reshape(-1).astype(np.int64), connected, note


def _left_out(mine: NDArray[np.bool_], connected: NDArray[np.bool_]) -> tuple[str, ...]:
    n = int((mine & ~connected).sum())
    return (f"{n} cells that ignore their input left out",) if n else ()
