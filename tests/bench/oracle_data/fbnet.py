"""FBNet as HW-NAS-Bench and HELP measured it: 22 positions, 9 blocks each, input 32 x 32.

Wu et al., 2019, table 1 (blocks) and 2 (channels); Li et al., 2021, for the strides on CIFAR. Our
MACs and parameters agree with the columns of the file up to what those count for batch norms
(correlation 0.9996 and 0.999998).
"""

from __future__ import annotations

import numpy as np

from latency_tables.cost_table import CostTable, Factor
from tests.bench.oracle_data.layers import Part, columns
from tests.bench.oracle_data.series import Columns, Series, Space, decision, series_of

BLOCKS = ("k3_e1", "k3_e1_g2", "k3_e3", "k3_e6", "k5_e1", "k5_e1_g2", "k5_e3", "k5_e6", "skip")
_CONFIG = ((3, 1, 1), (3, 1, 2), (3, 3, 1), (3, 6, 1), (5, 1, 1), (5, 1, 2), (5, 3, 1), (5, 6, 1))
_STAGES = ((16, 1, 1), (24, 4, 1), (32, 4, 2), (64, 4, 2), (112, 4, 1), (184, 4, 2), (352, 1, 1))
_STEM, _HEAD, _CLASSES, _SIZE = 16, 1504, 100, 32
LABELS = tuple(f"op{i:02d}" for i in range(22))


def reads(file: Columns) -> bool:
    """Whether a file is of this space."""
    return set(LABELS) <= set(file)


def read(file: Columns) -> list[Series]:
    """One series per column of milliseconds."""
    genes = np.stack([file[label] for label in LABELS], axis=1).astype(np.int64)
    built = space()
    return [
        series_of(f"fbnet/{name.removesuffix('_ms')}", built, genes, values.astype(np.float64))
        for name, values in file.items()
        if name.endswith("_ms")
    ]


def space() -> Space:
    """The space with the costs of each block at each position."""
    factors = [
        Factor(
            name="stem",
            labels=(),
            values=Part().conv(3, _STEM, kernel=3, size=_SIZE, act=True).row(),
        )
    ]
    stages: dict[str, list[str]] = {}
    c_in, size, labels = _STEM, _SIZE, iter(LABELS)
    for number, (c_out, depth, first_stride) in enumerate(_STAGES):
        for i in range(depth):
            label, stride = next(labels), first_stride if i == 0 else 1
            rows = [
                _block(c_in, c_out, choice, size, stride).row() for choice in range(len(BLOCKS))
            ]
            factors.append(Factor(name=label, labels=(label,), values=np.stack(rows)))
            stages.setdefault(f"stage{number}", []).append(label)
            c_in, size = c_out, -(-size // stride)
    head = Part().conv(c_in, _HEAD, kernel=1, size=size, act=True).written(_HEAD)
    factors.append(Factor(name="head", labels=(), values=head.linear(_HEAD, _CLASSES).row()))
    decisions = [decision(label, BLOCKS) for label in LABELS]
    return Space(name="fbnet", table=CostTable(decisions, columns(), factors), stages=stages)


def _block(c_in: int, c_out: int, choice: int, size: int, stride: int) -> Part:
    part = Part()
    if choice < len(_CONFIG):
        kernel, expand, groups = _CONFIG[choice]
        return part.inverted(
            *(c_in, c_out),
            middle=c_in * expand,
            kernel=kernel,
            size=size,
            stride=stride,
            groups=groups,
        )
    if stride > 1 or c_in != c_out:  # a skip that changes the shape is a 1x1 convolution
        part.conv(c_in, c_out, kernel=1, size=-(-size // stride), act=True)
    return part
