"""Rewrite an exported network for runtimes older than opset 18.

Neither torch's exporter nor onnx's version converter does this for our networks: the converter has
no way down for Split of opset 18 and Relu of 14, among others. Few operators are in question, so
the rules stand here. Which operators changed is taken from onnx's own schemas (``since_version``);
one that changed and has no rule is refused by name, never passed on in the hope that it fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx
from onnx import numpy_helper

from latency_tables.errors import ExportError

EXPORTER_OPSET = 18
"""Lowest operator set that torch's exporter writes by itself."""

_HINT = "a newer onnxruntime on the device, or opset = 18 in [export]"

Constants = Mapping[str, onnx.TensorProto]
Rule = Callable[[onnx.NodeProto, Constants], None]


def convert_down(model: onnx.ModelProto, opset: int) -> None:
    """Rewrite ``model`` in place from opset 18 to ``opset`` (13 to 17).

    Raises:
        ExportError: an operator has no form in the older set, or no rule here.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        _convert_node(node, constants, opset)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for entry in model.opset_import:
        if entry.domain == "":
            entry.version = opset


def _convert_node(node: onnx.NodeProto, constants: Constants, opset: int) -> None:
    name = node.op_type
    since = onnx.defs.get_schema(name, EXPORTER_OPSET).since_version
    if since <= opset:
        return
    if name not in RULES:
        raise ExportError(
            f"operator {name} of opset {since} has no form in opset {opset}", hint=_HINT
        )
    try:
        onnx.defs.get_schema(name, opset)
    except onnx.defs.SchemaError:
        raise ExportError(f"opset {opset} has no operator {name}", hint=_HINT) from None
    RULES[name](node, constants)


def _unchanged(node: onnx.NodeProto, constants: Constants) -> None:
    """Only the list of element types grew; float32 was always in it."""


def _split(node: onnx.NodeProto, constants: Constants) -> None:
    """18 wants the number of outputs; before, an absent ``split`` input meant equal parts."""
    count = _integer(node, "num_outputs")
    if count is not None and count != len(node.output):
        raise ExportError(f"Split names {count} outputs and has {len(node.output)}")
    _drop(node, "num_outputs")


def _reduction(node: onnx.NodeProto, constants: Constants) -> None:
    """The axes were an attribute until 17 and are an input since 18."""
    _drop(node, "noop_with_empty_axes")
    if len(node.input) < 2:
        return
    axes = _constant(node, 1, constants)
    node.attribute.append(onnx.helper.make_attribute("axes", axes))
    del node.input[1:]


def _reshape(node: onnx.NodeProto, constants: Constants) -> None:
    """14 added ``allowzero``; without zeros in the target shape it makes no difference."""
    if _integer(node, "allowzero") and 0 in _constant(node, 1, constants):
        raise ExportError("Reshape to a shape with a zero has no form before opset 14", hint=_HINT)
    _drop(node, "allowzero")


def _batch_norm(node: onnx.NodeProto, constants: Constants) -> None:
    """14 added ``training_mode``; exported networks never train."""
    if _integer(node, "training_mode"):
        raise ExportError("BatchNormalization in training mode cannot be exported")
    _drop(node, "training_mode")


RULES: dict[str, Rule] = {
    **dict.fromkeys(("Relu", "Add", "Sub", "Mul", "Div", "Identity", "Where"), _unchanged),
    **dict.fromkeys(("LeakyRelu", "PRelu"), _unchanged),
    **dict.fromkeys(("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2"), _reduction),
    "Split": _split,
    "Reshape": _reshape,
    "BatchNormalization": _batch_norm,
}


def _constant(node: onnx.NodeProto, index: int, constants: Constants) -> list[int]:
    name = node.input[index]
    if name not in constants:
        raise ExportError(f"input {index} of {node.op_type} is computed at run time", hint=_HINT)
    return [int(value) for value in numpy_helper.to_array(constants[name]).reshape(-1)]


def _integer(node: onnx.NodeProto, name: str) -> int | None:
    return next((int(a.i) for a in node.attribute if a.name == name), None)


def _drop(node: onnx.NodeProto, name: str) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
