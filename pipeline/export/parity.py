"""Export, compare with torch on real images, and only then call it a model.

What counts as agreement is said in :mod:`pipeline.export.compare`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from latency_tables.errors import ExportError
from latency_tables.files import write_bytes
from pipeline.export.compare import ParityReport, compare_logits
from pipeline.export.onnx_export import export_subnet
from pipeline.export.onnx_file import ExportedModel, describe_onnx
from pipeline.onnx_runtime import FloatArray, open_session, run_one_by_one


def torch_logits(network: nn.Module, images: FloatArray, *, batch_size: int = 64) -> FloatArray:
    """Logits (N, n_classes) of ``network`` in eval mode for normalised images (N, C, H, W)."""
    parameter = next(network.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            rows = [
                network(torch.from_numpy(images[i : i + batch_size]).to(device)).float().cpu()
                for i in range(0, len(images), batch_size)
            ]
    finally:
        network.train(was_training)
    return np.asarray(torch.cat(rows).numpy(), np.float32)


def check_parity(
    network: nn.Module, path: Path, images: FloatArray, *, tolerance: float, threads: int = 1
) -> ParityReport:
    """Compare ``network`` with the file on normalised images (N, C, H, W); judges, never raises.

    Raises:
        ExportError: onnxruntime cannot load the file.
    """
    expected = torch_logits(network, images)
    actual = run_one_by_one(open_session(path, threads=threads), images)
    return compare_logits(expected, actual, tolerance=tolerance)


def export_with_parity(
    network: nn.Module,
    images: FloatArray,
    path: Path,
    *,
    opset: int,
    ir_version: int,
    tolerance: float,
    threads: int = 1,
) -> tuple[ExportedModel, ParityReport]:
    """Export, compare with torch on ``images`` (N, C, H, W), and only then give the file its name.

    A file that disagrees is left as ``<stem>.refused.onnx`` for inspection; an older file at
    ``path`` stays untouched.

    Raises:
        ParityError: torch and the file disagree.
        ExportError: the network cannot be exported.
    """
    if images.ndim != 4:
        raise ExportError(f"images are {images.shape}; (N, C, H, W) is needed")
    candidate = path.with_name(f"{path.stem}.refused{path.suffix}")
    _, channels, height, width = images.shape
    export_subnet(network, (channels, height, width), candidate, opset=opset, ir_version=ir_version)
    report = check_parity(network, candidate, images, tolerance=tolerance, threads=threads)
    report.require(candidate.name)
    write_bytes(path, candidate.read_bytes())
    candidate.unlink()
    return describe_onnx(path), report
