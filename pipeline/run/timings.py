"""``--profile``: where the time of training and of the search went, as a table and as a file.

``timing.json`` holds the last profiled call of each stage. It says how fast this machine was and
nothing about results, so no stage depends on it.
"""

from __future__ import annotations

import json
from typing import Any

from latency_tables.files import write_json
from pipeline.run.context import RunContext
from pipeline.training.timing import NO_TIMER, PartTimer, Timer, report_lines, timer_for

TIMING_FILE = "timing.json"


def stage_timer(context: RunContext, parts: tuple[str, ...]) -> Timer:
    """A timer of these parts where the call asked for one; otherwise what costs nothing."""
    if not (context.profile and context.ranks.leads):
        return NO_TIMER
    return timer_for(context.torch_device, parts)


def report_timing(context: RunContext, stage: str, timer: Timer) -> None:
    """Print the table of a stage and put it into ``timing.json``; nothing without a profile."""
    if not isinstance(timer, PartTimer):
        return
    timing = timer.timing()
    for line in report_lines(timing):
        context.reporter.say(f"  {line}")
    path = context.folder.file(TIMING_FILE)
    write_json(
        path, {**_stages_of(path.read_text() if path.exists() else ""), stage: timing.to_dict()}
    )


def _stages_of(text: str) -> dict[str, Any]:
    """What other stages left; a damaged file is replaced, since it can be made again."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
