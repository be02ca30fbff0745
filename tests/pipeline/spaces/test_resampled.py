"""Learned resampling: begins as resizing, counts as a part of the network, is exported with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latency_tables.errors import UsageError
from pipeline.export.parity import export_with_parity
from pipeline.export.reference_count import count_with_fvcore
from pipeline.spaces import load_space
from pipeline.spaces.base import Space
from pipeline.spaces.resampled import Resample, resampled

CHAINS = ("nasbench_macro", "shufflenetv2", "mobilenetv2", "proxyless")


def space_of(name: str, size: tuple[int, int] = (20, 14)) -> Space:
    inner = load_space(name, preset="tiny", input_shape=(3, 16, 16), n_classes=5)
    return resampled(inner, size)


@pytest.mark.parametrize("size", [(28, 20), (9, 16), (40, 11)])
def test_the_layer_begins_as_bilinear_resizing_with_antialiasing(size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size)
    expected = F.interpolate(images, (16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(Resample(size, (16, 16))(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CHAINS)
def test_its_macs_are_those_that_fvcore_counts_on_the_network(name: str) -> None:
    space = space_of(name)
    arch = space.sample(np.random.default_rng(0))
    counted = count_with_fvcore(space.network(arch), space.input_shape_of(arch))
    assert counted.macs == space.cost_table().cost(arch, "macs")


def test_it_is_exported_with_the_network_and_gives_the_same_answers(tmp_path) -> None:
    space = space_of("nasbench_macro")
    network = space.network(space.sample(np.random.default_rng(0))).eval()
    images = np.random.default_rng(0).normal(size=(4, 3, 20, 14)).astype(np.float32)
    model, parity = export_with_parity(
        network, images, tmp_path / "n.onnx", opset=18, ir_version=8, tolerance=1e-3
    )
    assert model.size_bytes > 0
    assert parity.max_abs_diff < 1e-3


def test_a_supernet_learns_it_and_gives_it_to_its_subnets() -> None:
    space = space_of("shufflenetv2")
    supernet, arch = space.supernet(), space.sample(np.random.default_rng(0))
    layer = supernet.get_submodule("blocks.resample.fixed")
    supernet(torch.rand(4, 3, 20, 14), arch).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
    with torch.no_grad():
        layer.rows += 0.25
    network = space.network(arch)
    space.inherit(network, arch, supernet)
    assert torch.equal(network.get_submodule("resample").rows, layer.rows)


@pytest.mark.parametrize("name", ["bignas", "mobilenetv2_widths"])
def test_spaces_that_are_no_plain_chains_refuse_it(name: str) -> None:
    with pytest.raises(UsageError, match="learned resampling is for chains"):
        space_of(name)
