"""The MnasNet space of Accel-NASBench: 7 blocks, each with expansion, kernel, layers and SE.

Tan et al., 2019, for the channels and strides, input 224 x 224; squeeze and excitation has a
quarter of the block's input channels. Parameters agree with the file's to 0.3 %.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from latency_tables.cost_table import CostTable, Factor
from tests.bench.oracle_data.layers import Part, columns
from tests.bench.oracle_data.series import Columns, Series, Space, decision, indices, series_of

EXPANSIONS, KERNELS, LAYERS, SQUEEZES = (1, 4, 6), (3, 5), (1, 2, 3, 4), (0, 1)
_CHOICES = {"e": EXPANSIONS, "k": KERNELS, "l": LAYERS, "se": SQUEEZES}
_BLOCKS = ((16, 1), (24, 2), (40, 2), (80, 2), (112, 1), (192, 2), (320, 1))
_STEM, _HEAD, _CLASSES, _SIZE = 32, 1280, 1000, 112
LABELS = tuple(f"block{b}_{part}" for b in range(len(_BLOCKS)) for part in _CHOICES)


def reads(file: Columns) -> bool:
    """Whether a file is of this space."""
    return set(LABELS) <= set(file)


def read(file: Columns) -> list[Series]:
    """One series per accelerator: latency in ms, or ms per image from the throughput."""
    genes = np.stack(
        [indices(file[label], _CHOICES[label.split("_")[1]]) for label in LABELS], axis=1
    )
    built = space()
    found = []
    for name, column in file.items():
        values = column.astype(np.float64)
        if name.startswith("latency_") and name.endswith("__mean"):
            found.append(series_of(f"mnasnet/{name.removesuffix('__mean')}", built, genes, values))
        if name.startswith("throughput_") and name.endswith("__mean"):
            per_image = np.where(values > 0, 1000.0 / np.where(values > 0, values, 1.0), np.nan)
            named = f"mnasnet/{name.removesuffix('__mean')}"
            found.append(series_of(named, built, genes, per_image))
    return found


def space() -> Space:
    """The space with the costs of each block for each of its 48 configurations."""
    stem = Part().conv(3, _STEM, kernel=3, size=_SIZE, act=True)
    factors = [Factor(name="stem", labels=(), values=stem.row())]
    c_in, size = _STEM, _SIZE
    for number, (c_out, stride) in enumerate(_BLOCKS):
        rows = [
            _block(c_in, c_out, size, stride, *config).row()
            for config in product(*_CHOICES.values())
        ]
        shape = (*(len(choices) for choices in _CHOICES.values()), -1)
        labels = tuple(f"block{number}_{part}" for part in _CHOICES)
        values = np.stack(rows).reshape(shape)
        factors.append(Factor(name=f"block{number}", labels=labels, values=values))
        c_in, size = c_out, -(-size // stride)
    head = Part().conv(c_in, _HEAD, kernel=1, size=size, act=True).written(_HEAD)
    factors.append(Factor(name="head", labels=(), values=head.linear(_HEAD, _CLASSES).row()))
    decisions = [decision(label, _CHOICES[label.split("_")[1]]) for label in LABELS]
    stages = {f"block{b}": [f"block{b}"] for b in range(len(_BLOCKS))}
    return Space(name="mnasnet", table=CostTable(decisions, columns(), factors), stages=stages)


def _block(
    c_in: int, c_out: int, size: int, stride: int, expand: int, kernel: int, layers: int, se: int
) -> Part:
    part = Part()
    for layer in range(layers):
        part.inverted(
            *(c_in, c_out),
            middle=c_in * expand,
            kernel=kernel,
            size=size,
            stride=stride if layer == 0 else 1,
            squeezed=max(1, c_in // 4) if se else 0,
            expands=expand > 1,
        )
        size = -(-size // stride) if layer == 0 else size
        c_in = c_out
    return part
