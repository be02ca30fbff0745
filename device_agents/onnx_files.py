"""What an ONNX file needs beside itself; data outside its own folder is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from latency_tables.errors import MeasurementError, UsageError


def external_locations(model: bytes) -> tuple[str, ...]:
    """Names of the external data files that a model refers to, each once.

    Raises MeasurementError (LOAD_FAILED) where the bytes are no ONNX model, or where a location is
    not a plain file name: it could read any file of the machine that loads it.
    """
    from onnx import ModelProto, TensorProto

    proto = ModelProto()
    try:
        proto.ParseFromString(model)
    except Exception:  # protobuf's DecodeError, whose module has no types
        raise MeasurementError("LOAD_FAILED", "the bytes are not an ONNX model") from None
    found: set[str] = set()
    for tensor in _tensors(proto.graph, proto.functions):
        if tensor.data_location == TensorProto.EXTERNAL:
            found.update(e.value for e in tensor.external_data if e.key == "location")
    for location in sorted(found):
        path = PurePosixPath(location)
        if path.is_absolute() or len(path.parts) != 1 or path.name in ("..", ".", ""):
            raise MeasurementError(
                "LOAD_FAILED",
                f"external data at {location!r}: only files beside the model are read",
            )
    return tuple(sorted(found))


def read_model(path: Path) -> tuple[bytes, dict[str, Path]]:
    """A model's bytes and its external data files by location.

    Raises UsageError where the file or its data cannot be read, MeasurementError as above.
    """
    try:
        model = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    files = {}
    for location in external_locations(model):
        file = path.parent / location
        if file.is_symlink() and file.resolve().parent != path.parent.resolve():
            raise MeasurementError("LOAD_FAILED", f"external data {location!r} links elsewhere")
        if not file.is_file():
            raise UsageError(f"{path} needs its external data {location!r}, which is not there")
        files[location] = file
    return model, files


def _tensors(graph: Any, functions: Any = ()) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)
    for function in functions:
        for node in function.node:
            yield from _node_tensors(node)


def _node_tensors(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        yield attribute.t
        yield from attribute.tensors
        for graph in (attribute.g, *attribute.graphs):
            yield from _tensors(graph)
