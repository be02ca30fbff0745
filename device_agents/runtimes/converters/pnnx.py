"""ONNX to ncnn with pnnx: the program of the Python package, called directly.

The package imports torch, its program does not: ``pip install --no-deps pnnx`` is enough, and keeps
pip from fetching another torch. Weights stay float32 (pnnx writes 16 bits by default).
"""

from __future__ import annotations

import importlib.util
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from device_agents.board.runtime_ncnn import NAMES, WEIGHTS
from device_agents.runtimes.converters import process
from device_agents.runtimes.converters.base import (
    Artefact,
    ConvertOptions,
    Port,
    ports,
    with_weights_inside,
    write_model,
)
from latency_tables.errors import BootstrapError, MeasurementError

INSTALL = "pip install --no-deps pnnx"
_SUFFIX = {"float": "f32", "int32": "i32", "int64": "i64"}


def convert(
    model: bytes,
    files: Mapping[str, bytes | Path],
    *,
    options: ConvertOptions,
    shapes: Mapping[str, tuple[int, ...]],
) -> Artefact:
    """Make an ncnn network of an ONNX one.

    Raises BootstrapError where pnnx is missing, MeasurementError (CONVERT_FAILED,
    UNSUPPORTED_MODEL) where it fails on this network.
    """
    program = find_pnnx(options.pnnx)
    inputs, outputs, _ = ports(model, shapes)
    with tempfile.TemporaryDirectory(prefix="hilnas-pnnx-") as name:
        folder = Path(name)
        # pnnx does not read external data: it takes whatever is in memory as weights
        path = write_model(folder, with_weights_inside(model, files), {})
        done = process.run(
            [program, path.name, f"inputshape={_input_shapes(inputs)}", "fp16=0"],
            folder=folder,
            timeout_s=options.timeout_s,
        )
        param, weights = folder / "model.ncnn.param", folder / "model.ncnn.bin"
        if done.problem() or not param.is_file() or not weights.is_file():
            log = done.output + done.log
            raise MeasurementError(
                "CONVERT_FAILED",
                f"pnnx {done.problem() or 'wrote no network: ' + _last(log)}",
                blames="host" if done.late else "candidate",
            )
        structure = param.read_text()
        _check(structure, inputs, outputs)
        script = (folder / "model_ncnn.py").read_text()
        names = {
            "inputs": [_entry(p, f"in{i}", script) for i, p in enumerate(inputs)],
            "outputs": [_entry(p, f"out{i}", script) for i, p in enumerate(outputs)],
        }
        return Artefact(
            main=structure.encode(),
            files={WEIGHTS: weights.read_bytes(), NAMES: json.dumps(names).encode()},
            notes=("converted by pnnx, float32 weights",),
        )


def find_pnnx(asked: Path | None) -> Path:
    """The program: the one asked for, else the installed package's. Raises BootstrapError."""
    if asked is not None:
        if not asked.is_file():
            raise BootstrapError(f"runtime option pnnx: {asked} is no file", hint=INSTALL)
        return asked
    spec = importlib.util.find_spec("pnnx")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        program = Path(folder) / "pnnx"
        if program.is_file():
            return program
    raise BootstrapError(
        "networks for ncnn are made by pnnx, which is not installed on this host", hint=INSTALL
    )


def _input_shapes(inputs: Sequence[Port]) -> str:
    words = []
    for port in inputs:
        if port.kind not in _SUFFIX:
            raise MeasurementError(
                "UNSUPPORTED_MODEL",
                f"input {port.name!r} of type {port.kind}; ncnn takes {', '.join(_SUFFIX)}",
            )
        sizes = ",".join(str(size) for size in port.shape or ())
        words.append(f"[{sizes}]{_SUFFIX[port.kind]}")
    return ",".join(words)


def _check(structure: str, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
    """Every layer must be one of ncnn's, every input and output must still be there."""
    layers = [line.split() for line in structure.splitlines()[2:] if line.strip()]
    foreign = sorted({words[0] for words in layers if re.search(r"[.:]", words[0])})
    if foreign:
        raise MeasurementError(
            "UNSUPPORTED_MODEL", f"ncnn has no layer for {', '.join(foreign)[:300]}"
        )
    blobs = {blob for words in layers for blob in words[4:] if "=" not in blob}
    wanted = [f"in{i}" for i in range(len(inputs))] + [f"out{i}" for i in range(len(outputs))]
    missing = [blob for blob in wanted if blob not in blobs]
    if missing:
        raise MeasurementError(
            "CONVERT_FAILED", f"pnnx dropped {', '.join(missing)}: the network is another one"
        )


def _entry(port: Port, blob: str, script: str) -> dict[str, Any]:
    """Which axis is the batch stands only in the example that pnnx writes."""
    found = re.search(rf"\b{blob}\.numpy\((?:\), |)(?:batch_index=(\d+))?\)", script)
    if found is None:
        raise MeasurementError(
            "CONVERT_FAILED", f"pnnx does not say how {blob} is laid out", blames="host"
        )
    return {
        "name": port.name,
        "blob": blob,
        "shape": None if port.shape is None else list(port.shape),
        "type": port.kind,
        "batch_index": int(found.group(1)) if found.group(1) else None,
    }


def _last(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-400:]
