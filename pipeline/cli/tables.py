"""``hilnas tables``: build, look at, check and exchange latency tables."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from latency_tables.errors import UsageError
from pipeline.cli.jobs import open_job, with_job
from pipeline.cli.options import table_path, with_json, with_table


@click.group()
def tables() -> None:
    """Latency tables of your devices."""


@tables.command()
@with_job
def build(as_json: bool, **job: Any) -> None:
    """Measure networks of the space of a run file on its devices, and fit the latency model."""
    opened = open_job(**job)
    opened.run(until="table")
    opened.print_tables(as_json=as_json)


@tables.command()
@with_table
@with_json
def show(table: Path | None, as_json: bool) -> None:
    """List what the table holds: device, space, runtime, threads, networks, dates."""
    from rich.console import Console

    from latency_tables.store import TableStore
    from pipeline.run.tables import render_summaries

    path = table_path(table)
    if not path.exists():
        if table is not None:
            raise UsageError(f"there is no latency table at {table}", hint="hilnas tables show")
        summaries = []
    else:
        with TableStore(path) as store:
            summaries = store.summaries()
    if as_json:
        click.echo(json.dumps([asdict(s) for s in summaries], indent=2))
    else:
        render_summaries(summaries, Console())


@tables.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--device", default="local", show_default=True, help="Name or fingerprint.")
@click.option("--space", "space_id", help="Id of the space; needed where there are several.")
@with_table
def export(file: Path, device: str, space_id: str | None, table: Path | None) -> None:
    """Write one table as JSON lines: readable, diffable, mergeable."""
    from latency_tables.interchange import export_table
    from latency_tables.store import TableStore

    with TableStore(table_path(table)) as store:
        n_records = export_table(store, file, device=device, space_id=space_id)
    click.echo(f"wrote {n_records} records to {file}")


@tables.command(name="import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@with_table
def import_(file: Path, table: Path | None) -> None:
    """Add the records of a JSON-lines file to the table."""
    from latency_tables.interchange import import_table
    from latency_tables.store import TableStore

    with TableStore(table_path(table)) as store:
        found = import_table(store, file)
    click.echo(f"{found.n_new} new of {found.n_read} records from {file}")
