"""Which decisions of a space share an output head of the generator.

ShiftNAS has one head per *type* of decision (4 for its transformers). The type of a decision is its
label without numbers: ``block03_heads`` and ``block07_heads`` are both of type ``block_heads``.
Decisions of one type share a head where their choices are equal, or where all are numbers and there
are equally many: then choice j of n means the same step between the least and the most.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from latency_tables.arch import Decision
from latency_tables.errors import SpaceError


def head_names(decisions: Sequence[Decision]) -> dict[str, str]:
    """Label → name of its head.

    >>> head_names([
    ...     Decision(label="depth", choices=(2, 3)),
    ...     Decision(label="mb1_width", choices=(16, 24)),
    ...     Decision(label="mb2_width", choices=(24, 32)),
    ...     Decision(label="mb3_width", choices=(40, 48, 56)),
    ... ])
    {'depth': 'depth', 'mb1_width': 'mb_width', 'mb2_width': 'mb_width', 'mb3_width': 'mb_width.2'}
    """
    found: dict[str, list[object]] = {}
    names = {}
    for decision in decisions:
        kind = re.sub(r"\d+", "", decision.label)
        numbers = not any(isinstance(choice, str) for choice in decision.choices)
        like = len(decision.choices) if numbers else decision.choices
        alike = found.setdefault(kind, [])
        if like not in alike:
            alike.append(like)
        position = alike.index(like) + 1
        names[decision.label] = kind if position == 1 else f"{kind}.{position}"
    return names


def check_heads(decisions: Sequence[Decision], heads: Mapping[str, str]) -> dict[str, str]:
    """``heads`` in the order of the decisions.

    Raises:
        SpaceError: a decision lacks a head, or those of one head have unequally many choices.
    """
    sizes: dict[str, int] = {}
    for decision in decisions:
        name = heads.get(decision.label)
        if name is None:
            raise SpaceError(f"decision {decision.label!r} has no head of the generator")
        size = sizes.setdefault(name, len(decision.choices))
        if size != len(decision.choices):
            raise SpaceError(
                f"head {name!r} of the generator has {size} outputs, but {decision.label!r} has "
                f"{len(decision.choices)} choices"
            )
    return {d.label: heads[d.label] for d in decisions}
