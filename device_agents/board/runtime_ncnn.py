"""Runtime fragment: ncnn on the CPU.

ncnn does not read ONNX; the host converts (``runtimes/converters/pnnx.py``). The model file is the
``.ncnn.param`` text; beside it lie ``model.ncnn.bin`` (weights) and ``model.ncnn.json``, which
keeps what ncnn forgets: ONNX names, full shapes, element types, and which axis is the batch.

By default ncnn stores and computes in 16 bits wherever the processor can. Here every 16-bit option
is off unless ``options`` switch it on, so that its outputs are those of the float32 network.
"""

from __future__ import annotations

import importlib
import json
import os
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

PROVIDER = "CPU"
WEIGHTS, NAMES = "model.ncnn.bin", "model.ncnn.json"
STORAGE = (
    "use_fp16_packed",
    "use_fp16_storage",
    "use_fp16_arithmetic",
    "use_bf16_storage",
    "use_bf16_packed",
)
_SPEED = ("use_winograd_convolution", "use_sgemm_convolution", "use_packing_layout")
_BLOCKTIME_MS = 20
_NUMPY = {"float": "float32", "int32": "int32", "int64": "int32"}


def _module() -> Any:
    return importlib.import_module("ncnn")


def describe() -> Dict[str, Any]:
    """Name and version of this runtime. Raises ImportError where it is missing."""
    return {
        "name": "ncnn",
        "version": str(_module().__version__),
        "provider": PROVIDER,
        "providers": [PROVIDER],
    }


class Session:
    """One loaded network; ``inputs`` are (ONNX name, shape, element type).

    ``options`` may switch on any of :data:`STORAGE`, or all that the processor has with
    ``{"fp16": true}``. ``optimization`` "disabled" turns Winograd, matrix multiplication and
    packed layouts off; every other level is ncnn's default. Raises ValueError for options or files
    that are not understood, RuntimeError where ncnn refuses the network.
    """

    def __init__(
        self,
        path: str,
        *,
        threads: int,
        spinning: bool,
        optimization: str,
        provider: str = "",
        options: Optional[Dict[str, Any]] = None,
    ) -> None:
        if provider not in ("", PROVIDER):
            raise ValueError("ncnn provider {!r}; allowed: {}".format(provider, PROVIDER))
        folder = os.path.dirname(path)
        with open(os.path.join(folder, NAMES)) as stream:
            self._names = _checked(json.load(stream))
        self._module = _module()
        self._net = self._module.Net()
        option = self._net.opt
        option.num_threads = threads
        option.use_vulkan_compute = False
        option.openmp_blocktime = _BLOCKTIME_MS if spinning else 0
        for name in _SPEED if optimization == "disabled" else ():
            setattr(option, name, False)
        for name, wanted in _storage(options or {}).items():
            if hasattr(option, name):  # older releases lack some
                setattr(option, name, wanted)
        if self._net.load_param(path) != 0:
            raise RuntimeError("ncnn refuses the network's structure: not implemented layers?")
        if self._net.load_model(os.path.join(folder, WEIGHTS)) != 0:
            raise RuntimeError("ncnn refuses the network's weights")
        self.inputs: List[Tuple[str, Sequence[Any], str]] = [
            (entry["name"], entry["shape"], entry["type"]) for entry in self._names["inputs"]
        ]
        self.output_names = [entry["name"] for entry in self._names["outputs"]]

    def prepare(self, feeds: Dict[str, Any]) -> Callable[[], List[Any]]:
        """A call without arguments that runs once on ``feeds``: what is timed."""
        inputs = [(e["blob"], self._mat(e, feeds[e["name"]])) for e in self._names["inputs"]]
        outputs = [(e["blob"], e["batch_index"], e["shape"]) for e in self._names["outputs"]]
        net = self._net

        def call() -> List[Any]:
            found = []
            with net.create_extractor() as extractor:
                for blob, mat in inputs:
                    if extractor.input(blob, mat) != 0:
                        raise RuntimeError("ncnn has no input {!r}".format(blob))
                for blob, batch, shape in outputs:
                    status, mat = extractor.extract(blob)
                    if status != 0:
                        raise RuntimeError("ncnn gave status {} for {!r}".format(status, blob))
                    found.append(_array(mat, batch, shape))
            return found

        return call

    def _mat(self, entry: Dict[str, Any], array: Any) -> Any:
        import numpy

        kind = _NUMPY.get(entry["type"])
        if kind is None:
            raise ValueError(
                "ncnn input {!r} of type {!r}; allowed: {}".format(
                    entry["name"], entry["type"], ", ".join(_NUMPY)
                )
            )
        values = numpy.ascontiguousarray(array, dtype=kind)
        batch = entry["batch_index"]
        # clone: ncnn wants its own alignment, and the copy must not be part of the timing
        if batch is None:
            return self._module.Mat(values).clone()
        if values.shape[batch] == 1:
            return self._module.Mat(numpy.ascontiguousarray(values.squeeze(batch))).clone()
        return self._module.Mat(values, batch_index=batch).clone()

    def evidence(self) -> Dict[str, Any]:
        """Threads and storage options as ncnn has them now."""
        option = self._net.opt
        names = ("num_threads", "openmp_blocktime", "use_int8_inference", *STORAGE, *_SPEED)
        return {name: getattr(option, name) for name in names if hasattr(option, name)}


def _storage(options: Dict[str, Any]) -> Dict[str, bool]:
    """Which 16-bit options to set: all of them are named, none keeps ncnn's default."""
    allowed = ("fp16", *STORAGE)
    for name, value in options.items():
        if name not in allowed or not isinstance(value, bool):
            raise ValueError(
                "ncnn option {!r} = {!r}; allowed: {} with true or false".format(
                    name, value, ", ".join(allowed)
                )
            )
    fp16 = options.get("fp16", False)
    return {name: options.get(name, fp16 and "fp16" in name) for name in STORAGE}


def _checked(names: Any) -> Dict[str, Any]:
    try:
        for entry in [*names["inputs"], *names["outputs"]]:
            shape = entry["shape"]
            if not isinstance(entry["name"], str) or not isinstance(entry["blob"], str):
                raise TypeError("a name is not text")
            if shape is not None and not all(isinstance(size, int) for size in shape):
                raise TypeError("a shape is not made of integers")
            if entry["batch_index"] is not None and not isinstance(entry["batch_index"], int):
                raise TypeError("a batch axis is not an integer")
        for entry in names["inputs"]:
            if not isinstance(entry["type"], str) or entry["shape"] is None:
                raise TypeError("an input lacks its shape")
    except (KeyError, TypeError) as error:
        raise ValueError("{} is not readable: {}".format(NAMES, error)) from None
    result: Dict[str, Any] = names
    return result


def _array(mat: Any, batch: Optional[int], shape: Optional[Sequence[int]]) -> Any:
    """The values in the shape that the ONNX file gives; a copy, the extractor frees its own."""
    import numpy

    array = numpy.array(mat if batch is None else mat.numpy(batch_index=batch))
    return array if shape is None else array.reshape(shape)
