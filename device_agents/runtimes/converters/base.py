"""What converters take and give, and what they read from an ONNX file."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latency_tables.errors import MeasurementError, UsageError
from latency_tables.files import canonical_json, sha256_bytes, sha256_file, sha256_json
from latency_tables.weights_spec import WeightsSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """What a runtime loads: a main file, files beside it by name, and notes for the record.

    ``weights`` remain to be made on the device; None where ``files`` hold them all.

    >>> Artefact(main=b"network").sha256[:8]
    '3009be76'
    """

    main: bytes | Path
    files: Mapping[str, bytes | Path] = field(default_factory=dict)
    weights: WeightsSpec | None = None
    notes: tuple[str, ...] = ()

    def parts(self) -> list[bytes | Path]:
        """Everything to send, the main file first, the specification of weights last."""
        weights = [] if self.weights is None else [canonical_json(self.weights.to_dict()).encode()]
        return [self.main, *self.files.values(), *weights]

    @property
    def sha256(self) -> str:
        """Hash of the main file; with files beside it, of all their hashes."""
        main = _sha256(self.main)
        if not self.files:
            return main
        return sha256_json([main, {name: _sha256(data) for name, data in self.files.items()}])


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """Settings of the converters; the rest of a device's runtime options goes to the board.

    ``pnnx`` is the program, by default that of the installed package. ``rknn_python`` is the
    interpreter that has rknn-toolkit2; it needs one of its own. ``target`` is the chip. ``calib``
    "" keeps float16, "random" quantises to 8 bits with random samples (latency only), a folder of
    ``.npy`` files with real ones. ``timeout_s`` bounds one conversion.
    """

    pnnx: Path | None = None
    rknn_python: Path | None = None
    target: str = "rk3588"
    calib: str = ""
    timeout_s: float = 300.0

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> ConvertOptions:
        """Pick the converters' settings out of a device's runtime options. Raises UsageError.

        >>> ConvertOptions.from_mapping({"target": "rk3576", "core_mask": "0"}).target
        'rk3576'
        """
        given: dict[str, Any] = {}
        for name in HOST_OPTIONS:
            if name not in options:
                continue
            value = options[name]
            if name == "timeout_s":
                if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                    raise UsageError(f"runtime option timeout_s = {value!r}: seconds above 0")
                given[name] = float(value)
            elif not isinstance(value, str | Path) or not str(value).strip():
                raise UsageError(f"runtime option {name} = {value!r}: text is needed")
            else:
                given[name] = Path(value) if name in ("pnnx", "rknn_python") else str(value)
        return cls(**given)


HOST_OPTIONS = ("pnnx", "rknn_python", "target", "calib", "timeout_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """An input or output of an ONNX graph; ``shape`` is None where a size is not fixed."""

    name: str
    shape: tuple[int, ...] | None
    kind: str


def ports(
    model: bytes, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[Port, ...], tuple[Port, ...], int]:
    """Inputs, outputs and opset of an ONNX model; ``shapes`` override those of inputs.

    Raises MeasurementError where the bytes are no model or an input's shape stays open.
    """
    from onnx import ModelProto, TensorProto

    proto = ModelProto()
    try:
        proto.ParseFromString(model)
    except Exception:  # protobuf's DecodeError, whose module has no types
        raise MeasurementError("LOAD_FAILED", "the bytes are not an ONNX model") from None

    def port(info: Any) -> Port:
        tensor = info.type.tensor_type
        sizes = [d.dim_value if d.HasField("dim_value") else 0 for d in tensor.shape.dim]
        fixed = tensor.HasField("shape") and all(size > 0 for size in sizes)
        kind = TensorProto.DataType.Name(tensor.elem_type).lower()
        shape = tuple(shapes.get(info.name, tuple(sizes))) if info.name in shapes or fixed else None
        return Port(name=info.name, shape=shape, kind=kind)

    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = tuple(port(info) for info in proto.graph.input if info.name not in constants)
    outputs = tuple(port(info) for info in proto.graph.output)
    if shapes:  # the written sizes of outputs may belong to other inputs
        outputs = tuple(Port(name=p.name, shape=None, kind=p.kind) for p in outputs)
    for entry in inputs:
        if entry.shape is None:
            raise MeasurementError(
                "UNSUPPORTED_MODEL",
                f"input {entry.name!r} has no fixed shape; a conversion needs one",
                hint=f"--shape {entry.name}=1,3,224,224",
            )
    opsets = [o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")]
    return inputs, outputs, max(opsets, default=0)


def with_weights_inside(model: bytes, files: Mapping[str, bytes | Path]) -> bytes:
    """The same model with its external data in it. Raises MeasurementError where some is missing.

    >>> with_weights_inside(b"onnx", {})
    b'onnx'
    """
    if not files:
        return model
    import onnx
    from onnx.external_data_helper import load_external_data_for_model

    with tempfile.TemporaryDirectory(prefix="hilnas-onnx-") as name:
        write_model(Path(name), model, files)
        proto = onnx.load_model_from_string(model)
        try:
            load_external_data_for_model(proto, name)
            return bytes(proto.SerializeToString())
        except Exception as error:  # missing and too short files, and more than protobuf holds
            raise MeasurementError("LOAD_FAILED", f"external data: {error}"[:600]) from None


def write_model(folder: Path, model: bytes, files: Mapping[str, bytes | Path]) -> Path:
    """Lay a model and its external data into ``folder``. Raises MeasurementError for odd names."""
    path = folder / "model.onnx"
    path.write_bytes(model)
    for name, data in files.items():
        target = folder / name
        if target.parent != folder or target == path:
            raise MeasurementError("LOAD_FAILED", f"external data may not lie at {name!r}")
        target.write_bytes(data if isinstance(data, bytes) else data.read_bytes())
    return path


def _sha256(data: bytes | Path) -> str:
    return sha256_bytes(data) if isinstance(data, bytes) else sha256_file(data)
