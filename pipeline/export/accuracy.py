"""Accuracy of the file that will be deployed, not of the network it came from.

Test data are read by the final report only; nothing in here chooses anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latency_tables.errors import ExportError
from pipeline.onnx_runtime import FloatArray, open_session, run_one_by_one

LabelArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Share of images whose class is right.

    >>> Accuracy(n_images=200, n_correct=190).value
    0.95
    """

    n_images: int
    n_correct: int

    @property
    def value(self) -> float:
        """Top-1 accuracy between 0 and 1."""
        return self.n_correct / self.n_images

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {**asdict(self), "value": self.value}


def onnx_accuracy(
    path: Path, batches: Iterable[tuple[FloatArray, LabelArray]], *, threads: int = 1
) -> Accuracy:
    """Top-1 accuracy of an ONNX file through onnxruntime.

    Args:
        path: the model; its batch may be fixed at one.
        batches: normalised images (N, C, H, W) float32 with labels (N,).
        threads: threads of onnxruntime inside an operator.

    Raises:
        ExportError: the file does not load, or there are no images.
    """
    session = open_session(path, threads=threads)
    n_images = n_correct = 0
    for images, labels in batches:
        if len(images) != len(labels):
            raise ExportError(f"{len(images)} images come with {len(labels)} labels")
        predicted = run_one_by_one(session, images).argmax(axis=1)
        n_images += len(labels)
        n_correct += int((predicted == labels).sum())
    if n_images == 0:
        raise ExportError("accuracy needs at least one image")
    return Accuracy(n_images=n_images, n_correct=n_correct)
