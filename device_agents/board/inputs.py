"""Input tensors for a timed network, and its private folder. Imports numpy: child process only."""

from __future__ import annotations

import json
import os
import re
import shutil
from typing import Any, Dict, Sequence, Tuple

import numpy as np

_FLOATS = {"float16": np.float16, "float": np.float32, "double": np.float64}
_INTEGERS = {
    "uint8": (np.uint8, 256),
    "int8": (np.int8, 128),
    "int16": (np.int16, 128),
    "uint16": (np.uint16, 128),
    # wider integers are usually indices or lengths: 0 and 1 exist in every table
    "int32": (np.int32, 2),
    "int64": (np.int64, 2),
    "uint32": (np.uint32, 2),
    "uint64": (np.uint64, 2),
}
_BLOB = re.compile(r"[0-9a-f]{64}\Z")
_LOCATION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}\Z")


class UnsupportedInput(ValueError):
    """An input whose shape or type cannot be made up."""


def random_inputs(
    inputs: Sequence[Tuple[str, Sequence[Any], str]], seed: int, shapes: Dict[str, Sequence[int]]
) -> Dict[str, Any]:
    """Seeded arrays for ``(name, shape, element type)`` triples; ``shapes`` overrides a shape.

    Floats are uniform in ±[0.01, 1): neither denormal nor zero, which would run at another speed.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    return {
        name: _random(rng, _shape(name, shapes.get(name, shape)), kind)
        for name, shape, kind in inputs
    }


def _shape(name: str, shape: Sequence[Any]) -> Tuple[int, ...]:
    unknown = [size for size in shape if not isinstance(size, int) or size < 1]
    if unknown:
        raise UnsupportedInput(
            "input {!r} has shape {}, of which {} is not fixed; give its shape".format(
                name, list(shape), unknown[0]
            )
        )
    return tuple(int(size) for size in shape)


def _random(rng: Any, shape: Tuple[int, ...], kind: str) -> Any:
    if kind in _FLOATS:
        size = rng.uniform(0.01, 1.0, shape)
        return np.ascontiguousarray(size * rng.choice([-1.0, 1.0], shape), dtype=_FLOATS[kind])
    if kind in _INTEGERS:
        dtype, top = _INTEGERS[kind]
        return rng.integers(0, top, shape).astype(dtype)
    if kind == "bool":
        return rng.integers(0, 2, shape).astype(np.bool_)
    raise UnsupportedInput("inputs of type {!r} are not supported".format(kind))


def blob_path(workdir: str, blob: str) -> str:
    """Where a blob lies. Raises ValueError unless ``blob`` is a SHA-256 in hexadecimal."""
    if not _BLOB.match(blob):
        raise ValueError("{!r} is not the name of a blob".format(blob[:80]))
    return os.path.join(workdir, "blobs", blob)


def lay_out(workdir: str, folder: str, net: Dict[str, Any]) -> str:
    """Make ``folder`` hold the model and its external data; give the model's path.

    Weights that the host did not send are synthesised here from their specification.
    """
    os.makedirs(folder)
    model = os.path.join(folder, "model.onnx")
    shutil.copyfile(blob_path(workdir, net["blob"]), model)
    for location, blob in sorted((net.get("files") or {}).items()):
        shutil.copyfile(blob_path(workdir, blob), _inside(folder, location))
    if net.get("weights"):
        from latency_tables.synthetic import synthesise

        with open(blob_path(workdir, net["weights"]), "rb") as stream:
            spec = json.loads(stream.read().decode())
        with open(_inside(folder, spec["location"]), "wb") as target:
            target.write(synthesise(spec))
    return model


def _inside(folder: str, location: str) -> str:
    if not _LOCATION.match(location) or location == "model.onnx":
        raise ValueError("external data must lie beside the model, not at {!r}".format(location))
    return os.path.join(folder, location)


def load_golden(workdir: str, golden: Dict[str, Any], part: str) -> Dict[str, Any]:
    """Arrays of ``golden["inputs"]`` or ``golden["outputs"]``; pickles are refused."""
    return {
        name: np.load(blob_path(workdir, blob), allow_pickle=False)
        for name, blob in golden[part].items()
    }


def compare(outputs: Dict[str, Any], expected: Dict[str, Any], golden: Dict[str, Any]) -> Any:
    """Largest difference to the expected outputs and whether it is within tolerance."""
    each = compare_each(outputs, expected, golden)
    errors = [one["max_abs_error"] for one in each.values()]
    wrong = [name for name, one in each.items() if not one["right"]]
    return {
        "right": not wrong,
        "max_abs_error": None if None in errors else max(errors, default=0.0),
        "output": wrong[0] if wrong else "",
    }


def compare_each(outputs: Dict[str, Any], expected: Dict[str, Any], golden: Dict[str, Any]) -> Any:
    """How each expected output was met: largest absolute and relative error, cosine.

    ``golden`` holds ``atol`` and ``rtol`` for all outputs; ``atols`` replaces the former by name.
    """
    return {
        name: _compare(
            outputs.get(name),
            want,
            atol=(golden.get("atols") or {}).get(name, golden.get("atol", 1e-3)),
            rtol=golden.get("rtol", 1e-3),
        )
        for name, want in expected.items()
    }


def _compare(got: Any, want: Any, *, atol: float, rtol: float) -> Dict[str, Any]:
    found: Dict[str, Any] = {
        "right": False,
        "max_abs_error": None,
        "max_rel_error": None,
        "cosine": None,
    }
    if got is None:
        return dict(found, problem="the output is missing")
    got = np.asarray(got)
    if got.shape != want.shape or got.dtype.kind in "OSU":
        shapes = (got.dtype, list(got.shape), want.dtype, list(want.shape))
        return dict(found, problem="it is {} {} instead of {} {}".format(*shapes))
    a, b = got.astype(np.float64).ravel(), want.astype(np.float64).ravel()
    right = bool(np.allclose(a, b, atol=atol, rtol=rtol, equal_nan=True))
    finite = np.isfinite(a) & np.isfinite(b)
    if not a.size:
        return dict(found, right=right, max_abs_error=0.0, max_rel_error=0.0, problem="")
    if finite.any():
        error, size = np.abs(a - b)[finite], np.abs(b[finite])
        found["max_rel_error"] = float(np.max(error / np.maximum(size, atol or 1e-12)))
        found["max_abs_error"] = float(np.max(error))
        norms = float(np.linalg.norm(a[finite]) * np.linalg.norm(b[finite]))
        found["cosine"] = float(a[finite] @ b[finite]) / norms if norms else None
    if not right and not finite.all():
        found["max_abs_error"] = None  # infinitely far off
    return dict(found, right=right, problem="")


def all_finite(outputs: Sequence[Any]) -> bool:
    """Whether every floating-point output is free of NaN and infinities."""
    arrays = [np.asarray(value) for value in outputs]
    return all(bool(np.isfinite(a).all()) for a in arrays if a.dtype.kind == "f")
