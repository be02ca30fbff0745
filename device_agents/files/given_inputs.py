"""Input tensors that the user brings: a folder of ``NAME.npy`` or one ``.npz``, checked."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agents.files.onnx_files import ModelFacts, TensorFacts
from latency_tables.errors import UsageError

Arrays = dict[str, NDArray[Any]]

_TYPES = {"float": "float32", "double": "float64"}
_MAX_BYTES = 1 << 30


def read_inputs(path: Path, facts: ModelFacts) -> Arrays:
    """Arrays for every input of a model; ``path`` is a folder of npy files, or an npz or npy file.

    A single npy file serves a model with one input. Pickled objects are never loaded. Raises
    UsageError where something is missing, left over, of another type or of another shape.
    """
    found = _read(path, facts)
    wanted = {one.name: one for one in facts.inputs}
    unknown, missing = sorted(set(found) - set(wanted)), sorted(set(wanted) - set(found))
    if unknown or missing:
        problem = f"has no input {missing[0]!r}" if missing else f"holds {unknown[0]!r}"
        raise UsageError(f"{path} {problem}; {facts.name} has the inputs {', '.join(wanted)}")
    for name, array in found.items():
        _check(path, wanted[name], array)
    return {name: np.ascontiguousarray(found[name]) for name in wanted}


def _read(path: Path, facts: ModelFacts) -> Arrays:
    if path.is_dir():
        files = sorted(path.glob("*.npy"))
        if not files:
            raise UsageError(f"{path} holds no .npy file; expected one for each input, NAME.npy")
        return {file.stem: _load(file) for file in files}
    loaded = _load(path)
    if isinstance(loaded, dict):
        return loaded
    if len(facts.inputs) != 1:
        raise UsageError(f"{path} is one array, {facts.name} has {len(facts.inputs)} inputs")
    return {facts.inputs[0].name: loaded}


def _load(path: Path) -> Any:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"{path} has over {_MAX_BYTES} bytes")
        with path.open("rb") as stream:  # numpy leaves a broken archive open
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            return {name: loaded[name] for name in loaded.files}
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        raise UsageError(f"{path} is no .npy or .npz file of plain numbers: {error}") from None


def _check(path: Path, wanted: TensorFacts, array: NDArray[Any]) -> None:
    name = _TYPES.get(wanted.type, wanted.type)
    if array.dtype.name != name:
        raise UsageError(
            f"{path}: input {wanted.name!r} is {array.dtype.name}, the model wants {name}",
            hint=f"numpy.save(..., array.astype('{name}'))",
        )
    fits = len(array.shape) == len(wanted.shape) and all(
        not isinstance(want, int) or want == have
        for want, have in zip(wanted.shape, array.shape, strict=True)
    )
    if not fits or 0 in array.shape:
        shown = "x".join(str(size) or "?" for size in wanted.shape)
        has = "x".join(map(str, array.shape))
        raise UsageError(f"{path}: input {wanted.name!r} is {has}, the model wants {shown}")


def total_bytes(arrays: Mapping[str, NDArray[Any]]) -> int:
    """Bytes of all arrays together."""
    return sum(array.nbytes for array in arrays.values())
