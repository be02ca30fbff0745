"""Cut a followed model into segments: pieces with one input and one output.

A model may be cut wherever a single tensor leads on. Costs are tabulated per segment, so a segment
should depend on few decisions: neighbours are joined only where that couples no further ones, and a
batch norm or an activation stays with the layer before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from latency_tables.arch import Decision
from latency_tables.errors import SpaceError
from pipeline.spaces.own_model import dims
from pipeline.spaces.own_model.analysis import Analysis
from pipeline.spaces.own_model.pieces import Body, Layer, Stack
from pipeline.spaces.own_model.trace import substitute
from pipeline.spaces.own_model.values import Value, shown, values_in

MAX_COMBINATIONS = 4096
"""Networks of one segment that are recorded, at most: each takes a few milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One segment: its name, its calls, and the decisions that it or its input depends on.

    ``depth`` is (label, n) where the segment is there only if that decision is n or more.
    """

    name: str
    body: Body
    labels: tuple[str, ...]
    depth: tuple[str, int] | None = None

    def present(self, arch: Mapping[str, Any]) -> bool:
        """Whether an architecture has it."""
        return self.depth is None or int(arch[self.depth[0]]) >= self.depth[1]


@dataclass(slots=True)
class _Chunk:
    nodes: list[fx.Node]
    source: fx.Node
    result: fx.Node
    labels: set[str]
    light: bool
    body: Body | None = None
    path: str = ""
    depth: tuple[str, int] | None = None


def cut(analysis: Analysis) -> tuple[Cut, ...]:
    """The segments of a model, in order.

    Raises:
        SpaceError: a segment depends on so many decisions that its costs cannot be tabulated.
    """
    graph = analysis.body.graph
    _settle_sizes(graph, analysis)
    _place_weights(graph)
    chunks = _joined(_chunks(graph, analysis))
    cuts: list[Cut] = []
    for chunk in chunks:
        name = _name(chunk, analysis.body, {c.name for c in cuts})
        labels = tuple(d.label for d in analysis.decisions if d.label in chunk.labels)
        _check_combinations(name, labels, analysis.decisions)
        body = chunk.body or _body_of(chunk, analysis.body)
        cuts.append(Cut(name=name, body=body, labels=labels, depth=chunk.depth))
    return tuple(cuts)


# -- making the graph cuttable -------------------------------------------------------------------


def _settle_sizes(graph: fx.Graph, analysis: Analysis) -> None:
    """Sizes that never change become numbers; the batch is asked of the tensor at hand.

    Otherwise ``b = x.size(0)`` at the top would lead past every place where a model can be cut.
    """
    for node, dim in analysis.sizes.items():
        if node.graph is not graph:
            continue
        parts = dims.resolve(dim)
        if any(part.atom.label for part in parts):
            continue
        for user in list(node.users):
            batch = parts[0].atom.fixed == dims.BATCH
            new = _batch_of(graph, user, analysis) if batch else dims.size_of(parts)
            if new is not None:
                substitute(user, node, new)
    for node in reversed(list(graph.nodes)):
        number = node in analysis.values and not values_in(analysis.values[node])
        if number and not node.users and node.op in ("call_function", "call_method"):
            graph.erase_node(node)


def _batch_of(graph: fx.Graph, user: fx.Node, analysis: Analysis) -> fx.Node | None:
    """``size(0)`` of a tensor that ``user`` reads anyway."""
    for tensor in user.all_input_nodes:
        value = analysis.values.get(tensor)
        if isinstance(value, Value) and value.axes:
            parts = dims.resolve(value.axes[0])
            if len(parts) == 1 and parts[0].atom.fixed == dims.BATCH and parts[0].unit == 1:
                with graph.inserting_before(user):
                    return graph.call_method("size", (tensor, 0))
    return None


def _place_weights(graph: fx.Graph) -> None:
    """Parameters are read right where they are used."""
    for node in [n for n in graph.nodes if n.op == "get_attr"]:
        for user in list(node.users):
            with graph.inserting_before(user):
                copied = graph.get_attr(str(node.target))
            substitute(user, node, copied)
        graph.erase_node(node)


# -- cutting and joining -------------------------------------------------------------------------


def _chunks(graph: fx.Graph, analysis: Analysis) -> list[_Chunk]:
    """The finest cut."""
    nodes = [n for n in graph.nodes if n.op not in ("placeholder", "output")]
    source = next(n for n in graph.nodes if n.op == "placeholder")
    place = {node: i for i, node in enumerate(graph.nodes)}
    last = {node: max((place[u] for u in node.users), default=-1) for node in graph.nodes}
    chunks: list[_Chunk] = []
    open_nodes, chunk = {source}, list[fx.Node]()
    for node in nodes:
        chunk.append(node)
        open_nodes = {n for n in (*open_nodes, node) if last[n] > place[node]}
        if len(open_nodes) == 1:
            (result,) = open_nodes
            tensor = isinstance(analysis.values.get(result), Value) and result.op != "get_attr"
            if tensor and result is not source:
                stack = _stack_at(chunk, analysis)
                if stack is None:
                    chunks.append(_described(chunk, source, result, analysis))
                else:
                    chunks += _levels(chunk[0], stack, analysis)
                source, chunk = result, []
    if not chunks:
        raise SpaceError("the model calls nothing")
    return chunks


def _stack_at(nodes: Sequence[fx.Node], analysis: Analysis) -> Stack | None:
    """The stack of elastic depth that a chunk is, if it is one."""
    if len(nodes) != 1 or nodes[0].op != "call_module":
        return None
    item = analysis.body.items[str(nodes[0].target)]
    return item if isinstance(item, Stack) else None


def _levels(node: fx.Node, stack: Stack, analysis: Analysis) -> list[_Chunk]:
    """Every module of a stack as a segment, which shallower architectures leave out."""
    least = min(d.choices[0] for d in analysis.decisions if d.label == stack.label)
    found = []
    for n, body in enumerate(stack.bodies, start=1):
        source = next(x for x in body.graph.nodes if x.op == "placeholder")
        value: Value = analysis.values[source]
        labels = {label for axis in value.axes for label in dims.labels_of(axis)}
        depth = (stack.label, n) if n > int(least) else None
        labels |= {*body.labels(), *([stack.label] if depth else [])}
        found.append(
            _Chunk(
                nodes=[node],
                source=source,
                result=node,
                labels=labels,
                light=False,
                body=body,
                path=f"{node.target}.{n - 1}",
                depth=depth,
            )
        )
    return found


def _described(
    nodes: list[fx.Node], source: fx.Node, result: fx.Node, analysis: Analysis
) -> _Chunk:
    items = analysis.body.items
    targets = [str(n.target) for n in nodes if n.op in ("call_module", "get_attr")]
    value: Value = analysis.values[source]
    labels = {label for axis in value.axes for label in dims.labels_of(axis)}
    probe = Body(graph=analysis.body.graph, items={t: items[t] for t in targets})
    labels |= set(probe.labels())
    light = all(isinstance(items[t], Layer) and not _heavy(items[t], analysis) for t in targets)
    return _Chunk(nodes=nodes, source=source, result=result, labels=labels, light=light)


def _heavy(item: object, analysis: Analysis) -> bool:
    """Whether a layer holds more than vectors."""
    if not isinstance(item, Layer):
        return True
    if item.path.rpartition(".")[2] in analysis.body.extra:
        return False
    module = analysis.model.get_submodule(item.path)
    return any(p.ndim > 1 for p in module.parameters())


def _joined(chunks: Sequence[_Chunk]) -> list[_Chunk]:
    """Join neighbours where that couples no further decisions."""
    joined: list[_Chunk] = []
    for chunk in chunks:
        before = joined[-1] if joined else None
        whole = chunk.body is not None or (before is not None and before.body is not None)
        if (
            before is not None
            and not whole
            and (
                before.labels == chunk.labels
                or (chunk.light and chunk.labels <= before.labels)
                or (before.light and before.labels <= chunk.labels)
            )
        ):
            before.nodes += chunk.nodes
            before.result = chunk.result
            before.labels |= chunk.labels
            before.light = before.light and chunk.light
        else:
            joined.append(chunk)
    return joined


def _body_of(chunk: _Chunk, body: Body) -> Body:
    """A graph of its own."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {chunk.source: graph.placeholder("x")}
    for node in chunk.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[chunk.result])
    targets = [str(n.target) for n in chunk.nodes if n.op in ("call_module", "get_attr")]
    return Body(
        graph=graph,
        items={t: body.items[t] for t in targets},
        extra={t: body.extra[t] for t in targets if t in body.extra},
    )


