"""Collects operators while a module runs on the meta device, and folds batch norms afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latency_tables.errors import UnsupportedOperatorError
from latency_tables.graph import (
    INPUT,
    AttributeValue,
    Constant,
    Graph,
    Node,
    Parameter,
    Source,
    Value,
)

_DTYPES = {
    torch.float32: "float32",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.bool: "bool",
}

LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
RECTIFIERS = frozenset({"Relu", "Clip", "HardSwish", "LeakyRelu"})


class GraphBuilder:
    """Operators, values and weights of one module, in the order in which they were met.

    ``constants`` are the values of integer buffers (indices), which the meta device does not hold.
    """

    def __init__(self, module: nn.Module, constants: Mapping[str, NDArray[Any]]) -> None:
        self._nodes: list[Node] = []
        self._values: dict[str, Value] = {}
        self._parameters: dict[str, Parameter] = {}
        self._constants: dict[str, Constant] = {}
        self._constant_names: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._names: dict[int, str] = {}
        self._kept: list[Tensor] = []  # an id is unique only while its tensor lives
        self._storages: Counter[int] = Counter()
        self._serial: Counter[str] = Counter()
        self._indices = dict(constants)
        self.weights: dict[int, str] = {}
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            self.weights[id(tensor)] = name
        self.input: Value | None = None

    # -- operands --------------------------------------------------------------------------------

    def bind(self, tensor: Tensor, name: str) -> None:
        """From now on ``tensor`` is the value ``name``."""
        if id(tensor) not in self._names:
            self._kept.append(tensor)
            self._storages[_storage(tensor)] += 1
        self._names[id(tensor)] = name

    def set_input(self, tensor: Tensor) -> None:
        """Name the network's input."""
        self.input = _described(INPUT, tensor)
        self.bind(tensor, INPUT)

    def shares_memory(self, tensor: Tensor) -> bool:
        """Whether another recorded tensor lies in the same memory (a view of it)."""
        return self._storages[_storage(tensor)] > 1

    def is_weight(self, tensor: object) -> bool:
        """Whether ``tensor`` is a parameter or a buffer as it stands in the module."""
        return id(tensor) in self.weights and id(tensor) not in self._names

    def value(self, operand: Any, *, fan_in: int | None = None) -> str:
        """Name of an operand: a recorded value, a weight, or a number that becomes a constant.

        ``fan_in`` scales the synthetic values of a weight (see Parameter).
        """
        if isinstance(operand, bool | int | float):
            return self.constant(np.array(operand, dtype=np.float32))
        if id(operand) in self._names:
            return self._names[id(operand)]
        if id(operand) in self.weights:
            name = self.weights[id(operand)]
            if name in self._indices:
                return self.constant(self._indices[name])
            if operand.dtype != torch.float32:
                raise UnsupportedOperatorError(
                    f"constant of {operand.dtype} ({name}, without values on the meta device)"
                )
            guess = operand.shape[-1] if operand.ndim else 1
            return self.weight(operand, fan_in=guess if fan_in is None else fan_in)
        if operand.device.type != "meta" and operand.ndim == 0:
            return self.constant(operand.numpy())
        raise UnsupportedOperatorError("a tensor that was made outside the network")

    def weight(self, tensor: Tensor, *, fan_in: int, transposed: bool = False) -> str:
        """Register a parameter, possibly with its two axes swapped."""
        source = self.weights[id(tensor)]
        name = f"{source}.T" if transposed else source
        shape = tuple(reversed(tensor.shape)) if transposed else tuple(tensor.shape)
        if name not in self._parameters:
            self._parameters[name] = Parameter(
                name=name,
                shape=shape,
                fan_in=fan_in,
                source=Source(transform="transposed" if transposed else "copy", tensors=(source,)),
            )
        return name

    def constant(self, array: NDArray[Any]) -> str:
        """Name of an inline tensor; equal ones are stored once."""
        probe = Constant.of("", np.asarray(array))
        key = (probe.dtype, probe.shape, probe.data)
        if key not in self._constant_names:
            name = f"const{len(self._constants)}"
            self._constant_names[key] = name
            self._constants[name] = replace(probe, name=name)
        return self._constant_names[key]

    def integers(self, values: Sequence[int]) -> str:
        """Name of an inline list of int64."""
        return self.constant(np.array(values, dtype=np.int64))

    # -- operators -------------------------------------------------------------------------------

    def emit(
        self, op: str, inputs: Sequence[str], outputs: Sequence[Tensor], **attributes: Any
    ) -> None:
        """Append an operator that gives ``outputs``."""
        names = [self._fresh(op) for _ in outputs]
        self._append(op, inputs, names, [_described(*x) for x in zip(names, outputs, strict=True)],
                     attributes)  # fmt: skip
        for name, tensor in zip(names, outputs, strict=True):
            self.bind(tensor, name)

    def step(self, op: str, inputs: Sequence[str], shape: Sequence[int], **attributes: Any) -> str:
        """Append an operator whose output no torch tensor stands for; give its name."""
        name = self._fresh(op)
        self._append(op, inputs, [name], [Value(name=name, shape=tuple(shape))], attributes)
        return name

    def _fresh(self, op: str) -> str:
        self._serial[op] += 1
        return f"{op.lower()}{self._serial[op]}"

    def _append(
        self,
        op: str,
        inputs: Sequence[str],
        names: list[str],
        values: list[Value],
        attributes: Mapping[str, AttributeValue],
    ) -> None:
        self._values.update((v.name, v) for v in values)
        self._nodes.append(
            Node(
                op=op,
                name=names[0],
                inputs=tuple(inputs),
                outputs=tuple(names),
                attributes=tuple(sorted(attributes.items())),
            )
        )

    # -- the result ------------------------------------------------------------------------------

    def finish(self, output: Tensor) -> Graph:
        """Fold batch norms, drop what nobody reads, and give the graph."""
        if self.input is None or id(output) not in self._names:
            raise UnsupportedOperatorError("an output that does not follow from the input")
        result = self._names[id(output)]
        result = self._fold(result)
        self._drop_unread(result)
        self._widen_linear_outputs()
        return self._with_short_names(result)

    def _with_short_names(self, result: str) -> Graph:
        """The graph with values 1, 2, …, weights w1, w2, …, b1, … and constants c1, c2, ….

        A candidate names each of them two to four times, so long names would be most of its bytes;
        where a weight comes from is said by its source.
        """
        if self.input is None:
            raise UnsupportedOperatorError("a network without input")
        names, serial = {INPUT: INPUT, "": ""}, Counter[str]()

        def shorten(name: str, kind: str) -> None:
            if name not in names:
                serial[kind] += 1
                names[name] = f"{kind}{serial[kind]}"

        for node in self._nodes:
            for name in node.inputs:
                if name in self._parameters:
                    shorten(name, "w" if len(self._parameters[name].shape) > 1 else "b")
                elif name in self._constants:
                    shorten(name, "c")
            for name in node.outputs:
                shorten(name, "")
        return Graph.of(
            input=self.input,
            output=names[result],
            nodes=[
                replace(
                    node,
                    inputs=tuple(names[n] for n in node.inputs),
                    outputs=tuple(names[n] for n in node.outputs),
                )
                for node in self._nodes
            ],
            values=[replace(self._values[n], name=names[n]) for n in names if n in self._values],
            parameters=[
                replace(self._parameters[n], name=names[n]) for n in names if n in self._parameters
            ],
            constants=[
                replace(self._constants[n], name=names[n]) for n in names if n in self._constants
            ],
        )

    def _widen_linear_outputs(self) -> None:
        """Double ``fan_in`` of layers that no rectifier follows.

        Synthetic weights double the second moment because a rectifier halves it; without one,
        deep networks would leave the range of float16.
        """
        rectified = {name for n in self._nodes if n.op in RECTIFIERS for name in n.inputs}
        for node in self._nodes:
            if node.op in LAYERS and node.outputs[0] not in rectified:
                for name in node.inputs[1:]:
                    if name in self._parameters:
                        parameter = self._parameters[name]
                        widened = replace(parameter, fan_in=2 * parameter.fan_in)
                        self._parameters[name] = widened

    def _drop_unread(self, result: str) -> None:
        read, kept = {result}, []
        for node in reversed(self._nodes):
            if read.intersection(node.outputs):
                read.update(node.inputs)
                kept.append(node)
        self._nodes = kept[::-1]

    def _fold(self, result: str) -> str:
        """Merge every batch norm into the convolution before it, where only it reads that.

        Returns the name of the output, which is a convolution's where its batch norm came last.
        """
        readers = Counter(name for node in self._nodes for name in node.inputs)
        makers = {name: node for node in self._nodes for name in node.outputs}
        merged: dict[str, Node] = {}
        renamed: dict[str, str] = {}
        for norm in self._nodes:
            conv = makers.get(norm.inputs[0]) if norm.op == "BatchNormalization" else None
            if conv is None or conv.op != "Conv" or norm.inputs[0] == result:
                continue
            if all(readers[n] == 1 for n in conv.outputs + conv.inputs[1:]) and self._foldable(
                conv, norm
            ):
                merged[conv.name] = self._merged(conv, norm)
                renamed[norm.outputs[0]] = conv.outputs[0]
        self._nodes = [
            replace(n, inputs=tuple(renamed.get(i, i) for i in n.inputs))
            for n in (merged.get(n.name, n) for n in self._nodes)
            if n.outputs[0] not in renamed
        ]
        return renamed.get(result, result)

    def _foldable(self, conv: Node, norm: Node) -> bool:
        weights = (*conv.inputs[1:], *norm.inputs[3:])
        affine = [n for n in norm.inputs[1:3] if n not in self._constants]
        return all(
            n in self._parameters and self._parameters[n].source.transform == "copy"
            for n in (*weights, *affine)
        )

    def _merged(self, conv: Node, norm: Node) -> Node:
        def tensor(name: str) -> str:
            return self._parameters[name].source.tensors[0] if name in self._parameters else ""

        weight = self._parameters[conv.inputs[1]]
        bias = tensor(conv.inputs[2]) if len(conv.inputs) > 2 else ""
        scale, shift, mean, variance = (tensor(n) for n in norm.inputs[1:])
        epsilon = float(norm.attribute("epsilon"))
        new_weight = replace(
            weight,
            source=Source(
                transform="folded_weight",
                tensors=(weight.name, scale, variance),
                epsilon=epsilon,
            ),
        )
        new_bias = Parameter(
            name=conv.inputs[2] if bias else f"{weight.name.removesuffix('weight')}bias",
            shape=weight.shape[:1],
            fan_in=weight.fan_in,
            source=Source(
                transform="folded_bias",
                tensors=(bias, scale, shift, mean, variance),
                epsilon=epsilon,
            ),
        )
        for parameter in (new_weight, new_bias):
            self._parameters[parameter.name] = parameter
        return replace(conv, inputs=(conv.inputs[0], new_weight.name, new_bias.name))


def _described(name: str, tensor: Tensor) -> Value:
    if tensor.dtype not in _DTYPES:
        raise UnsupportedOperatorError(f"a tensor of {tensor.dtype}")
    return Value(name=name, shape=tuple(tensor.shape), dtype=_DTYPES[tensor.dtype])


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
