"""Golden samples: a few real inputs with torch's logits, stored beside the model.

With them anybody can check a copy of the model on any machine, without the data set and torch.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latency_tables.errors import ExportError
from latency_tables.files import replacing, sha256_file
from pipeline.onnx_runtime import FloatArray

MAX_GOLDEN_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """Normalised images (N, C, H, W) and torch's logits (N, n_classes), both float32."""

    images: FloatArray
    logits: FloatArray


def write_golden(path: Path, golden: Golden) -> str:
    """Write golden.npz, whole or not at all; return its SHA-256. Equal data give equal bytes.

    Raises:
        ExportError: there are no images, or not one row of logits for each.
    """
    _require_shapes(golden, path.name)
    with replacing(path) as partial, partial.open("wb") as stream:
        np.savez(stream, images=golden.images, logits=golden.logits)
    return sha256_file(path)


def read_golden(path: Path) -> Golden:
    """Read golden.npz; pickled objects are refused. Raises ExportError."""
    try:
        if path.stat().st_size > MAX_GOLDEN_BYTES:
            raise ExportError(f"{path.name} is larger than {MAX_GOLDEN_BYTES:,} bytes")
        # opened here: numpy leaves its own handle open when the archive is damaged
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
            golden = Golden(images=data["images"], logits=data["logits"])
    except FileNotFoundError:
        raise ExportError(f"{path.name} is missing", hint="hilnas export") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise ExportError(f"{path.name} is damaged: {error}", hint="hilnas export") from None
    _require_shapes(golden, path.name)
    return golden


def _require_shapes(golden: Golden, name: str) -> None:
    images, logits = golden.images, golden.logits
    fits = images.ndim == 4 and logits.ndim == 2 and len(images) == len(logits) > 0
    if not fits or images.dtype != np.float32 or logits.dtype != np.float32:
        raise ExportError(
            f"{name} holds images {images.dtype} {images.shape} and logits {logits.dtype} "
            f"{logits.shape}; float32 (N, C, H, W) and (N, n_classes) with N > 0 are needed"
        )
