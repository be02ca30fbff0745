"""Latency tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from latency_tables.store import TableSummary


def render_summaries(summaries: Sequence[TableSummary], console: Console) -> None:
    """One line per device, space and setting."""
    if not summaries:
        console.print("the table is empty; [bold]hilnas tables build digits[/bold] measures some")
        return
    table = Table(box=None)
    for column in ("device", "space", "runtime", "threads", "cores"):
        table.add_column(column)
    for column in ("networks", "records", "rejected"):
        table.add_column(column, justify="right")
    table.add_column("last measured")
    for s in summaries:
        table.add_row(
            f"{escape(s.device_name)} {s.device_fp[:8]}",
            f"{escape(s.space_name)} {s.space_id[:8]}",
            escape(f"{s.runtime.get('name')} {s.runtime.get('version')}"),
            str(s.threads),
            ",".join(map(str, s.cores)) or "any",
            str(s.n_networks),
            str(s.n_records),
            str(s.n_rejected),
            escape(s.last_utc),
        )
    console.print(table)
