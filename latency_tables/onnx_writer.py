"""Graph → ONNX bytes, without weights for measuring or with them for use.

Without weights every initializer larger than :data:`INLINE_BYTES` is declared as external data in
one file beside the model, and a :class:`WeightsSpec` says how to make that file where the network
is timed. Shapes, indices, scalars and tiny tensors are inline.

Speed: a candidate is a sequence of sections that were placed before, so each section keeps its
serialised operators. Protobuf messages of repeated fields may be concatenated; what is left to
write per candidate is where each weight lies in the weight file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from latency_tables.errors import GraphError
from latency_tables.graph import Constant, Graph, Node, Parameter, Section, Value
from latency_tables.synthetic import ALIGNMENT
from latency_tables.weights_spec import LOCATION, WeightsSpec, WeightTensor

INLINE_BYTES = 64
MIN_OPSET, MAX_OPSET = 13, 21
_OPSET_OF = {"LayerNormalization": 17, "HardSwish": 14}
_ELEMENT_TYPES = {
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
}
# field numbers of onnx.proto, as tags of length-delimited fields
_MODEL_GRAPH = bytes([7 << 3 | 2])
_GRAPH_INITIALIZER = bytes([5 << 3 | 2])
_TENSOR_EXTERNAL = bytes([13 << 3 | 2])
_TENSOR_IS_EXTERNAL = bytes([14 << 3, TensorProto.EXTERNAL])


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxCandidate:
    """An ONNX model; ``weights_spec`` is None where its weights are inside."""

    model: bytes
    weights_spec: WeightsSpec | None


def to_onnx(
    graph: Graph,
    weights: Mapping[str, NDArray[np.float32]] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 8,
    seed: int = 0,
) -> OnnxCandidate:
    """Write a graph as ONNX; equal graphs give equal bytes.

    Args:
        graph: the network.
        weights: parameter name → float32 array, to be embedded; None leaves large weights out.
        opset: version of the operator set, 13 to 21.
        ir_version: version of the file format; 8 is read by runtimes since 2021.
        seed: of the synthetic weights.

    Raises:
        GraphError: an opset that the graph's operators do not fit, or a weight that is missing or
            has another shape.
    """
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise GraphError(f"opset {opset} is not written; allowed: {MIN_OPSET} to {MAX_OPSET}")
    body = b"".join(_operator_bytes(section, opset) for section in graph.sections)
    if not any(section.nodes for section in graph.sections):
        raise GraphError("a graph without operators computes nothing that could be timed")
    if weights is None:
        initializers, spec = _external(graph, seed)
    else:
        initializers, spec = _embedded(graph, weights), None
    ends = onnx.GraphProto(
        name="candidate",
        input=[_described(graph.input)],
        output=[_described(graph.output)],
    )
    content = body + initializers + ends.SerializeToString(deterministic=True)
    shell = onnx.ModelProto(
        ir_version=ir_version,
        producer_name="hilnas",
        opset_import=[onnx.OperatorSetIdProto(domain="", version=opset)],
    )
    model = shell.SerializeToString(deterministic=True) + _field(_MODEL_GRAPH, content)
    return OnnxCandidate(model=model, weights_spec=spec)


def header_bytes(graph: Graph, *, opset: int = 17) -> int:
    """Bytes that a graph's operators, constants and weight headers take in a file."""
    size = 0
    for section in graph.sections:
        size += len(_operator_bytes(section, opset))
        for parameter in section.parameters:
            plain = TensorProto(
                name=parameter.name, dims=parameter.shape, data_type=TensorProto.FLOAT
            )
            size += len(_field(_GRAPH_INITIALIZER, plain.SerializeToString()))
            size += len(_varint(parameter.n_bytes)) + 1 + 4  # raw_data's tag and longer lengths
    return size


# -- operators and constants ---------------------------------------------------------------------


def _operator_bytes(section: Section, opset: int) -> bytes:
    """Serialised nodes and constants of a section, kept with the section."""
    key = ("onnx", opset)
    if key not in section.memo:
        part = onnx.GraphProto()
        for node in section.nodes:
            _add_node(part, node, opset)
        for constant in section.constants:
            part.initializer.append(_inline(constant))
        section.memo[key] = part.SerializeToString(deterministic=True)
    data: bytes = section.memo[key]
    return data


def _add_node(part: onnx.GraphProto, node: Node, opset: int) -> None:
    if opset < _OPSET_OF.get(node.op, 0):
        raise GraphError(f"{node.op} needs opset {_OPSET_OF[node.op]}, not {opset}")
    inputs, attributes = list(node.inputs), dict(node.attributes)
    if node.op == "ReduceMean" and opset >= 18:  # axes became an operand
        axes = np.array(attributes.pop("axes"), dtype=np.int64)
        part.initializer.append(_inline(Constant.of(f"{node.name}.axes", axes)))
        inputs.append(f"{node.name}.axes")
    proto = onnx.NodeProto(op_type=node.op, name=node.name, input=inputs, output=node.outputs)
    for name, value in sorted(attributes.items()):
        proto.attribute.append(_attribute(name, value))
    part.node.append(proto)


