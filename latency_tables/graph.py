"""A network as a list of operators, without torch and without weights.

A :class:`Graph` is what a latency table needs to know of a candidate: operators with their shapes
and attributes, and *where each weight would come from*. Operators carry ONNX names, batch norms are
already folded into convolutions, attention is explicit matrix products, the batch size is one.

A graph is made of :class:`Section` objects. Recording a block gives a graph of one section;
:func:`compose` chains blocks under their names. A section that was placed once under a name keeps
the result, so composing a candidate from known blocks is a few dictionary look-ups.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from latency_tables.errors import GraphError

AttributeValue = int | float | str | tuple[int, ...] | tuple[float, ...]
Transform = Literal["copy", "transposed", "folded_weight", "folded_bias"]

INPUT = "input"
OUTPUT = "output"


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A tensor that flows between operators."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Size in memory."""
        return self.n_elements * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operator: an ONNX name, its operands in order ("" for an absent one), its attributes."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[tuple[str, AttributeValue], ...] = ()

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of an attribute."""
        return dict(self.attributes).get(name, default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """How a weight follows from the tensors of a module.

    * ``copy``, ``transposed``: (tensor)
    * ``folded_weight``: (convolution weight, BN weight, BN running variance)
    * ``folded_bias``: (convolution bias, BN weight, BN bias, BN mean, BN variance)

    An absent tensor is "" (a convolution without bias, a batch norm that is not affine).
    """

    transform: Transform
    tensors: tuple[str, ...]
    epsilon: float = 0.0

    def prefixed(self, prefix: str) -> Source:
        """The same source inside a submodule called ``prefix``."""
        return replace(self, tensors=tuple(t and f"{prefix}.{t}" for t in self.tensors))


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A weight that a candidate is sent without.

    ``fan_in`` scales synthetic values: how many products each output adds up, twice that where no
    rectifier follows; 0 marks a scale or a variance, which must stay near one.
    """

    name: str
    shape: tuple[int, ...]
    fan_in: int
    source: Source

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Size as float32."""
        return 4 * self.n_elements


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A small tensor that belongs to the structure: a shape, an index, a scalar."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, name: str, array: NDArray[Any]) -> Constant:
        """Freeze an array."""
        little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
        return cls(name=name, dtype=array.dtype.name, shape=array.shape, data=little.tobytes())

    @property
    def array(self) -> NDArray[Any]:
        """The value."""
        dtype = np.dtype(self.dtype).newbyteorder("<")
        return np.frombuffer(self.data, dtype=dtype).reshape(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Section:
    """A run of operators with one input and one output.

    ``values`` describes the outputs of ``nodes``. ``memo`` holds what was derived from the section
    (placed copies, serialised bytes, costs); it is no part of its value.
    """

    input: Value
    output: Value
    nodes: tuple[Node, ...]
    parameters: tuple[Parameter, ...]
    constants: tuple[Constant, ...]
    values: tuple[Value, ...]
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    def placed(self, prefix: str, source: str, target: str) -> Section:
        """This section under the name ``prefix``, reading ``source`` and giving ``target``."""
        key = ("placed", prefix, source, target)
        if key not in self.memo:
            self.memo[key] = self._place(prefix, source, target)
        placed: Section = self.memo[key]
        return placed

    def _place(self, prefix: str, source: str, target: str) -> Section:
        names = {self.input.name: source, "": ""}

        def rename(name: str) -> str:
            return names.get(name, f"{prefix}/{name}")

        if self.nodes:
            names[self.output.name] = target
        weights = {p.name: f"{prefix}.{p.name}" for p in self.parameters}
        names.update(weights)
        return Section(
            input=replace(self.input, name=source),
            output=replace(self.output, name=target if self.nodes else source),
            nodes=tuple(
                replace(
                    node,
                    name=f"{prefix}/{node.name}",
                    inputs=tuple(rename(n) for n in node.inputs),
                    outputs=tuple(rename(n) for n in node.outputs),
                )
                for node in self.nodes
            ),
            parameters=tuple(
                replace(p, name=weights[p.name], source=p.source.prefixed(prefix))
                for p in self.parameters
            ),
            constants=tuple(replace(c, name=rename(c.name)) for c in self.constants),
            values=tuple(replace(v, name=rename(v.name)) for v in self.values),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graph:
    """A network with one input and one output. See the module's text.

    >>> relu = Node(op="Relu", name="relu", inputs=("input",), outputs=("y",))
    >>> block = Graph.of(
    ...     input=Value(name="input", shape=(1, 4)), output="y", nodes=[relu],
    ...     values=[Value(name="y", shape=(1, 4))],
    ... )
    >>> net = compose([("first", block), ("second", block)])
    >>> [(node.name, node.inputs, node.outputs) for node in net.nodes]
    [('first/relu', ('input',), ('first/out',)), ('second/relu', ('first/out',), ('output',))]
    """

    sections: tuple[Section, ...]

    @classmethod
    def of(
        cls,
        *,
        input: Value,
        output: str,
        nodes: Iterable[Node],
        values: Iterable[Value],
        parameters: Iterable[Parameter] = (),
        constants: Iterable[Constant] = (),
    ) -> Graph:
        """A graph of one section; raises GraphError where a name is unknown or given twice."""
        values, nodes = tuple(values), tuple(nodes)
        by_name = {v.name: v for v in (input, *values)}
        if output not in by_name:
            raise GraphError(f"the output {output!r} is no value of the graph")
        section = Section(
            input=input,
            output=by_name[output],
            nodes=nodes,
            parameters=tuple(parameters),
            constants=tuple(constants),
            values=values,
        )
        _check(section)
        return cls(sections=(section,))

    @property
    def input(self) -> Value:
        """What the network reads."""
        return self.sections[0].input

    @property
    def output(self) -> Value:
        """What the network gives."""
        return self.sections[-1].output

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Operators in an order in which they can run."""
        return tuple(n for s in self.sections for n in s.nodes)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Weights in the order of their operators."""
        return tuple(p for s in self.sections for p in s.parameters)

    @property
    def constants(self) -> tuple[Constant, ...]:
        """Inline tensors."""
        return tuple(c for s in self.sections for c in s.constants)

    def values(self) -> Iterator[Value]:
        """The input and every operator's outputs."""
        yield self.input
        for section in self.sections:
            yield from section.values

    def macs(self) -> int:
        """Multiply-accumulates of convolutions, linear layers and matrix products."""
        from latency_tables.costs import graph_costs

        return int(graph_costs(self)["macs"])

    def n_weights(self) -> int:
        """Number of weights after folding batch norms."""
        return sum(p.n_elements for p in self.parameters)

    def operator_histogram(self) -> Counter[str]:
        """How often each operator occurs."""
        return Counter(node.op for node in self.nodes)


