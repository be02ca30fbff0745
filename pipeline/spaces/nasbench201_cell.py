"""Cells of NAS-Bench-201 as data: which edges live, what runs in which order, which are equal.

A cell has four nodes; node 0 is its input, node 3 its output. Each of the six edges from a node to
a later one holds an operator, and a node is the sum of what its edges bring. An edge on no path of
operators from input to output is dead: nothing of it is run.

A live cell becomes a list of :class:`Step`. Equal steps are one step, as a runtime that removes
common subexpressions would have it: the ReLU (or the average pool) of a node is computed once for
all edges that need it, and a node that is only a skip of another *is* the other. A convolution has
weights of its own, so two of them are never equal.

A cell without any path gives zeros. Its one step multiplies the input by zero, as the benchmark
does, so that such a network still reads its picture and can be recorded, trained and timed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, permutations, product
from typing import Literal

OPERATORS = ("none", "skip", "conv1x1", "conv3x3", "avgpool3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""(from, to), in the order of the benchmark's own notation."""
LABELS = tuple(f"op_e{start}{end}" for start, end in EDGES)
CONVOLUTIONS = {"conv1x1": 1, "conv3x3": 3}
"""Operator → kernel."""
N_NODES = 4
N_GENOMES = 15_625
"""Five operators on six edges."""

Operators = tuple[str, ...]
"""One operator per edge, in the order of :data:`EDGES`."""

StepKind = Literal["relu", "pool", "conv1x1", "conv3x3", "add", "zero"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that a cell computes.

    Value 0 is the cell's input, value i what the i-th step gives; ``reads`` names such values.
    ``edge`` is the label of a convolution's edge.
    """

    kind: StepKind
    reads: tuple[int, ...]
    edge: str = ""


def live_operators(operators: Operators) -> Operators:
    """The cell with every dead edge set to ``none``.

    >>> live_operators(("conv3x3", "none", "none", "skip", "none", "none"))  # node 1 leads nowhere
    ('none', 'none', 'none', 'skip', 'none', 'none')
    """
    reached, useful = {0}, {N_NODES - 1}
    real = [edge for edge, op in zip(EDGES, operators, strict=True) if op != "none"]
    for start, end in real:  # in the order of the nodes
        if start in reached:
            reached.add(end)
    for start, end in reversed(real):
        if end in useful:
            useful.add(start)
    return tuple(
        op if start in reached and end in useful else "none"
        for (start, end), op in zip(EDGES, operators, strict=True)
    )


@lru_cache(maxsize=N_GENOMES)
def steps_of(operators: Operators) -> tuple[Step, ...]:
    """What a cell runs, in order; its output is the last step's value, or its input without steps.

    >>> [s.kind for s in steps_of(("conv1x1", "conv3x3", "none", "skip", "skip", "avgpool3x3"))]
    ['relu', 'conv1x1', 'conv3x3', 'add', 'pool', 'add']
    """
    steps: dict[Step, int] = {}
    nodes = [0]
    live = dict(zip(EDGES, live_operators(operators), strict=True))

    def value(kind: StepKind, *reads: int, edge: str = "") -> int:
        return steps.setdefault(Step(kind=kind, reads=reads, edge=edge), len(steps) + 1)

    def brought(edge: tuple[int, int]) -> int:
        source, operator = nodes[edge[0]], live[edge]
        if operator == "skip":
            return source
        if operator == "avgpool3x3":
            return value("pool", source)
        kind: StepKind = "conv1x1" if operator == "conv1x1" else "conv3x3"
        return value(kind, value("relu", source), edge=LABELS[EDGES.index(edge)])

    for node in range(1, N_NODES):
        terms = [edge for edge in EDGES if edge[1] == node and live[edge] != "none"]
        total = -1  # of a node that nothing reaches: no live edge leaves it
        for edge in terms:
            term = brought(edge)
            total = term if total < 0 else value("add", total, term)
        nodes.append(total)
    if nodes[-1] < 0:
        value("zero", 0)
    return tuple(steps)


# -- isomorphism ---------------------------------------------------------------------------------


@lru_cache(maxsize=N_GENOMES)
def cell_key(operators: Operators) -> str:
    """A text that two cells share if and only if they run the same steps, but for their order.

    Sums are unordered, and a sum that only another sum reads is part of it. What several steps read
    is written once, ``#n=[…]``, and ``#n`` afterwards: a value that is computed once and one that
    is computed twice with different weights are different networks.

    >>> first = ("conv1x1", "skip", "none", "none", "avgpool3x3", "conv3x3")
    >>> second = ("skip", "conv1x1", "none", "none", "conv3x3", "avgpool3x3")  # nodes 1, 2 swapped
    >>> cell_key(first) == cell_key(second), cell_key(first)
    (True, 'conv3x3(#1=[relu(x)])+pool(conv1x1(#1))')
    """
    steps = steps_of(operators)
    uses = Counter(read for step in steps for read in step.reads)
    children: list[tuple[int, ...]] = [()]
    for step in steps:
        children.append(tuple(_terms(steps, step, uses)))
    unshared = ["x"]  # texts without regard to what is shared: equal for isomorphic values
    for step, reads in zip(steps, children[1:], strict=True):
        unshared.append(_text(step.kind, sorted(unshared[r] for r in reads)))
    sums = [i for i, step in enumerate(steps, 1) if step.kind == "add"]
    orders = [list(_orders(children[i], unshared)) for i in sums]
    return min(
        _written(steps, {**dict(enumerate(children)), **dict(zip(sums, chosen, strict=True))}, uses)
        for chosen in product(*orders)
    )


def _terms(steps: Sequence[Step], step: Step, uses: Counter[int]) -> Iterator[int]:
    """What a step reads; of a sum what it adds, through sums that nothing else reads."""
    for read in step.reads:
        if step.kind == "add" and read and steps[read - 1].kind == "add" and uses[read] == 1:
            yield from _terms(steps, steps[read - 1], uses)
        else:
            yield read


def _orders(terms: tuple[int, ...], texts: Sequence[str]) -> set[tuple[int, ...]]:
    """Every order of a sum's terms that is sorted by text: more than one where texts are equal."""
    return {
        order
        for order in permutations(terms)
        if all(texts[a] <= texts[b] for a, b in pairwise(order))
    }


def _text(kind: StepKind, reads: Sequence[str]) -> str:
    return "+".join(reads) if kind == "add" else f"{kind}({reads[0]})"


def _written(
    steps: Sequence[Step], children: dict[int, tuple[int, ...]], uses: Counter[int]
) -> str:
    """The output as a text, children in the given order."""
    numbers: dict[int, int] = {}

    def write(value: int) -> str:
        if value == 0:
            return "x"
        if value in numbers:
            return f"#{numbers[value]}"
        text = _text(steps[value - 1].kind, [write(child) for child in children[value]])
        if uses[value] > 1:
            numbers[value] = len(numbers) + 1
            return f"#{numbers[value]}=[{text}]"
        return text if value == len(steps) or steps[value - 1].kind != "add" else f"({text})"

    return write(len(steps))
