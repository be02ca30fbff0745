"""Check an export folder as a stranger would: hashes, plain onnxruntime, golden samples, accuracy.

Nothing here needs torch, the supernet or the run that made the folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latency_tables.errors import ExportError, ParityError
from latency_tables.files import sha256_file
from pipeline.export.accuracy import Accuracy, LabelArray, onnx_accuracy
from pipeline.export.compare import ParityReport, compare_logits
from pipeline.export.golden import Golden, read_golden
from pipeline.export.manifest import (
    GOLDEN_NAME,
    MANIFEST_NAME,
    MODEL_NAME,
    Manifest,
    TensorSpec,
    load_manifest,
)
from pipeline.export.onnx_file import describe_onnx
from pipeline.onnx_runtime import FloatArray, import_onnxruntime, open_session, run_one_by_one

AGAIN = "hilnas export"

Batches = Iterable[tuple[FloatArray, LabelArray]]
"""Normalised images (N, C, H, W) with labels (N,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What was checked; an unsuccessful check raises, so a report is always good news.

    ``accuracy`` is None unless test images were given; ``promised`` is the manifest's figure.
    """

    onnx_sha256: str
    size_bytes: int
    opset: int
    ir_version: int
    onnxruntime_version: str
    golden: ParityReport
    accuracy: Accuracy | None
    promised: float | None

    def lines(self) -> tuple[str, ...]:
        """The report as plain sentences."""
        said = [
            f"hashes of {MODEL_NAME} and {GOLDEN_NAME} match {MANIFEST_NAME}",
            f"loads with onnxruntime {self.onnxruntime_version} "
            f"(opset {self.opset}, IR {self.ir_version}, {self.size_bytes:,} bytes)",
            f"{self.golden.n_images} golden samples: logits differ from torch's by at most "
            f"{self.golden.max_abs_diff:.2g} ({self.golden.allowed:.2g} is allowed)",
        ]
        if self.accuracy is not None:
            promised = "" if self.promised is None else f", the manifest says {self.promised:.2%}"
            said.append(
                f"accuracy {self.accuracy.value:.2%} on {self.accuracy.n_images} images{promised}"
            )
        return tuple(said)


def check_export(
    folder: Path,
    batches: Batches | None = None,
    *,
    threads: int = 1,
) -> CheckReport:
    """Check ``subnet.onnx``, ``golden.npz`` and ``manifest.json`` in ``folder``.

    Args:
        folder: where the three files lie.
        batches: test images, normalised (N, C, H, W), with labels (N,); None leaves accuracy out.
        threads: threads of onnxruntime inside an operator.

    Raises:
        ExportError: a file is missing, damaged, or another one than the manifest describes.
        ParityError: the model no longer computes what torch computed, or its accuracy is not the
            manifest's.
    """
    manifest = load_manifest(folder / MANIFEST_NAME)
    model_path, golden_path = folder / MODEL_NAME, folder / GOLDEN_NAME
    require_hash(model_path, manifest.model.sha256)
    require_hash(golden_path, manifest.golden.sha256)
    model = describe_onnx(model_path)
    session = open_session(model_path, threads=threads)
    _require_tensor("input", session.get_inputs(), manifest.model.input)
    _require_tensor("output", session.get_outputs(), manifest.model.output)
    golden = read_golden(golden_path)
    parity = _golden_parity(session, golden, manifest)
    accuracy = None if batches is None else onnx_accuracy(model_path, batches, threads=threads)
    promised = manifest.accuracy.test
    if accuracy is not None and promised is not None:
        require_accuracy(accuracy, promised.value, promised.n_images)
    return CheckReport(
        onnx_sha256=model.sha256,
        size_bytes=model.size_bytes,
        opset=model.opset,
        ir_version=model.ir_version,
        onnxruntime_version=str(import_onnxruntime().__version__),
        golden=parity,
        accuracy=accuracy,
        promised=None if promised is None else promised.value,
    )


def require_hash(path: Path, expected: str) -> None:
    """Raise ExportError unless the file is there and has this SHA-256."""
    try:
        found = sha256_file(path)
    except FileNotFoundError:
        raise ExportError(f"{path.name} is missing in {path.parent}", hint=AGAIN) from None
    except OSError as error:
        raise ExportError(f"{path.name} cannot be read: {error.strerror}", hint=AGAIN) from None
    if found != expected:
        raise ExportError(
            f"{path.name} is not the file that {MANIFEST_NAME} describes: SHA-256 {found[:16]}… "
            f"instead of {expected[:16]}…; it is damaged or was replaced",
            hint=AGAIN,
        )


def _require_tensor(role: str, found: list[Any], spec: TensorSpec) -> None:
    shown = [(t.name, list(t.shape), t.type) for t in found]
    if shown != [(spec.name, spec.shape, "tensor(float)")]:
        raise ExportError(
            f"the model's {role} is {shown}; {MANIFEST_NAME} says {spec.name} {spec.shape} float32",
            hint=AGAIN,
        )


def require_golden_shape(golden: Golden, manifest: Manifest) -> None:
    """Raise ExportError unless the golden images fit the model."""
    if list(golden.images.shape[1:]) != manifest.model.input.shape[1:]:
        raise ExportError(
            f"{GOLDEN_NAME} holds images {list(golden.images.shape[1:])}, the model takes "
            f"{manifest.model.input.shape[1:]}",
            hint=AGAIN,
        )


def _golden_parity(session: Any, golden: Golden, manifest: Manifest) -> ParityReport:
    require_golden_shape(golden, manifest)
    actual = run_one_by_one(session, golden.images)
    report = compare_logits(golden.logits, actual, tolerance=manifest.parity.tolerance)
    report.require(MODEL_NAME)
    return report


def require_accuracy(accuracy: Accuracy, promised: float, n_images: int) -> None:
    """Refuse another accuracy on as many images as the manifest's.

    Another version of onnxruntime rounds differently, which may flip an image or two on the border.
    """
    if accuracy.n_images != n_images:
        return
    allowed = max(2 / n_images, 0.002)
    if abs(accuracy.value - promised) > allowed + 1e-12:
        raise ParityError(
            f"accuracy is {accuracy.value:.2%} on {n_images} test images, {MANIFEST_NAME} says "
            f"{promised:.2%}",
            hint="other images or another preprocessing than the manifest's?",
        )
