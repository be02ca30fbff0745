"""The levels of cost of a run, from the lines of its training log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.model import LevelHistory, LevelPoint


def level_history(rows: Sequence[Mapping[str, Any]]) -> LevelHistory | None:
    """What a strategy with levels of cost has logged; None where none did.

    >>> level_history([{"step": 1, "loss": 2.0}]) is None
    True
    """
    logged = [row for row in rows if "level_probabilities" in row]
    if not logged:
        return None
    return LevelHistory(
        cost=logged[0]["level_cost"],
        unit=logged[0]["level_unit"],
        targets=tuple(logged[0]["level_targets"]),
        points=tuple(
            LevelPoint(
                step=row["step"],
                probabilities=tuple(row["level_probabilities"]),
                losses=tuple(row["level_losses"]),
                entropy=row["level_entropy"],
            )
            for row in logged
        ),
    )
