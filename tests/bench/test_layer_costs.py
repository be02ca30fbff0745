"""Adapters of public data count a block's costs as the product counts those of its graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from latency_tables.costs import UNITS, graph_costs
from pipeline.export.record import record
from tests.bench.oracle_data.layers import NAMES, Part

C_IN, MIDDLE, SQUEEZED, SIZE = 8, 24, 4, 10


def conv(
    c_in: int, c_out: int, kernel: int, *, stride: int = 1, groups: int = 1, act: bool = True
) -> list[nn.Module]:
    layers = [
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(c_out),
    ]
    return [*layers, nn.ReLU(inplace=True)] if act else layers


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, middle: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            *(nn.Conv2d(channels, middle, 1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(middle, channels, 1), nn.Hardsigmoid(inplace=True)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class Inverted(nn.Module):
    def __init__(self, c_out: int, *, kernel: int, stride: int, squeezed: int, expands: bool):
        super().__init__()
        middle = MIDDLE if expands else C_IN
        self.body = nn.Sequential(
            *(conv(C_IN, middle, 1) if expands else ()),
            *conv(middle, middle, kernel, stride=stride, groups=middle),
            *([SqueezeExcite(middle, squeezed)] if squeezed else ()),
            *conv(middle, c_out, 1, act=False),
        )
        self.adds = stride == 1 and c_out == C_IN

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y if self.adds else y


def recorded(module: nn.Module, *shape: int) -> dict[str, float]:
    with torch.device("meta"):
        costs = graph_costs(record(module, shape))
    return {name: float(costs[name]) for name in NAMES}


@pytest.mark.parametrize("squeezed", [0, SQUEEZED])
@pytest.mark.parametrize("expands", [True, False])
@pytest.mark.parametrize(("c_out", "stride", "kernel"), [(C_IN, 1, 3), (16, 2, 5), (16, 1, 3)])
def test_an_inverted_residual_costs_the_same_as_graph_and_as_layers(
    c_out: int, stride: int, kernel: int, expands: bool, squeezed: int
) -> None:
    block = Inverted(c_out, kernel=kernel, stride=stride, squeezed=squeezed, expands=expands)
    part = Part().inverted(
        *(C_IN, c_out),
        middle=MIDDLE if expands else C_IN,
        kernel=kernel,
        size=SIZE,
        stride=stride,
        squeezed=squeezed,
        expands=expands,
    )
    assert recorded(block, 1, C_IN, SIZE, SIZE) == part.costs
    assert (part.costs["elements_gated"] > 0) == bool(squeezed)


def test_pooling_and_a_grouped_convolution_cost_the_same_as_graph_and_as_layers() -> None:
    module = nn.Sequential(
        nn.AvgPool2d(2), *conv(C_IN, 16, 3), *conv(16, 16, 1, groups=4), nn.MaxPool2d(3, 1, 1)
    )
    part = Part().pool(C_IN, size=5).conv(C_IN, 16, kernel=3, size=5, act=True)
    part.conv(16, 16, kernel=1, size=5, groups=4, act=True).pool(16, size=5)
    assert recorded(module, 1, C_IN, SIZE, SIZE) == part.costs
    assert part.costs["elements_pooled"] == (C_IN + 16) * 25


def test_adapters_know_every_cost_of_the_product_that_adds_up() -> None:
    assert set(UNITS) - set(NAMES) == {"activation_peak_bytes"}
