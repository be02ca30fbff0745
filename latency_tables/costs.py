"""What operators cost: one small pure function per kind of operator, and a table of them.

Counting rules, fixed once for the whole project:

* MACs = convolutions + linear layers + matrix products (attention included). Batch norms are
  folded and count nothing; neither do activations and additions.
* Activation bytes = what operators write. Views (reshapes) write nothing, and an element-wise
  operator whose operand nobody else reads works in place.
* The peak of activation memory is the largest sum of live tensors over the operators in order.
* Elements of a kind = what operators of that kind write: 1x1 convolutions, depthwise ones, pooling
  with a window (a global pool reads its input once and writes next to nothing), and products of a
  tensor with a smaller computed one that gates it, as in squeeze-and-excitation. Such operators
  move memory far more than they multiply, so MACs say little about their time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

from latency_tables.graph import Graph, Node, Section

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
IN_PLACE = frozenset(
    {"Relu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "LeakyRelu", "Tanh", "Erf", "Softmax"}
)
WINDOWS = frozenset({"AveragePool", "MaxPool"})
"""Operators that pool over a window."""

UNITS = {
    "macs": "MAC",
    "macs_pointwise": "MAC",
    "macs_depthwise": "MAC",
    "macs_spatial": "MAC",
    "macs_matmul": "MAC",
    "weight_bytes": "byte",
    "activation_bytes": "byte",
    "activation_peak_bytes": "byte",
    "activation_elements": "element",
    "n_operators": "operator",
    "elements_pointwise": "element",
    "elements_depthwise": "element",
    "elements_pooled": "element",
    "elements_gated": "element",
}
"""Name and unit of every cost of a graph; all add up over a chain but the peak."""


def conv_macs(weight: Shape, output: Shape) -> int:
    """MACs of a convolution with weight (O, I/groups, *kernel) and output (N, O, *size)."""
    return math.prod(output) * math.prod(weight[1:])


def gemm_macs(operand: Shape, output: Shape) -> int:
    """MACs of a product whose first operand is (..., K) and whose output is (..., M)."""
    return math.prod(output) * operand[-1]


def conv_kind(node: Node, weight: Shape) -> str:
    """``depthwise``, ``pointwise`` or ``spatial``: a convolution with weight (O, I/groups, *k)."""
    if node.attribute("group", 1) > 1 and weight[1] == 1:
        return "depthwise"
    return "pointwise" if math.prod(weight[2:]) == 1 else "spatial"


def _conv(node: Node, shapes: Shapes) -> tuple[str, int]:
    weight, output = shapes[node.inputs[1]], shapes[node.outputs[0]]
    return f"macs_{conv_kind(node, weight)}", conv_macs(weight, output)


def _matmul(node: Node, shapes: Shapes) -> tuple[str, int]:
    return "macs_matmul", gemm_macs(shapes[node.inputs[0]], shapes[node.outputs[0]])


MACS: dict[str, Callable[[Node, Shapes], tuple[str, int]]] = {
    "Conv": _conv,
    "Gemm": _matmul,
    "MatMul": _matmul,
}
"""Operator → (column, MACs). Operators that are not named here cost no MACs."""


def elements_column(node: Node, shapes: Shapes, computed: Collection[str]) -> str | None:
    """Column that counts what ``node`` writes, if any; ``computed`` names what is no weight.

    >>> from latency_tables.graph import Node
    >>> gate = Node(op="Mul", name="gate", inputs=("x", "s"), outputs=("y",))
    >>> shapes = {"x": (1, 8, 4, 4), "s": (1, 8, 1, 1), "y": (1, 8, 4, 4)}
    >>> elements_column(gate, shapes, {"x", "s"}), elements_column(gate, shapes, {"x"})
    ('elements_gated', None)
    """
    if node.op == "Conv":
        kind = conv_kind(node, shapes[node.inputs[1]])
        return None if kind == "spatial" else f"elements_{kind}"
    if node.op in WINDOWS:
        return "elements_pooled"
    if node.op == "Mul" and all(name in computed for name in node.inputs):
        sizes = [math.prod(shapes[name]) for name in node.inputs]
        return "elements_gated" if min(sizes) < max(sizes) else None
    return None


def section_shapes(section: Section) -> dict[str, Shape]:
    """Shape of every tensor that a section's operators read or give."""
    shapes = {v.name: v.shape for v in (section.input, *section.values)}
    shapes.update({p.name: p.shape for p in section.parameters})
    shapes.update({c.name: c.shape for c in section.constants})
    return shapes


def section_costs(section: Section) -> dict[str, int]:
    """Costs of one section: every key of :data:`UNITS`."""
    if "costs" not in section.memo:
        section.memo["costs"] = _section_costs(section)
    return dict(section.memo["costs"])


def _section_costs(section: Section) -> dict[str, int]:
    costs = dict.fromkeys(UNITS, 0)
    shapes = section_shapes(section)
    computed = {section.input.name, *(v.name for v in section.values)}
    for node in section.nodes:
        if node.op in MACS:
            column, macs = MACS[node.op](node, shapes)
            costs[column] += macs
            costs["macs"] += macs
        if written_to := elements_column(node, shapes, computed):
            costs[written_to] += math.prod(shapes[node.outputs[0]])
    storage = _storage(section)
    written = [v for v in section.values if storage[v.name] == v.name]
    costs["weight_bytes"] = sum(p.n_bytes for p in section.parameters)
    costs["activation_bytes"] = sum(v.n_bytes for v in written)
    costs["activation_elements"] = sum(v.n_elements for v in written)
    costs["activation_peak_bytes"] = peak_bytes(section)
    costs["n_operators"] = len(section.nodes)
    return costs


def graph_costs(graph: Graph) -> dict[str, int]:
    """Costs of a network: sums over its sections, the largest for the peak of memory."""
    parts = [section_costs(section) for section in graph.sections]
    costs = {name: sum(part[name] for part in parts) for name in UNITS}
    costs["activation_peak_bytes"] = max(part["activation_peak_bytes"] for part in parts)
    return costs


def _storage(section: Section) -> dict[str, str]:
    """Value → the value whose memory it lies in (views and in-place operators share)."""
    readers: dict[str, int] = {}
    for node in section.nodes:
        for name in node.inputs:
            readers[name] = readers.get(name, 0) + 1
    storage = {section.input.name: section.input.name}
    for node in section.nodes:
        first = node.inputs[0]
        shared = first in storage and (
            node.op in VIEWS or (node.op in IN_PLACE and readers[first] == 1)
        )
        for name in node.outputs:
            storage[name] = storage[first] if shared else name
    return storage


def peak_bytes(section: Section) -> int:
    """Largest sum of live activations while the section's operators run in order, in bytes."""
    storage = _storage(section)
    sizes: dict[str, int] = {}
    for value in (section.input, *section.values):
        place = storage[value.name]
        sizes[place] = max(sizes.get(place, 0), value.n_bytes)
    last: dict[str, int] = {}
    for i, node in enumerate(section.nodes):
        for name in (*node.inputs, *node.outputs):
            if name in storage:
                last[storage[name]] = i
    last[storage[section.output.name]] = len(section.nodes)
    live = {storage[section.input.name]}
    peak = _total(live, sizes)
    for i, node in enumerate(section.nodes):
        live.update(storage[name] for name in node.outputs)
        peak = max(peak, _total(live, sizes))
        live = {place for place in live if last.get(place, -1) > i}
    return peak


def _total(places: set[str], sizes: Mapping[str, int]) -> int:
    return sum(sizes[place] for place in places)
