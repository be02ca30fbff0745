"""Small inverted residual blocks as graphs, and profiles of them as runtimes write them."""

from __future__ import annotations

from collections.abc import Callable

from latency_tables.graph import Graph, Node, Parameter, Source, Value, compose
from latency_tables.operator_groups import OperatorCosts, ProfileLine, match


def conv(name: str, source: str, target: str, group: int = 1) -> Node:
    attributes = (("group", group),) if group > 1 else ()
    inputs = (source, f"{name}.weight")
    return Node(op="Conv", name=name, inputs=inputs, outputs=(target,), attributes=attributes)


def weight(name: str, *shape: int) -> Parameter:
    source = Source(transform="copy", tensors=(name,))
    return Parameter(name=f"{name}.weight", shape=shape, fan_in=shape[1], source=source)


def relu(name: str, source: str, target: str) -> Node:
    return Node(op="Relu", name=name, inputs=(source,), outputs=(target,))


def inverted(channels: int, middle: int, size: int, kernel: int = 3) -> Graph:
    """1x1 and ReLU, depthwise and ReLU, 1x1, added to the input."""
    narrow, wide = (1, channels, size, size), (1, middle, size, size)
    shapes = {"1": wide, "2": wide, "3": wide, "4": wide, "5": narrow, "6": narrow}
    return Graph.of(
        input=Value(name="input", shape=narrow),
        output="6",
        nodes=[
            conv("conv1", "input", "1"),
            relu("relu1", "1", "2"),
            conv("conv2", "2", "3", group=middle),
            relu("relu2", "3", "4"),
            conv("conv3", "4", "5"),
            Node(op="Add", name="add1", inputs=("5", "input"), outputs=("6",)),
        ],
        values=[Value(name=name, shape=shape) for name, shape in shapes.items()],
        parameters=[
            weight("conv1", middle, channels, 1, 1),
            weight("conv2", middle, 1, kernel, kernel),
            weight("conv3", channels, middle, 1, 1),
        ],
    )


def network(*middles: int, channels: int = 8, size: int = 6) -> Graph:
    return compose([(f"b{i}", inverted(channels, m, size)) for i, m in enumerate(middles)])


def fused_lines(graph: Graph, ns: float = 1000.0) -> list[ProfileLine]:
    """One line per convolution, named as onnxruntime does: after what the fused operator gives."""
    lines = []
    for i in range(len(graph.sections)):
        lines += [
            ProfileLine(name=f"b{i}/2_nchwc", op="Conv", ns=ns),
            ProfileLine(name=f"b{i}/4_nchwc", op="Conv", ns=ns),
            ProfileLine(name=f"b{i}/5_nchwc", op="Conv", ns=ns),
        ]
    return lines


def timed(graph: Graph, truth: Callable[[OperatorCosts], float]) -> list[ProfileLine]:
    """:func:`fused_lines` with the times that ``truth`` gives their operators."""
    plain = fused_lines(graph)
    found = [truth(group.costs) for group in match(graph, plain).groups]
    return [
        ProfileLine(name=line.name, op=line.op, ns=ns)
        for line, ns in zip(plain, found, strict=True)
    ]
