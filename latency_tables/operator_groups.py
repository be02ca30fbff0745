"""Which operators of a network a line of a runtime's profile stands for.

Runtimes fuse: one line may hold a convolution, its activation and an addition. They name such a
line after an operator (onnxruntime, OpenVINO) or after the tensor that the fused operator gives,
with something appended: ``layer1/2_nchwc``, ``stem/conv1/WithoutBiases``. Here such a line becomes
a :class:`Group`: the operators that it holds, within one section of the graph.

1. A line belongs to the operator or the tensor with the longest name that its own begins with.
2. Where it is a tensor's, operators before it that have no line of their own are in it, back to the
   one that gave the line its type or that multiplies.
3. An operator that still has no line was fused into what it reads, else it costs nothing.

Lines that name nothing of the network (changes of layout) stay unmatched: their time is told, and
never attributed to an operator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from latency_tables.costs import MACS, VIEWS, conv_kind, section_shapes
from latency_tables.graph import Graph, Node, Section

_SEPARATORS = "_/:"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileLine:
    """One line of a profile: name and type as the runtime says, mean time per run in ns."""

    name: str
    op: str
    ns: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCosts:
    """What a group costs: elements that it reads and writes, MACs, bytes of weights.

    ``kind`` is the kind of its heaviest operator, ``config`` equal for groups that compute the same
    on tensors of the same shapes.
    """

    kind: str
    config: tuple[object, ...]
    macs: float
    read: float
    written: float
    weight_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Operators that ran as one, and how long they took in ns."""

    costs: OperatorCosts
    ns: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """Groups of a profile, and the time in ns of lines that name nothing of the network."""

    groups: tuple[Group, ...]
    n_lines: int
    total_ns: float
    unmatched_ns: float
    unmatched: tuple[str, ...]


@dataclass(slots=True)
class Fusion:
    """Which pairs of operators a runtime fuses, as counted in profiles.

    >>> fusion = Fusion()
    >>> fusion.seen[("Conv", "Relu")] += 3
    >>> fusion.fused[("Conv", "Relu")] += 2
    >>> fusion.fuses("Conv", "Relu"), fusion.fuses("Conv", "Add")
    (True, False)
    """

    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    fused: Counter[tuple[str, str]] = field(default_factory=Counter)

    def fuses(self, producer: str, consumer: str) -> bool:
        """Whether most operators ``consumer`` after a ``producer`` were part of its line."""
        pair = (producer, consumer)
        return 2 * self.fused[pair] > self.seen[pair]


def match(graph: Graph, lines: Sequence[ProfileLine], fusion: Fusion | None = None) -> Matched:
    """Attribute the lines of a profile to the operators of ``graph``; count pairs in ``fusion``."""
    names = {node.name: node for node in graph.nodes}
    tensors = {name: node for node in graph.nodes for name in node.outputs}
    found: dict[str, tuple[float, str]] = {}  # operator → ns, type to go back to ("" for none)
    unmatched: list[ProfileLine] = []
    for line in lines:
        owner, backwards = _owner(line.name, names, tensors)
        if owner is None:
            unmatched.append(line)
            continue
        ns, back_to = found.get(owner.name, (0.0, ""))
        found[owner.name] = ns + line.ns, line.op if backwards else back_to
    groups: list[Group] = []
    for section in graph.sections:
        hosts = _hosts(section, found)
        if fusion is not None:
            _count(section, hosts, fusion)
        for host, nodes in _members(section, hosts):
            groups.append(Group(costs=operator_costs(section, nodes), ns=found[host][0]))
    return Matched(
        groups=tuple(groups),
        n_lines=len(lines),
        total_ns=sum(line.ns for line in lines),
        unmatched_ns=sum(line.ns for line in unmatched),
        unmatched=tuple(line.name for line in unmatched),
    )


def expected(section: Section, fusion: Fusion) -> list[OperatorCosts]:
    """Groups that a section would run as, by the pairs of ``fusion``."""
    hosts: dict[str, str] = {}
    producers = _producers(section)
    for node in section.nodes:
        before = [p for p in producers[node.name] if fusion.fuses(p.op, node.op)]
        hosts[node.name] = hosts[before[-1].name] if before else node.name
    return [operator_costs(section, nodes) for _, nodes in _members(section, hosts)]