def compose(pieces: Sequence[tuple[str, Graph]]) -> Graph:
    """Chain graphs of one section; each piece's values and weights get its name as a prefix.

    The result reads ``"input"`` and gives ``"output"``. A piece without operators passes its input
    on.

    Raises:
        GraphError: no pieces, names that repeat, or shapes that do not meet; names the pieces.
    """
    if not pieces:
        raise GraphError("a graph needs at least one piece")
    if len({name for name, _ in pieces}) != len(pieces):
        raise GraphError(f"two pieces share a name: {[name for name, _ in pieces]}")
    last = max((i for i, (_, g) in enumerate(pieces) if g.nodes), default=-1)
    sections: list[Section] = []
    source, shape = INPUT, pieces[0][1].input.shape
    for i, (name, graph) in enumerate(pieces):
        if len(graph.sections) != 1:
            raise GraphError(f"piece {name!r} is composed already; compose its pieces instead")
        section = graph.sections[0]
        if section.input.shape != shape:
            raise GraphError(f"piece {name!r} reads {section.input.shape} but gets {shape}")
        placed = section.placed(name, source, OUTPUT if i == last else f"{name}/out")
        sections.append(placed)
        source, shape = placed.output.name, placed.output.shape
    return Graph(sections=tuple(sections))


def _check(section: Section) -> None:
    """Every operand is known before it is read, every name is given once."""
    known = {section.input.name, ""}
    for name in (
        *(p.name for p in section.parameters),
        *(c.name for c in section.constants),
    ):
        if name in known:
            raise GraphError(f"{name!r} is given twice")
        known.add(name)
    described = {v.name for v in section.values}
    for node in section.nodes:
        unknown = [n for n in node.inputs if n not in known]
        if unknown:
            raise GraphError(f"operator {node.name!r} reads {unknown}, which nothing gives")
        for name in node.outputs:
            if name in known or name not in described:
                raise GraphError(f"output {name!r} of {node.name!r} is given twice or has no shape")
            known.add(name)
