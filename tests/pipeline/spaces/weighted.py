"""Supernets whose statistics fit a subnet, for tests that compare the two."""

from __future__ import annotations

import torch
from torch import nn

from latency_tables.arch import Arch
from pipeline.spaces.base import Space


def weighted(space: Space, arch: Arch, seed: int = 0) -> tuple[nn.Module, nn.Sequential]:
    """A supernet with statistics that are not neutral, and the subnet cut out of it."""
    torch.manual_seed(seed)
    supernet = space.supernet().train()
    for module in supernet.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    with torch.no_grad():
        for _ in range(4):
            supernet(torch.randn(8, *space.input_shape), arch)
    network = space.network(arch)
    space.inherit(network, arch, supernet)
    return supernet.eval(), network.eval()
