"""Costs of the layers that public search spaces are made of, counted as hilnas counts its own.

Names and rules are those of :mod:`latency_tables.costs`: batch norms are folded, activations work
in place, bytes are of float32. A :class:`Part` collects the layers of one part of a network.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from latency_tables.cost_table import Column
from latency_tables.costs import UNITS

_BYTES = 4
NAMES = tuple(name for name in UNITS if name != "activation_peak_bytes")
"""Every cost of a part that adds up over parts."""


def columns() -> list[Column]:
    """Columns of a cost table that holds :meth:`Part.row`."""
    return [Column(name=name, unit=UNITS[name]) for name in NAMES]


class Part:
    """Layers of one part of a network; methods add a layer and return the part.

    >>> Part().conv(3, 8, kernel=3, size=4).costs["macs"]
    3456.0
    """

    def __init__(self) -> None:
        self.costs = dict.fromkeys(NAMES, 0.0)

    def row(self) -> NDArray[np.float64]:
        """Costs (n_columns,) in the order of :data:`NAMES`."""
        return np.array(list(self.costs.values()))

    def conv(
        self, c_in: int, c_out: int, *, kernel: int, size: float, groups: int = 1, act: bool = False
    ) -> Part:
        """A convolution with output of ``size`` squared pixels, and its activation."""
        weights = c_out * (c_in // groups) * kernel**2
        kind = "macs_pointwise" if kernel == 1 else "macs_spatial"
        if groups == c_in and groups > 1:
            kind = "macs_depthwise"
        self.costs[kind] += weights * size**2
        self.costs["macs"] += weights * size**2
        self.costs["weight_bytes"] += _BYTES * (weights + c_out)
        if kind in ("macs_depthwise", "macs_pointwise"):
            self.costs[kind.replace("macs", "elements")] += c_out * size**2
        return self.written(c_out * size**2, n_operators=2 if act else 1)

    def linear(self, c_in: int, c_out: int, *, rows: int = 1) -> Part:
        """A linear layer over ``rows`` vectors."""
        self.costs["macs_matmul"] += rows * c_in * c_out
        self.costs["macs"] += rows * c_in * c_out
        self.costs["weight_bytes"] += _BYTES * (c_in * c_out + c_out)
        return self.written(rows * c_out)

    def written(self, elements: float, *, n_operators: int = 1) -> Part:
        """Operators that write ``elements`` numbers in all: pooling, additions, products."""
        self.costs["activation_elements"] += elements
        self.costs["activation_bytes"] += _BYTES * elements
        self.costs["n_operators"] += n_operators
        return self

    def pool(self, channels: int, *, size: float) -> Part:
        """A pooling window with output of ``size`` squared pixels."""
        self.costs["elements_pooled"] += channels * size**2
        return self.written(channels * size**2)

    def squeeze(self, channels: int, middle: int, *, size: float) -> Part:
        """Squeeze and excitation: pool, two 1x1 convolutions, gate, product."""
        self.costs["elements_gated"] += channels * size**2
        self.written(channels)
        self.conv(channels, middle, kernel=1, size=1, act=True)
        self.conv(middle, channels, kernel=1, size=1, act=True)
        return self.written(channels * size**2)

    def inverted(
        self,
        c_in: int,
        c_out: int,
        *,
        middle: int,
        kernel: int,
        size: int,
        stride: int = 1,
        groups: int = 1,
        squeezed: int = 0,
        expands: bool = True,
    ) -> Part:
        """An inverted residual block whose input has ``size`` squared pixels.

        ``groups`` are those of both 1x1 convolutions, ``squeezed`` the width inside of squeeze and
        excitation (0: none); without ``expands`` there is no first 1x1 convolution.
        """
        out = -(-size // stride)
        if expands:
            self.conv(c_in, middle, kernel=1, size=size, groups=groups, act=True)
        self.conv(middle, middle, kernel=kernel, size=out, groups=middle, act=True)
        if squeezed:
            self.squeeze(middle, squeezed, size=out)
        self.conv(middle, c_out, kernel=1, size=out, groups=groups)
        if stride == 1 and c_in == c_out:
            self.written(c_out * out**2)
        return self