def operator_costs(section: Section, nodes: Sequence[Node]) -> OperatorCosts:
    """Costs of operators of a section that run as one."""
    shapes = section_shapes(section)
    weights = {p.name: p.n_bytes for p in section.parameters}
    made = {name for node in nodes for name in node.outputs}
    known = {section.input.name, *(v.name for v in section.values)}
    elsewhere = {n for node in section.nodes if node not in nodes for n in node.inputs}
    macs = {node.name: MACS[node.op](node, shapes)[1] for node in nodes if node.op in MACS}
    main = max(nodes, key=lambda node: macs.get(node.name, 0))
    read = {n for node in nodes for n in node.inputs if n in known and n not in made}
    left = {n for n in made if n in elsewhere or n == section.output.name}
    held = {n for node in nodes for n in node.inputs if n in weights}
    return OperatorCosts(
        kind=_kind(main, shapes),
        config=tuple(_config(node, shapes) for node in nodes),
        macs=float(sum(macs.values())),
        read=float(sum(_size(shapes[n]) for n in read)),
        written=float(sum(_size(shapes[n]) for n in left or made)),
        weight_bytes=float(sum(weights[n] for n in held)),
    )


def _kind(node: Node, shapes: Mapping[str, tuple[int, ...]]) -> str:
    if node.op == "Conv":
        return f"Conv {conv_kind(node, shapes[node.inputs[1]])}"
    return "view" if node.op in VIEWS else node.op


def _config(node: Node, shapes: Mapping[str, tuple[int, ...]]) -> tuple[object, ...]:
    operands = tuple(shapes[n] for n in node.inputs if n)
    return node.op, operands, tuple(shapes[n] for n in node.outputs), node.attributes


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _owner(
    name: str, names: Mapping[str, Node], tensors: Mapping[str, Node]
) -> tuple[Node | None, bool]:
    """The operator that a line belongs to, and whether the line has the name of its output."""
    while name:
        if name in names:
            return names[name], False
        if name in tensors:
            return tensors[name], True
        cut = max(name.rfind(separator) for separator in _SEPARATORS)
        name = name[: max(cut, 0)]
    return None, False


def _producers(section: Section) -> dict[str, list[Node]]:
    """Operator → those of the section that it reads from, in their order."""
    makers = {name: i for i, node in enumerate(section.nodes) for name in node.outputs}
    return {
        node.name: [
            section.nodes[i] for i in sorted({makers[n] for n in node.inputs if n in makers})
        ]
        for node in section.nodes
    }


def _hosts(section: Section, found: Mapping[str, tuple[float, str]]) -> dict[str, str]:
    """Operator → the operator whose line holds it; those that no line holds are left out."""
    producers = _producers(section)
    hosts = {node.name: node.name for node in section.nodes if node.name in found}
    by_name = {node.name: node for node in section.nodes}
    for name in list(hosts):
        _, back_to = found[name]
        waiting = [by_name[name]] if back_to else []
        while waiting:
            node = waiting.pop()
            if node.op in MACS or node.op == back_to:
                continue
            for producer in producers[node.name]:
                if producer.name not in hosts:
                    hosts[producer.name] = name
                    waiting.append(producer)
    for node in section.nodes:
        before = [hosts[p.name] for p in producers[node.name] if p.name in hosts]
        if node.name not in hosts and before:
            hosts[node.name] = before[-1]
    return hosts


def _members(section: Section, hosts: Mapping[str, str]) -> Iterable[tuple[str, list[Node]]]:
    members: dict[str, list[Node]] = {}
    for node in section.nodes:
        if node.name in hosts:
            members.setdefault(hosts[node.name], []).append(node)
    return members.items()


def _count(section: Section, hosts: Mapping[str, str], fusion: Fusion) -> None:
    """Count each pair of neighbours, and whether one line held both."""
    producers = _producers(section)
    for node in section.nodes:
        if node.name not in hosts:
            continue
        near: Collection[Node] = [p for p in producers[node.name] if p.name in hosts]
        fused = [p for p in near if hosts[p.name] == hosts[node.name]]
        for producer in near if not fused else fused[-1:]:
            fusion.seen[producer.op, node.op] += 1
            fusion.fused[producer.op, node.op] += bool(fused)
