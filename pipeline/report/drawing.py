"""What is drawn of the chosen network: blocks, what holds for all of them, and a searched cell."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape

from markupsafe import Markup

from latency_tables.arch import Arch, Decision
from pipeline.report.figures import visible
from pipeline.report.model import Block

_EDGE = re.compile(r"op_e(\d)(\d)")
"""A decision that is an edge of a cell: from node, to node."""
_STEP, _TOP, _LANE, _RADIUS = 150, 34, 62, 15


def blocks_of(
    positions: Sequence[tuple[str, tuple[str, ...]]],
    decisions: Sequence[Decision],
    arch: Arch,
    macs: Mapping[str, float] | None = None,
) -> tuple[Block, ...]:
    """Blocks of an architecture, position by position.

    A block shows the decisions that carry its name; the others, such as an embedding dimension
    that all blocks share, are :func:`settings_of`. Blocks beyond a searched depth are left out.

    Args:
        positions: name and labels of every position, as a Space gives them.
        macs: multiply-accumulates by position name.

    >>> decisions = [Decision(label="depth", choices=(1, 2)),
    ...              Decision(label="b1", choices=("k3", "k5")),
    ...              Decision(label="b1_width", choices=(8, 16))]
    >>> arch = Arch({"depth": 1, "b1": "k5", "b1_width": 16})
    >>> positions = [("stem", ()), ("b1", ("b1", "b1_width"))]
    >>> [block.choice for block in blocks_of(positions, decisions, arch)]
    ['fixed', 'k5, width 16']
    """
    choices = {d.label: tuple(map(str, d.choices)) for d in decisions}
    blocks = []
    for name, labels in positions:
        cost = None if macs is None else macs.get(name)
        if cost == 0 and any("depth" in label for label in labels):
            continue
        own = [
            label
            for label in labels
            if _belongs(label, name) and label in arch and not label.endswith("depth")
        ]
        words = [_words(label, name, arch) for label in own]
        blocks.append(
            Block(
                name=name,
                choice=", ".join(words) or "fixed",
                choices=choices.get(own[0], ()) if own else (),
                tone=str(arch[own[0]]) if own else "",
                macs=cost,
            )
        )
    return tuple(blocks)


def settings_of(
    positions: Sequence[tuple[str, tuple[str, ...]]], arch: Arch
) -> tuple[tuple[str, str], ...]:
    """Decisions of ``arch`` that carry no block's name, and what was decided.

    >>> settings_of([("b1", ("depth", "b1"))], Arch({"depth": 2, "b1": "k3"}))
    (('depth', '2'),)
    """
    names = [name for name, _ in positions]
    return tuple(
        (label, str(choice))
        for label, choice in arch.items()
        if not any(_belongs(label, name) for name in names) and not _EDGE.fullmatch(label)
    )


def cell_of(arch: Arch) -> dict[tuple[int, int], str]:
    """Edges of a searched cell with their operators; empty where no cell is searched.

    >>> cell_of(Arch({"op_e01": "skip_connect", "op_e02": "none"}))
    {(0, 1): 'skip_connect', (0, 2): 'none'}
    """
    found = ((_EDGE.fullmatch(label), str(choice)) for label, choice in arch.items())
    return {(int(m[1]), int(m[2])): operator for m, operator in found if m is not None}


def draw_cell(cell: Mapping[tuple[int, int], str], colours: Mapping[str, str]) -> Markup | None:
    """A cell as nodes on a line and an arc for every edge that carries something.

    Args:
        cell: (from node, to node) → operator; ``none`` carries nothing.
        colours: CSS class by operator.
    """
    if not cell:
        return None
    last = max(end for _, end in cell)
    # the longer an edge, the higher its arc; those of one length share a lane
    base = _TOP + _LANE * last
    width = _STEP * last + 120
    parts = []
    for (start, end), operator in sorted(cell.items(), key=lambda item: item[0]):
        if operator == "none":
            continue
        x, y = 60 + _STEP * start, 60 + _STEP * end
        height = _LANE * (end - start - 1) + (0 if end - start == 1 else _LANE * 0.5)
        middle = (x + y) / 2 + 22 * (start - last / 2 + 0.5) * (end - start > 1)
        top = base - height
        tone = escape(colours.get(operator, "fixed"))
        parts.append(
            f'<path class="edge {tone}" d="M{x} {base} Q{middle:.0f} '
            f'{base - 2 * height:.0f} {y} {base}"/>'
            f'<text class="edge-label" x="{middle:.0f}" y="{top - 6:.0f}" '
            f'text-anchor="middle">{escape(visible(operator))}</text>'
        )
    for node in range(last + 1):
        name = "in" if node == 0 else "out" if node == last else str(node)
        at = 60 + _STEP * node
        parts.append(
            f'<circle class="node" cx="{at}" cy="{base}" r="{_RADIUS}"/>'
            f'<text x="{at}" y="{base + 4}" text-anchor="middle">{name}</text>'
        )
    words = "; ".join(f"{a} to {b}: {visible(o)}" for (a, b), o in sorted(cell.items()))
    return Markup(
        f'<svg class="cell" viewBox="0 0 {width} {math.ceil(base + _RADIUS + 10)}" role="img" '
        f'aria-label="{escape(words)}">{"".join(parts)}</svg>'
    )


def _belongs(label: str, name: str) -> bool:
    """Whether a decision carries a position's name, or that of its stage (``mb2`` of ``mb2_1``)."""
    return label == name or label.startswith((f"{name}_", f"{_stage(name)}_"))


def _stage(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _words(label: str, name: str, arch: Arch) -> str:
    """What was decided, after what it is called unless that is the block's own name."""
    if label == name:
        return str(arch[label])
    what = label.removeprefix(f"{name}_").removeprefix(f"{_stage(name)}_")
    return f"{what.replace('_', ' ')} {arch[label]}"
