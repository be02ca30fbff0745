"""An exported ONNX file and what is in it; reading one needs no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx

from latency_tables.errors import ExportError, LimitError
from latency_tables.files import sha256_bytes

INPUT_NAME, OUTPUT_NAME = "image", "logits"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """One ONNX file and what is in it; ``operator_histogram`` maps operator type to count."""

    path: Path
    sha256: str
    size_bytes: int
    opset: int
    ir_version: int
    n_operators: int
    operator_histogram: dict[str, int]


def describe_onnx(path: Path) -> ExportedModel:
    """Read an ONNX file.

    Raises:
        ExportError: it is missing, no ONNX file, or keeps its weights outside the file.
    """
    try:
        data = path.read_bytes()
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError has no typed home to import it from
        raise ExportError(
            f"{path.name} cannot be read as ONNX: {error}", hint="hilnas export"
        ) from None
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
        raise ExportError(f"{path.name} keeps weights outside the file, which is refused")
    return describe_model(model, path, data)


def describe_model(model: onnx.ModelProto, path: Path, data: bytes) -> ExportedModel:
    """Describe ``model``, whose serialised form ``data`` is (or will be) the file at ``path``."""
    histogram = Counter(node.op_type for node in model.graph.node)
    histogram.pop("Constant", None)  # data, not work
    return ExportedModel(
        path=path,
        sha256=sha256_bytes(data),
        size_bytes=len(data),
        opset=next((e.version for e in model.opset_import if e.domain == ""), 0),
        ir_version=model.ir_version,
        n_operators=histogram.total(),
        operator_histogram=dict(sorted(histogram.items())),
    )


def check_size(model: ExportedModel, limit_bytes: int) -> int:
    """Return by how many bytes the real file stays below the limit.

    Raises:
        LimitError: the file is larger; search works with an estimate, this is the file itself.
    """
    if model.size_bytes > limit_bytes:
        raise LimitError(
            f"{model.path.name} has {model.size_bytes:,} bytes, "
            f"{model.size_bytes - limit_bytes:,} more than size_bytes = {limit_bytes:,} allows",
            hint="a lower size_bytes in limits makes the search choose a smaller network",
        )
    return limit_bytes - model.size_bytes
