"""What is in an ONNX file and what it needs beside itself.

Everything a file says is distrusted: data outside its own folder is refused, and so is what is no
model or too large for one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from latency_tables.errors import MeasurementError, UsageError
from latency_tables.files import sha256_bytes

MAX_MODEL_BYTES = (1 << 31) - 1
"""Protocol buffers end here; larger weights belong into external data."""

_BOARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}\Z")

UNKNOWN_RANK = ("...",)
"""The shape of a tensor of which not even the number of sizes is given."""

ELEMENT_TYPES = {
    **{1: "float", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64"},
    **{8: "string", 9: "bool", 10: "float16", 11: "double", 12: "uint32", 13: "uint64"},
    16: "bfloat16",
}
"""Names of ``TensorProto.DataType`` as onnxruntime writes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFacts:
    """An input or output; a size of a shape is an integer, or a name ("" for none) if it is open.

    >>> TensorFacts(name="x", shape=("N", 3), type="float").is_open
    True
    """

    name: str
    shape: tuple[int | str, ...]
    type: str

    @property
    def is_open(self) -> bool:
        """Whether a size is not fixed."""
        return any(not isinstance(size, int) for size in self.shape)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {"name": self.name, "shape": list(self.shape), "type": self.type}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a model says about itself; ``opsets`` by domain, "" is ONNX's own."""

    name: str
    sha256: str
    size_bytes: int
    external_bytes: int
    ir_version: int
    opsets: Mapping[str, int]
    producer: str
    n_nodes: int
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            "external_bytes": self.external_bytes,
            "ir_version": self.ir_version,
            "opsets": dict(self.opsets),
            "producer": self.producer,
            "n_nodes": self.n_nodes,
            "inputs": [one.to_dict() for one in self.inputs],
            "outputs": [one.to_dict() for one in self.outputs],
        }


def external_locations(model: bytes) -> tuple[str, ...]:
    """Names of the external data files that a model refers to, each once.

    Raises MeasurementError (LOAD_FAILED) where the bytes are no ONNX model, or where a location is
    not a plain file name: it could read any file of the machine that loads it.
    """
    return _locations(_parse(model))


def read_model(path: Path) -> tuple[bytes, dict[str, Path]]:
    """A model's bytes and its external data files by location.

    Raises UsageError where the file or its data cannot be read, MeasurementError as above.
    """
    try:
        size = path.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise MeasurementError(
                "LOAD_FAILED",
                f"{path} has {size} bytes; an ONNX file holds at most {MAX_MODEL_BYTES}",
                hint="save it with external data beside it: onnx.save(..., "
                "save_as_external_data=True)",
            )
        model = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if not model:
        raise MeasurementError("LOAD_FAILED", f"{path} is empty")
    proto = _parse(model, str(path))
    if not proto.ir_version or not proto.graph.node:
        raise MeasurementError("LOAD_FAILED", f"{path} is not an ONNX model: it has no operators")
    return model, {name: _beside(path, name) for name in _locations(proto)}


def describe(name: str, model: bytes, files: Mapping[str, Path]) -> ModelFacts:
    """The facts of a model that :func:`read_model` accepted."""
    proto = _parse(model)
    constants = {tensor.name for tensor in proto.graph.initializer}
    return ModelFacts(
        name=name,
        sha256=sha256_bytes(model),
        size_bytes=len(model),
        external_bytes=sum(file.stat().st_size for file in files.values()),
        ir_version=int(proto.ir_version),
        opsets={one.domain: int(one.version) for one in proto.opset_import},
        producer=f"{proto.producer_name} {proto.producer_version}".strip(),
        n_nodes=len(proto.graph.node),
        inputs=tuple(_tensor(v) for v in proto.graph.input if v.name not in constants),
        outputs=tuple(_tensor(v) for v in proto.graph.output),
    )


