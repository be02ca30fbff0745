"""Latency tables in the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from device_agents.link.client import clean_text
from latency_tables.store import TableSummary

if TYPE_CHECKING:
    from pipeline.run.table_time import TimeEstimate

MAX_SHOWN = 600


def shown(text: str) -> str:
    """A text that somebody else wrote, as it may stand in the terminal."""
    return escape(clean_text(text, MAX_SHOWN))


def render_summaries(summaries: Sequence[TableSummary], console: Console) -> None:
    """One line per device, space and setting."""
    if not summaries:
        console.print("the table is empty; [bold]hilnas tables build digits[/bold] measures some")
        return
    table = Table(box=None)
    for column in ("device", "space", "runtime", "threads", "cores"):
        table.add_column(column)
    for column in ("networks", "records", "sessions", "rejected"):
        table.add_column(column, justify="right")
    table.add_column("last measured")
    for s in summaries:
        table.add_row(
            f"{shown(s.device_name)} {s.device_fp[:8]}",
            f"{shown(s.space_name)} {s.space_id[:8]}",
            shown(f"{s.runtime.get('name')} {s.runtime.get('version')}"),
            str(s.threads),
            ",".join(map(str, s.cores)) or "any",
            *map(str, (s.n_networks, s.n_records, s.n_sessions, s.n_rejected)),
            shown(s.last_utc),
        )
    console.print(table)
    for s in summaries:
        for line in details(s):
            console.print(f"  {shown(line)}", soft_wrap=True)


def print_times(planned: Sequence[TimeEstimate], *, at_most: bool, as_json: bool) -> None:
    """What building the tables would take, one line per device."""
    if as_json:
        print(json.dumps([estimate.to_dict() for estimate in planned], indent=2))
        return
    console = Console()
    for estimate in planned:
        console.print(f"{'at most ' if at_most else ''}{shown(str(estimate))}", soft_wrap=True)


def details(s: TableSummary) -> list[str]:
    """What else is known of one table: the device itself, claims, overridden gates, the model."""
    whose = f"{s.device_name} {s.device_fp[:8]}, {s.runtime.get('name')}, {s.threads} threads"
    lines = []
    about = ", ".join(text for text in (s.soc, f"kernel {s.kernel}" if s.kernel else "") if text)
    if about:
        lines.append(f"{whose}: {about}; measured {s.first_utc} to {s.last_utc}")
    if s.labels:
        lines.append(f"{whose}: labels are said to be {', '.join(s.labels)}")
    if s.accepted:
        lines.append(f"{whose}: refusals accepted: {', '.join(s.accepted)}")
    if s.model is not None and isinstance(s.model.get("mape"), float):
        lines.append(f"{whose}: the last latency model was off by {s.model['mape']:.1%} (MAPE)")
    return lines
