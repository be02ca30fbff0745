"""Once-for-all MobileNetV3, width 1.2: resolution, depth per stage, kernel and expansion per block.

Cai et al., 2020. A position is one decision, "off" where the depth of its stage leaves it out: what
the file says about the kernel of a block that is not there is no information. Our MACs agree with
both columns of the file to six digits.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from latency_tables.cost_table import CostTable, Factor
from tests.bench.oracle_data.layers import Part, columns
from tests.bench.oracle_data.series import (
    Columns,
    Genes,
    Series,
    Space,
    decision,
    indices,
    series_of,
)

RESOLUTIONS = tuple(range(128, 225, 4))
KERNELS, EXPANSIONS, DEPTHS = (3, 5, 7), (3, 4, 6), (2, 3, 4)
BLOCKS = tuple(f"k{k}_e{e}" for k, e in product(KERNELS, EXPANSIONS))
OFF = "off"
_CHANNELS, _STRIDES = (24, 40, 80, 112, 160), (2, 2, 2, 1, 2)
_SQUEEZED = (False, True, False, True, True)
_PER_STAGE, _CLASSES = 4, 1000
POSITIONS = tuple(f"block{i:02d}" for i in range(len(_CHANNELS) * _PER_STAGE))


def reads(file: Columns) -> bool:
    """Whether a file is of this space."""
    return {"r", "k00", "e19", "d4"} <= set(file)


def read(file: Columns) -> list[Series]:
    """One series per column of milliseconds."""
    genes, built = _genes(file), space()
    return [
        series_of(f"ofa/{name.removesuffix('_ms')}", built, genes, values.astype(np.float64))
        for name, values in file.items()
        if name.endswith("_ms")
    ]


def choices(position: int) -> tuple[str, ...]:
    """Choices of a position: the first two of a stage are always there."""
    return BLOCKS if position % _PER_STAGE < min(DEPTHS) else (OFF, *BLOCKS)


def space(width: float = 1.2) -> Space:
    """The space with the costs of each block at each resolution."""
    stem, first = rounded(16 * width), rounded(16 * width)
    sizes = [-(-r // 2) for r in RESOLUTIONS]
    rows = []
    for size in sizes:
        part = Part().conv(3, stem, kernel=3, size=size, act=True)
        part.inverted(stem, first, middle=stem, kernel=3, size=size, expands=False)
        rows.append(part.row())
    factors = [Factor(name="stem", labels=("r",), values=np.stack(rows))]
    stages: dict[str, list[str]] = {}
    c_in = first
    for position, label in enumerate(POSITIONS):
        stage, layer = divmod(position, _PER_STAGE)
        c_out, stride = rounded(_CHANNELS[stage] * width), _STRIDES[stage] if layer == 0 else 1
        values = np.stack(
            [_block(choices(position), c_in, c_out, s, stride, _SQUEEZED[stage]) for s in sizes]
        )
        factors.append(Factor(name=label, labels=("r", label), values=values))
        stages.setdefault(f"stage{stage}", []).append(label)
        c_in, sizes = c_out, [-(-s // stride) for s in sizes]
    wide, head = rounded(960 * width), rounded(1280 * width)
    rows = [
        Part()
        .conv(c_in, wide, kernel=1, size=size, act=True)
        .written(wide)
        .conv(wide, head, kernel=1, size=1, act=True)
        .linear(head, _CLASSES)
        .row()
        for size in sizes
    ]
    factors.append(Factor(name="head", labels=("r",), values=np.stack(rows)))
    decisions = [
        decision("r", RESOLUTIONS),
        *(decision(label, choices(i)) for i, label in enumerate(POSITIONS)),
    ]
    return Space(name="ofa", table=CostTable(decisions, columns(), factors), stages=stages)


def rounded(channels: float) -> int:
    """Channels as a multiple of 8, never more than 10 % below what was asked."""
    found = max(8, int(channels + 4) // 8 * 8)
    return found + 8 if found < 0.9 * channels else found


def _block(
    names: tuple[str, ...], c_in: int, c_out: int, size: int, stride: int, squeezed: bool
) -> NDArray[np.float64]:
    rows = []
    for name in names:
        part = Part()
        if name != OFF:
            kernel, expand = int(name[1]), int(name[4])
            middle = rounded(c_in * expand)
            part.inverted(
                *(c_in, c_out),
                middle=middle,
                kernel=kernel,
                size=size,
                stride=stride,
                squeezed=rounded(middle // 4) if squeezed else 0,
            )
        rows.append(part.row())
    return np.stack(rows)


def _genes(file: Columns) -> Genes:
    found = [indices(file["r"], RESOLUTIONS)]
    for position in range(len(POSITIONS)):
        stage, layer = divmod(position, _PER_STAGE)
        kernel = indices(file[f"k{position:02d}"], KERNELS)
        expand = indices(file[f"e{position:02d}"], EXPANSIONS)
        block = kernel * len(EXPANSIONS) + expand
        if layer >= min(DEPTHS):
            block = np.where(file[f"d{stage}"].astype(np.int64) > layer, block + 1, 0)
        found.append(block)
    return np.stack(found, axis=1)
