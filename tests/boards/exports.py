"""An exported network small enough for an emulated board, with its golden samples and manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipeline.export.golden import Golden, write_golden
from pipeline.export.manifest import (
    AccuracyBlock,
    AccuracyEntry,
    GoldenFile,
    Manifest,
    ParityEntry,
    current_versions,
    model_file,
    write_manifest,
)
from pipeline.export.parity import export_with_parity, torch_logits
from pipeline.spaces.nasbench_macro import arch_of_genome
from tests.boards.networks import space
from tests.pipeline.export.conftest import trained_like

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Export:
    """A folder that ``hilnas check`` takes, with test images and the host's accuracy on them."""

    folder: Path
    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    host_correct: int


def export_to(folder: Path) -> Export:
    """Export a subnet with fixed weights; two thirds of the images are labelled as it says."""
    made = space()
    arch = arch_of_genome(made, "10010010")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = trained_like(made.network(arch), made.input_shape)
    images = np.random.default_rng(0).normal(size=(24, *made.input_shape)).astype(np.float32)
    model, parity = export_with_parity(
        network, images, folder / "subnet.onnx", opset=18, ir_version=8, tolerance=TOLERANCE
    )
    logits = torch_logits(network, images)
    labels = logits.argmax(axis=1).astype(np.int64)
    labels[::3] = (labels[::3] + 1) % made.n_classes
    correct = int((logits.argmax(axis=1) == labels).sum())
    golden = Golden(images=images[:4], logits=logits[:4])
    manifest = Manifest(
        created_utc="2026-11-22T12:00:00Z",
        model=model_file(model, input_shape=made.input_shape, n_classes=made.n_classes),
        golden=GoldenFile(sha256=write_golden(folder / "golden.npz", golden), n_images=4),
        space=made.describe(),
        space_id=made.space_id,
        arch=dict(arch),
        weights_sha256="1" * 64,
        dataset={"name": "noise", "sha256": "2" * 64},
        preprocessing={"layout": "NCHW", "mean": [0.0] * 3, "std": [1.0] * 3, "scale": 1.0},
        classes=[str(index) for index in range(made.n_classes)],
        costs={"macs": 1.0, "params": 1.0},
        accuracy=AccuracyBlock(
            search_validation=AccuracyEntry(value=0.5, n_images=24),
            test=AccuracyEntry(value=correct / 24, n_images=24),
        ),
        parity=ParityEntry.of(parity, tolerance=TOLERANCE),
        limits=[],
        devices=[],
        seed=0,
        versions=current_versions(),
    )
    write_manifest(folder / "manifest.json", manifest)
    return Export(folder, images, labels, correct)
