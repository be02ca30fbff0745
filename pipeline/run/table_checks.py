"""``hilnas tables verify``, ``diff``, ``merge`` and ``import``: what they do and how it reads."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from device_agents.link.client import clean_text
from latency_tables.cost_table import CostTable
from latency_tables.diff import Difference
from latency_tables.errors import UsageError
from latency_tables.gates import Gate
from latency_tables.interchange import import_table
from latency_tables.merge import Merged
from latency_tables.salvage import salvage_table
from latency_tables.sources import is_store
from latency_tables.store import TableStore
from latency_tables.verify import CheckedTable, Verification, accept_gates, verify
from pipeline.run.tables import shown

MOST_SHOWN = 12


def verify_table(
    path: Path,
    *,
    source: str | None = None,
    device_fp: str | None = None,
    accept: Collection[str] = (),
) -> Verification:
    """Verify a file, with the costs of the space of ``source``; record what was accepted.

    Raises TableError where the file cannot be read, UsageError where acceptances cannot be kept.
    """
    if accept and not is_store(path):
        raise UsageError(
            f"{path} is a file of JSON lines; acceptances are recorded in a store",
            hint=f"hilnas tables import {path}, then hilnas tables verify --accept "
            f"{' --accept '.join(accept)}",
        )
    found = verify(path, accept=accept, cost_tables=_costs(source), device_fp=device_fp)
    if accept and not found.problems:
        with TableStore(path) as store:
            accept_gates(store, found, datetime.now(UTC).isoformat(timespec="seconds"))
    return found


def _costs(source: str | None) -> dict[str, CostTable]:
    if source is None:
        return {}
    from pipeline.run.job import read_source  # torch: only where a space is asked for
    from pipeline.run.profile import space_of

    settings = read_source(source)
    space = space_of(settings.config, settings.base)
    return {space.space_id: space.cost_table()}


def render_verification(found: Verification, console: Console) -> None:
    """Problems, then every table with its gates, then the verdict."""
    for problem in found.problems[:MOST_SHOWN]:
        console.print(f"[red]damaged:[/red] {shown(problem)}", soft_wrap=True)
    if len(found.problems) > MOST_SHOWN:
        console.print(f"… and {len(found.problems) - MOST_SHOWN} more; --json has them")
    for table in found.tables:
        _render_checked(table, console)
    if not found.tables and not found.problems:
        console.print("no latencies: nothing to judge")
    verdict = "[red]refused[/red]" if found.refused else "[green]usable[/green]"
    console.print(f"{shown(str(found.path))}: {verdict}")


def _render_checked(table: CheckedTable, console: Console) -> None:
    console.print(
        f"[bold]{shown(table.device_name)}[/bold] {table.name.device_fp[:8]}, space "
        f"{shown(table.space_name)} {table.name.space_id[:8]}: {table.n_networks} networks, "
        f"{table.n_records} records, {table.n_sessions} sessions, {table.n_rejected} rejected",
        soft_wrap=True,
    )
    for gate in table.report.gates:
        word = _word(gate, table.report.accepted)
        console.print(f"  {word} {gate.name}: {shown(gate.evidence)}", soft_wrap=True)
    for second in table.seconds[:MOST_SHOWN]:
        console.print(f"  second number of {second.net_id[:12]}: {shown(str(second))}")
    if table.accepted_before:
        console.print(f"  accepted before: {', '.join(map(shown, table.accepted_before))}")


def _word(gate: Gate, accepted: Collection[str]) -> str:
    if gate.passed:
        return "[green]ok[/green]      "
    if gate.name in accepted:
        return "[yellow]accepted[/yellow]"
    return "[red]refused[/red] " if gate.severity == "refuse" else "[yellow]warning[/yellow] "


def render_difference(found: Difference, console: Console) -> None:
    """Counts, the ratio, the networks that moved farthest, and what else differs."""
    console.print(
        f"{found.n_common} networks in both, {found.n_only_a} only in A ({shown(found.a)}), "
        f"{found.n_only_b} only in B ({shown(found.b)})"
    )
    if found.median_ratio is not None:
        console.print(
            f"B / A: median {found.median_ratio:.4f} "
            f"({found.median_low:.4f} to {found.median_high:.4f})"
        )
        console.print(
            f"{len(found.moved)} networks moved beyond noise, {len(found.stragglers)} of all moved "
            "otherwise than the median"
        )
    if found.kendall_tau is not None:
        console.print(
            f"order: Kendall's tau {found.kendall_tau:.3f}, Spearman {found.spearman:.3f}"
        )
    if found.moved:
        console.print(_moved_table(found))
    console.print("[bold]what else differs[/bold]" if found.reasons else "nothing else differs")
    for name, (a, b) in found.reasons.items():
        console.print(f"  {shown(name)}: {shown(str(a))} → {shown(str(b))}", soft_wrap=True)


def _moved_table(found: Difference) -> Table:
    table = Table(box=None)
    table.add_column("network")
    for column in ("A ms", "B ms", "B / A", "from", "to"):
        table.add_column(column, justify="right")
    for m in found.moved[:MOST_SHOWN]:
        numbers = (m.a_ms, m.b_ms, m.ratio, m.low, m.high)
        table.add_row(m.net_id[:12], *(f"{number:.4g}" for number in numbers))
    return table


def merged_lines(out: Path, found: Merged) -> list[str]:
    """What a merge did, line by line."""
    lines = [
        f"{out}: {found.n_records} records of {found.n_networks} networks in {found.n_sessions} "
        f"sessions on {len(found.devices)} devices",
        f"read {found.n_read}; {found.n_copies} were in several inputs, "
        f"{found.n_rejected} are rejected ones",
    ]
    for second in found.seconds:
        lines.append(f"not counted, a second number in one session: {second}")
    return lines


def import_file(store: TableStore, path: Path, *, salvage: bool) -> dict[str, Any]:
    """Import a file and say what happened. Raises TableError."""
    if not salvage:
        found, bad, rejected = import_table(store, path), [], None
    else:
        saved = salvage_table(store, path)
        found, rejected = saved.imported, saved.rejected_file
        bad = [{"line": line.number, "reason": line.reason} for line in saved.bad_lines]
    return {
        "n_read": found.n_read,
        "n_new": found.n_new,
        "bad_lines": bad,
        "rejected_file": None if rejected is None else str(rejected),
    }


def imported_lines(path: Path, found: dict[str, Any]) -> list[str]:
    """What an import did, line by line."""
    lines = [f"{found['n_new']} new of {found['n_read']} records from {path}"]
    bad = found["bad_lines"]
    lines += [f"not imported, {clean_text(line['reason'], 300)}" for line in bad[:MOST_SHOWN]]
    if bad:
        lines.append(f"{len(bad)} damaged lines are in {found['rejected_file']}")
    return lines
