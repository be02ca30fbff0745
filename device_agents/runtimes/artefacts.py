"""What a runtime is given instead of the ONNX file: the file itself, or a conversion of it.

A conversion happens on the host. Candidates travel without weights; where a converter needs them,
they are made here from the same specification that the device would use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from device_agents.runtimes.converters.base import HOST_OPTIONS, Artefact, ConvertOptions
from latency_tables.weights_spec import WeightsSpec

__all__ = ["CONVERTED", "Artefact", "artefact_request", "board_options", "prepare"]

CONVERTED = ("ncnn", "rknn")
"""Runtimes that do not read ONNX."""


def prepare(
    runtime: str,
    model: bytes,
    files: Mapping[str, bytes | Path] | None = None,
    *,
    weights: WeightsSpec | None = None,
    options: Mapping[str, Any] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Artefact:
    """What ``runtime`` loads for an ONNX ``model`` with its external data ``files``.

    ``options`` are the device's runtime options, ``shapes`` fix open input shapes. Runtimes that
    read ONNX get it unchanged, and ``weights`` stay a specification; others get a converted file.

    Raises BootstrapError where the host lacks the converter, UsageError for wrong options,
    MeasurementError where the network cannot be converted.

    >>> prepare("onnxruntime", b"onnx").main
    b'onnx'
    """
    settings = ConvertOptions.from_mapping(options or {})
    if runtime not in CONVERTED:
        return Artefact(main=model, files=dict(files or {}), weights=weights)
    data = dict(files or {})
    if weights is not None:
        data[weights.location] = weights.synthesise()
    return _converter(runtime)(model, data, options=settings, shapes=dict(shapes or {}))


def artefact_request(artefact: Artefact, blobs: Iterator[str]) -> dict[str, Any]:
    """How the agent is told of an artefact whose parts were sent; takes their names off ``blobs``.

    >>> artefact_request(Artefact(main=b"network"), iter(["3009be", "next"]))
    {'blob': '3009be', 'files': {}, 'weights': None}
    """
    return {
        "blob": next(blobs),
        "files": {name: next(blobs) for name in artefact.files},
        "weights": None if artefact.weights is None else next(blobs),
    }


def board_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The runtime options that the board's fragment gets.

    >>> board_options({"target": "rk3588", "core_mask": "0_1"})
    {'core_mask': '0_1'}
    """
    return {name: value for name, value in options.items() if name not in HOST_OPTIONS}


def _converter(runtime: str) -> Callable[..., Artefact]:
    if runtime == "ncnn":
        from device_agents.runtimes.converters import pnnx

        return pnnx.convert
    from device_agents.runtimes.converters import rknn

    return rknn.convert
