"""The one door to onnxruntime on the host: telemetry off, log quiet, threads explicit.

onnxruntime reads its telemetry switch when it is imported, so every module of this package takes it
from here and none imports it by name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latency_tables.errors import ExportError

LOG_ERRORS_ONLY = 3
"""onnxruntime's severity scale: 2 is warning, 3 is error."""

FloatArray = npt.NDArray[np.float32]


def import_onnxruntime() -> Any:
    """Import onnxruntime with telemetry off and only errors logged; return the module."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    onnxruntime.set_default_logger_severity(LOG_ERRORS_ONLY)
    return onnxruntime


def open_session(model: Path | bytes, *, threads: int = 1) -> Any:
    """Open a model on the CPU with ``threads`` threads inside an operator and one across.

    Raises:
        ExportError: onnxruntime cannot load the model; the message holds its reason.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_ERRORS_ONLY
    source = model if isinstance(model, bytes) else str(model)
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a dozen types of its own, none public
        name = model.name if isinstance(model, Path) else "the model"
        reason = str(error) if isinstance(model, bytes) else str(error).replace(str(model), name)
        raise ExportError(
            f"onnxruntime {ort.__version__} cannot load {name}: {reason[:500]}",
            hint="hilnas export",
        ) from error


def run_one_by_one(session: Any, images: FloatArray) -> FloatArray:
    """Logits (N, n_classes) of images (N, C, H, W) for a model whose batch is fixed at one."""
    name = session.get_inputs()[0].name
    rows: Sequence[FloatArray] = [
        session.run(None, {name: images[i : i + 1]})[0] for i in range(len(images))
    ]
    n_classes = session.get_outputs()[0].shape[-1]
    return np.concatenate(rows) if rows else np.empty((0, n_classes), np.float32)
