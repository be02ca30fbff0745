"""ONNX to RKNN with rknn-toolkit2, which lives in an interpreter of its own.

Its pins (old numpy, onnx, protobuf, torch) fit no other environment, and its compiler can abort
the process: ``rknn_worker.py`` runs there, with JSON on its pipes and a time limit.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from device_agents.board.rknn_detail import npu_share, parse_detail
from device_agents.board.runtime_rknn import NAMES
from device_agents.runtimes.converters import process
from device_agents.runtimes.converters.base import (
    Artefact,
    ConvertOptions,
    Port,
    ports,
    write_model,
)
from latency_tables.errors import BootstrapError, MeasurementError, UsageError

WORKER = Path(__file__).with_name("rknn_worker.py")
INSTALL = (
    "python3.11 -m venv rknn-venv && rknn-venv/bin/pip install rknn-toolkit2, then set runtime "
    "option rknn_python to rknn-venv/bin/python"
)
NEWEST_OPSET = 19
RANDOM_SAMPLES = 8


def convert(
    model: bytes,
    files: Mapping[str, bytes | Path],
    *,
    options: ConvertOptions,
    shapes: Mapping[str, tuple[int, ...]],
) -> Artefact:
    """Make a ``.rknn`` file of an ONNX one.

    Raises BootstrapError where the toolkit is missing, UsageError for a wrong ``calib``,
    MeasurementError (CONVERT_FAILED, UNSUPPORTED_MODEL) where it fails on this network.
    """
    python = _interpreter(options.rknn_python)
    inputs, outputs, opset = ports(model, {})
    if any(tuple(shapes.get(p.name, p.shape or ())) != p.shape for p in inputs):
        raise MeasurementError("UNSUPPORTED_MODEL", "RKNN takes the shapes that the file has")
    if opset > NEWEST_OPSET:
        raise MeasurementError(
            "UNSUPPORTED_MODEL",
            f"opset {opset}; rknn-toolkit2 reads up to {NEWEST_OPSET}",
            hint=f"export with opset {NEWEST_OPSET}",
        )
    with tempfile.TemporaryDirectory(prefix="hilnas-rknn-") as name:
        folder = Path(name)
        output = folder / "model.rknn"
        request = {
            "model": str(write_model(folder, model, files)),
            "output": str(output),
            "target": options.target,
            "dataset": _dataset(folder, options.calib, inputs),
        }
        # a script's folder comes first on its path: this module must not be its package rknn
        worker = folder / WORKER.name
        worker.write_bytes(WORKER.read_bytes())
        done = process.run(
            [python, worker],
            folder=folder,
            timeout_s=options.timeout_s,
            message=json.dumps(request),
        )
        answer = _answer(done)
        if not output.is_file():
            raise MeasurementError("CONVERT_FAILED", "rknn-toolkit2 wrote no file")
        toolkit = str(answer.get("toolkit", "unknown"))[:60]
        planned = npu_share(parse_detail(done.log))
        names = {
            "toolkit": toolkit,
            "planned": planned,
            "target": options.target,
            "calibration": options.calib or None,
            "inputs": [_entry(port) for port in inputs],
            "outputs": [_entry(port) for port in outputs],
        }
        return Artefact(
            main=output.read_bytes(),
            files={NAMES: json.dumps(names).encode()},
            notes=_notes(toolkit, options, planned),
        )


def _interpreter(python: Path | None) -> Path:
    if python is None:
        raise BootstrapError(
            "networks for RKNN are made by rknn-toolkit2; runtime option rknn_python is not set",
            hint=INSTALL,
        )
    if not python.is_file():
        raise BootstrapError(f"runtime option rknn_python: {python} is no file", hint=INSTALL)
    return python


def _answer(done: process.Finished) -> dict[str, Any]:
    """The worker's answer. Raises BootstrapError, MeasurementError."""
    if done.problem():
        raise MeasurementError(
            "CONVERT_FAILED",
            f"rknn-toolkit2 {done.problem()}",
            blames="host" if done.late else "candidate",
        )
    try:
        answer = json.loads(done.output)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise MeasurementError(
            "CONVERT_FAILED", "rknn-toolkit2's worker gave no answer", blames="host"
        )
    if answer.get("ok") is True:
        return answer
    phase, message = str(answer.get("phase")), str(answer.get("message"))[:600]
    if phase == "import":
        raise BootstrapError(f"rknn-toolkit2 cannot be imported: {message}", hint=INSTALL)
    errors = [line.strip() for line in done.log.splitlines() if line.startswith("E ")]
    detail = " | ".join([message, *errors[-3:]])[:800]
    raise MeasurementError("CONVERT_FAILED", f"rknn-toolkit2 failed in {phase}: {detail}")


def _dataset(folder: Path, calib: str, inputs: Sequence[Port]) -> str | None:
    """The list of calibration samples, one a line; None for float16. Raises UsageError."""
    if not calib:
        return None
    if calib == "random":
        lines = _random_samples(folder, inputs)
    else:
        found = sorted(Path(calib).glob("*.npy"))
        if not found or len(inputs) != 1:
            raise UsageError(
                f"runtime option calib = {calib!r}: 'random', or a folder with one .npy file per "
                "sample for a network with one input"
            )
        lines = [str(path.resolve()) for path in found]
    path = folder / "dataset.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def _random_samples(folder: Path, inputs: Sequence[Port]) -> list[str]:
    rng = np.random.Generator(np.random.PCG64(0))
    lines = []
    for sample in range(RANDOM_SAMPLES):
        words = []
        for index, port in enumerate(inputs):
            path = folder / f"sample{sample}-{index}.npy"
            np.save(path, rng.standard_normal(port.shape).astype(np.float32))
            words.append(str(path))
        lines.append(" ".join(words))
    return lines


def _entry(port: Port) -> dict[str, Any]:
    shape = None if port.shape is None else list(port.shape)
    return {"name": port.name, "shape": shape, "type": port.kind}


def _notes(toolkit: str, options: ConvertOptions, planned: Mapping[str, Any]) -> tuple[str, ...]:
    made = f"converted by rknn-toolkit2 {toolkit} for {options.target}"
    kind = "float16"
    if options.calib == "random":
        kind = "8 bits, random calibration; accuracy: not evaluated"
    elif options.calib:
        kind = f"8 bits, calibrated on {options.calib}"
    if planned["by_count"] is None:
        return (made, kind)
    elsewhere = ", ".join(planned["elsewhere"])[:200]
    plan = f"{planned['by_count']:.0%} of {planned['n_operators']} operators planned for the NPU"
    return (made, kind, f"{plan}; elsewhere: {elsewhere}" if elsewhere else plan)
