"""``hilnas tables``: build, look at, check, compare and exchange latency tables."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from latency_tables.errors import UsageError
from pipeline.cli.jobs import open_job, with_job, with_model, with_module, with_overrides
from pipeline.cli.options import table_path, with_json, with_table

REFUSED = 6
"""Exit code of a table that must not be used, as TableError has it."""

_file = click.Path(path_type=Path, dir_okay=False)


@click.group()
def tables() -> None:
    """Latency tables of your devices."""


@tables.command()
@with_job
@click.option("--more", type=int, metavar="N", help="Measure N networks that it does not hold yet.")
@click.option("--until", metavar="TARGET", help="Go on until 'mape<4%' or 'within10>95%' is kept.")
@click.option("--at-most", default=300, show_default=True, help="Networks where --until gives up.")
@click.option("--plan", is_flag=True, help="Print how many networks and how long; measure nothing.")
def build(
    as_json: bool, more: int | None, until: str | None, at_most: int, plan: bool, **job: Any
) -> None:
    """Measure networks of the space of a run file on its devices, and fit the latency model.

    Stopped at any moment, the same command goes on: what is in the table is not measured again.
    """
    from pipeline.run.table_target import Extension, parse_target

    target = None if until is None else parse_target(until)
    extension = Extension(more=more, until=target, at_most=at_most)
    opened = open_job(**job)
    from pipeline.run.table_build import build_table, plan_table
    from pipeline.run.tables import print_times

    if plan:
        print_times(plan_table(opened, extension), at_most=target is not None, as_json=as_json)
    else:
        build_table(opened, extension)
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
@click.argument("file", type=_file, required=False)
@with_table
@click.option(
    "--space", "source", metavar="FILE|STARTER|RUN", help="Whose costs sharpen the gates."
)
@click.option("--device", "device_fp", help="Fingerprint that every record should have.")
@click.option("--accept", multiple=True, metavar="GATE", help="Accept a refusal, on record.")
@with_json
def verify(file: Path | None, table: Path | None, as_json: bool, **how: Any) -> None:
    """Check FILE, or the live table: whole, consistent, believable. Exit code 6 on refusal."""
    from rich.console import Console

    from pipeline.run.table_checks import render_verification, verify_table

    found = verify_table(file or table_path(table), **how)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        render_verification(found, Console())
    if found.refused:
        raise click.exceptions.Exit(REFUSED)


@tables.command()
@click.argument("a")
@click.argument("b")
@with_table
@with_json
def diff(a: str, b: str, table: Path | None, as_json: bool) -> None:
    """Compare A with B: how latencies differ, which networks moved, what else differs.

    A and B are each a FILE (store or JSON lines), FILE@NAME, or the NAME of a device or session in
    the live table.
    """
    from rich.console import Console

    from latency_tables.diff import compare_sides, read_side
    from pipeline.run.table_checks import render_difference

    path = table_path(table)
    found = compare_sides(read_side(a, path), read_side(b, path))
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        render_difference(found, Console())


@tables.command()
@click.argument("out", type=_file)
@click.argument("inputs", metavar="IN...", nargs=-1, required=True, type=_file)
@click.option("--keep-apart", is_flag=True, help="Allow two devices of one name.")
@with_json
def merge(out: Path, inputs: tuple[Path, ...], keep_apart: bool, as_json: bool) -> None:
    """Write the union of tables to OUT: a store (.sqlite, .db) or JSON lines."""
    from latency_tables.merge import merge_tables
    from pipeline import __version__
    from pipeline.run.table_checks import merged_lines

    found = merge_tables(out, inputs, keep_apart=keep_apart, tool_version=__version__)
    if as_json:
        click.echo(json.dumps({"file": str(out), **found.to_dict()}, indent=2))
    else:
        click.echo("\n".join(merged_lines(out, found)))


@tables.command()
@click.argument("source", metavar="FILE|STARTER|RUN")
@click.option("--device", help="Only this device: name or fingerprint.")
@click.option("--folds", default=5, show_default=True, help="Parts of the cross-validation.")
@with_overrides
@with_module
@with_table
@with_json
def evaluate(source: str, table: Path | None, as_json: bool, **how: Any) -> None:
    """Cross-validate the latency model on the tables of the space of a run file."""
    from rich.console import Console

    from pipeline.run.progress import Reporter
    from pipeline.run.table_evaluation import evaluate_tables, render_evaluations

    how["overrides"] = with_model(how["overrides"], how.pop("module"))
    found = evaluate_tables(source, table_path(table), reporter=Reporter(quiet=as_json), **how)
    if as_json:
        click.echo(json.dumps([e.to_dict() for e in found], indent=2))
    else:
        render_evaluations(found, Console())


@tables.command()
@click.argument("file", type=_file)
@click.option("--device", default="local", show_default=True, help="Name or fingerprint.")
@click.option("--space", "space_id", help="Id of the space; needed where there are several.")
@with_table
@with_json
def export(
    file: Path, device: str, space_id: str | None, table: Path | None, as_json: bool
) -> None:
    """Write one table: JSON lines, or CSV or Parquet where FILE ends in .csv or .parquet."""
    from latency_tables.interchange import export_table
    from latency_tables.store import TableStore
    from pipeline import __version__

    with TableStore(table_path(table)) as store:
        n_records = export_table(
            store, file, device=device, space_id=space_id, tool_version=__version__
        )
    said = {"file": str(file), "n_records": n_records}
    click.echo(json.dumps(said) if as_json else f"wrote {n_records} records to {file}")


@tables.command(name="import")
@click.argument("file", type=_file)
@click.option("--salvage", is_flag=True, help="Import whole lines; others go to FILE.rejected.")
@with_table
@with_json
def import_(file: Path, salvage: bool, table: Path | None, as_json: bool) -> None:
    """Add the records of a JSON-lines file to the table: all or none, unless --salvage is given."""
    from latency_tables.store import TableStore
    from pipeline.run.table_checks import import_file, imported_lines

    with TableStore(table_path(table)) as store:
        found = import_file(store, file, salvage=salvage)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo("\n".join(imported_lines(file, found)))