def fixed_shapes(
    facts: ModelFacts, given: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    """Shapes of all inputs, the open ones from ``given``.

    Raises UsageError for an input that does not exist, a shape that contradicts the model's, or an
    open shape that is not given; it lists the inputs and the option.
    """
    known = {one.name: one for one in facts.inputs}
    for name, shape in given.items():
        if name not in known:
            raise UsageError(
                f"{facts.name} has no input {name!r}; its inputs are {_listed(facts.inputs)}"
            )
        if any(size < 1 for size in shape):
            raise UsageError(f"shape {list(shape)} of input {name!r}: sizes must be at least 1")
        wanted = known[name].shape
        same = len(wanted) == len(shape) and all(
            not isinstance(a, int) or a == b for a, b in zip(wanted, shape, strict=True)
        )
        if not same and wanted != UNKNOWN_RANK:
            raise UsageError(
                f"shape {_shown(shape)} does not fit input {name!r}, which is {_shown(wanted)}"
            )
    missing = [one for one in facts.inputs if one.is_open and one.name not in given]
    if missing:
        example = "x".join(str(s) if isinstance(s, int) else "1" for s in missing[0].shape)
        raise UsageError(
            f"{facts.name} leaves shapes open: {_listed(missing)}",
            hint=f"--shape {missing[0].name}={example}",
        )
    return {
        one.name: tuple(given.get(one.name, [s for s in one.shape if isinstance(s, int)]))
        for one in facts.inputs
    }


def _shown(shape: Sequence[int | str]) -> str:
    return "x".join(str(size) or "?" for size in shape) or "a scalar"


def _listed(tensors: Sequence[TensorFacts]) -> str:
    return ", ".join(f"{one.name} ({one.type} {_shown(one.shape)})" for one in tensors) or "none"


def _parse(model: bytes, what: str = "this") -> Any:
    from onnx import ModelProto

    proto = ModelProto()
    try:
        proto.ParseFromString(model)
    except Exception:  # protobuf's DecodeError, whose module has no types
        raise MeasurementError("LOAD_FAILED", f"{what} is not an ONNX model") from None
    return proto


def _tensor(value: Any) -> TensorFacts:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return TensorFacts(name=value.name, shape=(), type=str(kind))
    tensor = value.type.tensor_type
    sizes: tuple[int | str, ...] = tuple(
        int(size.dim_value) if size.HasField("dim_value") and size.dim_value > 0 else size.dim_param
        for size in tensor.shape.dim
    )
    if not tensor.HasField("shape"):
        sizes = UNKNOWN_RANK
    element = ELEMENT_TYPES.get(tensor.elem_type, f"type {tensor.elem_type}")
    return TensorFacts(name=value.name, shape=sizes, type=element)


def _locations(proto: Any) -> tuple[str, ...]:
    from onnx import TensorProto

    found: set[str] = set()
    for tensor in _tensors(proto):
        if tensor.data_location == TensorProto.EXTERNAL:
            found.update(e.value for e in tensor.external_data if e.key == "location")
    for location in sorted(found):
        path = PurePosixPath(location)
        if path.is_absolute() or len(path.parts) != 1 or path.name in ("..", ".", ""):
            raise MeasurementError(
                "LOAD_FAILED",
                f"external data at {location!r}: only files beside the model are read",
            )
        if not _BOARD_NAME.match(location) or location == "model.onnx":
            raise MeasurementError(
                "LOAD_FAILED",
                f"external data at {location!r}: on a device it may have only letters, digits and "
                "._- in its name, and not be called model.onnx",
                hint="save the model with another location of its external data",
            )
    return tuple(sorted(found))


def _beside(model: Path, location: str) -> Path:
    file = model.parent / location
    if file.is_symlink() and file.resolve().parent != model.parent.resolve():
        raise MeasurementError("LOAD_FAILED", f"external data {location!r} links elsewhere")
    if not file.is_file():
        raise UsageError(f"{model} needs its external data {location!r}, which is not there")
    if not os.access(file, os.R_OK):
        raise UsageError(f"{file} cannot be read: no permission")
    return file


def _tensors(proto: Any) -> Iterator[Any]:
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        for node in function.node:
            yield from _node_tensors(node)
    for training in proto.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)


def _graph_tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        yield attribute.t
        yield from attribute.tensors
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _graph_tensors(graph)
