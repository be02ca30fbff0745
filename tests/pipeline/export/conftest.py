"""One exported network, shared by the tests of this folder: torch's exporter takes seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.export.compare import ParityReport
from pipeline.export.golden import Golden, write_golden
from pipeline.export.manifest import (
    AccuracyBlock,
    AccuracyEntry,
    DeviceEntry,
    GoldenFile,
    Latency,
    LimitEntry,
    Manifest,
    ParityEntry,
    current_versions,
    model_file,
    write_manifest,
)
from pipeline.export.onnx_file import ExportedModel
from pipeline.export.parity import export_with_parity, torch_logits
from pipeline.spaces import load_space

SHAPE = (1, 8, 8)
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Bundle:
    """A network, the folder it was exported to, and its manifest."""

    network: nn.Sequential
    images: np.ndarray
    labels: np.ndarray
    folder: Path
    model: ExportedModel
    parity: ParityReport
    manifest: Manifest


def trained_like(network: nn.Sequential, shape: tuple[int, int, int]) -> nn.Sequential:
    """Batch norms with running statistics and weights that are not the identity."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network.train()
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.uniform_(-0.5, 0.5)
            for _ in range(4):
                network(torch.randn(16, *shape))
    return network.eval()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("bundle")
    space = load_space("shufflenetv2", preset="tiny", input_shape=SHAPE, n_classes=10)
    arch = space.sample(np.random.default_rng(3))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = trained_like(space.network(arch), SHAPE)
    images = np.random.default_rng(0).normal(size=(24, *SHAPE)).astype(np.float32)
    model, parity = export_with_parity(
        network, images, folder / "subnet.onnx", opset=18, ir_version=8, tolerance=TOLERANCE
    )
    logits = torch_logits(network, images)
    labels = logits.argmax(axis=1).astype(np.int64)
    golden = Golden(images=images[:4], logits=logits[:4])
    manifest = Manifest(
        created_utc="2026-11-22T12:00:00Z",
        model=model_file(model, input_shape=SHAPE, n_classes=10),
        golden=GoldenFile(sha256=write_golden(folder / "golden.npz", golden), n_images=4),
        space=space.describe(),
        space_id=space.space_id,
        arch=dict(arch),
        weights_sha256="1" * 64,
        dataset={"name": "digits", "sha256": "2" * 64},
        preprocessing={"layout": "NCHW", "mean": [0.3], "std": [0.4], "scale": 1 / 255},
        classes=[str(digit) for digit in range(10)],
        costs={"macs": 1.5e6, "params": 150_000.0},
        accuracy=AccuracyBlock(
            search_validation=AccuracyEntry(value=0.95, n_images=200),
            test=AccuracyEntry(value=1.0, n_images=24),
        ),
        parity=ParityEntry.of(parity, tolerance=TOLERANCE),
        limits=[
            LimitEntry(
                name="latency", device="local", limit=1.0, value=0.5, unit="ms", kept=True
            )
        ],
        devices=[
            DeviceEntry(
                name="local",
                fingerprint="3" * 64,
                identity={"soc": "x86"},
                runtime={"name": "onnxruntime", "version": "1.22.0"},
                threads=1,
                cores=[0],
                profile="quick",
                measured_utc="2026-11-22T12:00:00Z",
                latency=Latency(
                    latency_ms=0.5, low_ms=0.4, high_ms=0.6, level=0.9, key="k",
                    source="measured", n=90, in_support=True,
                ),
            )
        ],
        seed=0,
        versions=current_versions(),
    )  # fmt: skip
    write_manifest(folder / "manifest.json", manifest)
    return Bundle(network, images, labels, folder, model, parity, manifest)


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the export folder that a test may damage."""
    for file in bundle.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path
