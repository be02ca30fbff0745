"""Passes of a cell's supernet in which gradients reach the operators of its edges.

Operators share no weights, so there is no mask: what an edge brings is multiplied by the entry of
its operator. Dense, an edge brings the sum over its operators, as far as the input reaches it: what
leaves a node that no path reaches is left out, whatever the operators, as in every cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.spaces.matrix_mapping import Gates, run_aside
from pipeline.spaces.nasbench201_cell import (
    EDGES,
    LABELS,
    N_NODES,
    OPERATORS,
    live_operators,
)


def cell_output(
    convolutions: Mapping[str, Mapping[str, nn.Module]], x: Tensor, gates: Gates, *, dense: bool
) -> Tensor:
    """Output of a cell, (N, C, H, W) → (N, C, H, W).

    Args:
        convolutions: label of the edge → operator → convolution and batch norm.
    """
    live = live_operators(tuple(str(gates.arch[label]) for label in LABELS))
    nodes: list[Tensor | None] = [x, *(None,) * (N_NODES - 1)]
    reached = {0}
    for (start, end), label in zip(EDGES, LABELS, strict=True):
        if str(gates.arch[label]) != "none" and start in reached:
            reached.add(end)
    for (start, end), label, operator in zip(EDGES, LABELS, live, strict=True):
        source = nodes[start]
        if source is None or start not in reached:
            continue
        for candidate in OPERATORS if dense else (operator,):
            if candidate == "none":
                continue
            y = _operator(convolutions[label], candidate, source, runs=candidate == operator)
            y = gates.entry(label, candidate) * y
            before = nodes[end]
            nodes[end] = y if before is None else before + y
    output = nodes[-1]
    return x * 0.0 if output is None else output


def _operator(convolutions: Mapping[str, nn.Module], name: str, x: Tensor, *, runs: bool) -> Tensor:
    """``runs``: whether the subnet does it as well; otherwise no running statistics move."""
    if name == "skip":
        return x
    if name == "avgpool3x3":
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    convolution = convolutions[name]
    if not runs:
        return run_aside(convolution, (F.relu(x),), weights={}, statistics_of={})
    return cast("Tensor", convolution(F.relu(x)))