def _name(chunk: _Chunk, body: Body, taken: set[str]) -> str:
    """The longest path that all layers with weights share, else the first of them."""
    targets = [str(n.target) for n in chunk.nodes if n.op in ("call_module", "get_attr")]
    paths = [shown(t).split(".") for t in ([chunk.path] if chunk.path else targets)] or [["rest"]]
    common: list[str] = []
    for steps in zip(*paths, strict=False):
        if len(set(steps)) != 1:
            break
        common.append(steps[0])
    name = "_".join(common or paths[0]).replace(" ", "_")
    if name not in taken:
        return name
    return next(n for i in range(2, len(taken) + 3) if (n := f"{name}_{i}") not in taken)


def _check_combinations(name: str, labels: Sequence[str], decisions: Sequence[Decision]) -> None:
    counts: Mapping[str, int] = {d.label: len(d.choices) for d in decisions}
    n = math.prod(counts[label] for label in labels)
    if n > MAX_COMBINATIONS:
        shown_labels = ", ".join(f"{label} ({counts[label]})" for label in labels)
        raise SpaceError(
            f"the part {name!r} cannot be cut, because several tensors lead through it, and "
            f"depends on {len(labels)} decisions: {shown_labels}; {n:,} combinations are more than "
            f"the {MAX_COMBINATIONS:,} that can be tabulated",
            hint="give linked layers one label=..., offer fewer options, or let skip connections "
            "and concatenations end sooner, so that a single tensor leads on",
        )
