"""Which networks a run is after, and what its folder holds of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from latency_tables.errors import LimitError
from pipeline.run.folder import RunFolder
from pipeline.search.limits import load_limits
from pipeline.search.targets import Target, targets_of

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.run.context import RunContext


def run_targets(context: RunContext) -> tuple[Target, ...]:
    """The networks that a run is after, once its tables say what the limits are in numbers."""
    return folder_targets(context.folder, context.config)


def folder_targets(folder: RunFolder, config: RunConfig) -> tuple[Target, ...]:
    """:func:`run_targets` without a context; none before the tables are built."""
    path = folder.file("latency.json")
    if not path.exists():
        return ()
    limits = load_limits(json.loads(path.read_text()))
    return targets_of([d.name for d in config.device], limits, config.search.targets)


def target_files(context: RunContext, *names: str) -> list[str]:
    """These files of every target but the common one; the limits need not be known yet."""
    devices = [d.name for d in context.config.device]
    targets = targets_of(devices, (), context.config.search.targets)
    return [t.file(name) for t in targets if t.device is not None for name in names]


def winner_of(folder: RunFolder, target: Target) -> dict[str, Any] | None:
    """The winner's entry in a target's ``front.json``; None where there is no winner."""
    path = folder.file(target.file("front.json"))
    if not path.exists():
        return None
    front: dict[str, Any] = json.loads(path.read_text())
    winner = front["winner"]
    return None if winner is None else front["points"][winner]


def why_missing(folder: RunFolder, target: Target) -> str:
    """Why a finished search has no winner for a target; empty where it has one."""
    path = folder.file(target.file("front.json"))
    found = json.loads(path.read_text()) if path.exists() else {}
    return str(found.get("reason", ""))


def require_winners(folder: RunFolder, targets: Sequence[Target]) -> None:
    """Raise LimitError where a finished search found no network for one of its targets."""
    missing = [t for t in targets if why_missing(folder, t)]
    if not missing:
        return
    others = ", ".join(str(folder.file(t.file("."))) for t in targets if t not in missing)
    why = "; ".join(f"for {t}: {why_missing(folder, t)}" for t in missing)
    raise LimitError(
        f"there is no network {why}; those that were found are in {others}",
        hint="higher limits, or see 'hilnas space profile'; "
        '[search] targets = "common" looks for one network for all devices only',
    )
