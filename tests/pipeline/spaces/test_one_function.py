"""Every registered space: path, subnet and graph of random architectures compute one function."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from latency_tables.arch import Arch
from latency_tables.onnx_writer import to_onnx
from pipeline.export.onnx_export import export_subnet
from pipeline.export.record import graph_of, graph_weights
from pipeline.spaces import SPACES, load_space
from pipeline.spaces.base import Space, Supernet
from pipeline.supernet.resolution import resized

torch.set_num_threads(1)

SMALL_PRESETS = {name: "tiny" for name in SPACES} | {"autoformer": "micro"}


def small(name: str) -> Space:
    return load_space(name, preset=SMALL_PRESETS[name], input_shape=(3, 16, 16), n_classes=10)


def lively_supernet(space: Space, seed: int = 0) -> Supernet:
    """Weights and statistics that are not neutral, so that a swapped channel shows."""
    torch.manual_seed(seed)
    supernet = space.supernet().train()
    for module in supernet.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for _ in range(30):  # statistics that fit keep the activations in range
            supernet(torch.randn(8, *space.input_shape), space.sample(rng))
    return supernet.eval()


def assert_one_function(space: Space, supernet: Supernet, arch: Arch) -> None:
    x = torch.randn(2, *space.input_shape)
    mine = resized(x, space.input_shape_of(arch)[1:])
    network = space.network(arch).eval()
    space.inherit(network, arch, supernet)
    with torch.no_grad():
        path, subnet = supernet(x, arch), network(mine)
    scale = float(path.abs().max())
    assert scale > 0
    torch.testing.assert_close(subnet, path, atol=1e-5 * max(1.0, scale), rtol=1e-5)
    graph = graph_of(space, arch)
    model = to_onnx(graph, graph_weights(graph, network)).model
    logits = np.concatenate([run(model, image[None]) for image in mine])
    np.testing.assert_allclose(logits, path.numpy(), atol=1e-4 * max(1.0, scale))


def run(model: str | bytes, x: torch.Tensor) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


@pytest.mark.parametrize("name", SPACES)
def test_path_subnet_and_graph_of_fifty_architectures_are_one_function(name: str) -> None:
    space = small(name)
    supernet, rng = lively_supernet(space), np.random.default_rng(0)
    for _ in range(50):
        assert_one_function(space, supernet, space.sample(rng))


@pytest.mark.long
@pytest.mark.parametrize("name", SPACES)
def test_exported_files_give_the_logits_of_the_path(name: str, tmp_path) -> None:
    space = small(name)
    supernet, rng = lively_supernet(space), np.random.default_rng(1)
    for _ in range(3):
        arch = space.sample(rng)
        network = space.network(arch).eval()
        space.inherit(network, arch, supernet)
        export_subnet(network, space.input_shape_of(arch), tmp_path / "subnet.onnx")
        x = torch.randn(1, *space.input_shape)
        with torch.no_grad():
            path = supernet(x, arch).numpy()
        logits = run(str(tmp_path / "subnet.onnx"), resized(x, space.input_shape_of(arch)[1:]))
        np.testing.assert_allclose(logits, path, atol=1e-4 * max(1.0, np.abs(path).max()))