def _attribute(name: str, value: Any) -> onnx.AttributeProto:
    kinds = onnx.AttributeProto
    if isinstance(value, str):
        return kinds(name=name, type=kinds.STRING, s=value.encode())
    if isinstance(value, float):
        return kinds(name=name, type=kinds.FLOAT, f=value)
    if isinstance(value, int):
        return kinds(name=name, type=kinds.INT, i=value)
    if value and isinstance(value[0], float):
        return kinds(name=name, type=kinds.FLOATS, floats=value)
    return kinds(name=name, type=kinds.INTS, ints=value)


def _inline(constant: Constant) -> TensorProto:
    return TensorProto(
        name=constant.name,
        dims=constant.shape,
        data_type=_ELEMENT_TYPES[constant.dtype],
        raw_data=constant.data,
    )


def _described(value: Value) -> onnx.ValueInfoProto:
    info = onnx.ValueInfoProto(name=value.name)
    tensor = info.type.tensor_type
    tensor.elem_type = _ELEMENT_TYPES[value.dtype]
    tensor.shape.SetInParent()  # a scalar has a shape without axes
    for size in value.shape:
        tensor.shape.dim.add().dim_value = size
    return info


# -- weights -------------------------------------------------------------------------------------


def _embedded(graph: Graph, weights: Mapping[str, NDArray[np.float32]]) -> bytes:
    part = onnx.GraphProto()
    for parameter in graph.parameters:
        if parameter.name not in weights:
            raise GraphError(f"no weights given for {parameter.name!r}")
        array = weights[parameter.name]
        if array.shape != parameter.shape or array.dtype != np.float32:
            raise GraphError(
                f"weights of {parameter.name!r} are {array.dtype} {array.shape}; expected float32 "
                f"{parameter.shape}"
            )
        part.initializer.append(_inline(Constant.of(parameter.name, array)))
    data: bytes = part.SerializeToString(deterministic=True)
    return data


def _external(graph: Graph, seed: int) -> tuple[bytes, WeightsSpec]:
    """Declarations of the weights, and how to make the file that they point to."""
    chunks: list[bytes] = []
    tensors: list[WeightTensor] = []
    offset = 0
    for section in graph.sections:
        for parameter, static in _declarations(section, seed):
            if parameter is None:
                chunks.append(static)
                continue
            entry = _entry(b"offset", b"%d" % offset)
            chunks.append(_field(_GRAPH_INITIALIZER, static + entry + _TENSOR_IS_EXTERNAL))
            tensors.append(
                WeightTensor(
                    name=parameter.name,
                    n_elements=parameter.n_elements,
                    fan_in=parameter.fan_in,
                    offset_bytes=offset,
                )
            )
            offset += -(-parameter.n_bytes // ALIGNMENT) * ALIGNMENT
    return b"".join(chunks), WeightsSpec(seed=seed, tensors=tuple(tensors))


def _declarations(section: Section, seed: int) -> list[tuple[Parameter | None, bytes]]:
    """Per weight what does not depend on its place in the file; None marks a complete one."""
    key = ("external", seed)
    if key not in section.memo:
        found: list[tuple[Parameter | None, bytes]] = []
        for parameter in section.parameters:
            tensor = TensorProto(
                name=parameter.name, dims=parameter.shape, data_type=TensorProto.FLOAT
            )
            if parameter.n_bytes <= INLINE_BYTES:
                tensor.raw_data = _values(parameter, seed)
                whole = tensor.SerializeToString(deterministic=True)
                found.append((None, _field(_GRAPH_INITIALIZER, whole)))
                continue
            static = tensor.SerializeToString(deterministic=True)
            static += _entry(b"location", LOCATION.encode())
            static += _entry(b"length", b"%d" % parameter.n_bytes)
            found.append((parameter, static))
        section.memo[key] = found
    declarations: list[tuple[Parameter | None, bytes]] = section.memo[key]
    return declarations


def _values(parameter: Parameter, seed: int) -> bytes:
    """Synthetic values of a tiny tensor, by the same rule as the weight file."""
    tensor = WeightTensor(
        name=parameter.name,
        n_elements=parameter.n_elements,
        fan_in=parameter.fan_in,
        offset_bytes=0,
    )
    return WeightsSpec(seed=seed, tensors=(tensor,)).synthesise()


# -- protobuf ------------------------------------------------------------------------------------


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + _varint(len(content)) + content


def _entry(key: bytes, value: bytes) -> bytes:
    """One key and value of a tensor's external data."""
    return _field(_TENSOR_EXTERNAL, _field(b"\x0a", key) + _field(b"\x12", value))
