"""``hilnas export``, ``check`` and ``report``: what comes out of a run folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from pipeline.cli.jobs import open_job
from pipeline.cli.options import with_json, with_table

_run_folder = click.argument(
    "folder", metavar="RUN", type=click.Path(path_type=Path, file_okay=False)
)


@click.command()
@_run_folder
@with_table
@with_json
def export(folder: Path, table: Path | None, as_json: bool) -> None:
    """Export the winner of a run as ONNX; runs what is missing before it."""
    job = open_job(str(folder), out=folder, table=table)
    job.run(until="export")
    job.print_summary(as_json=as_json)


@click.command()
@_run_folder
@with_json
@click.option("--no-data", is_flag=True, help="Leave out the accuracy on the test images.")
def check(folder: Path, as_json: bool, no_data: bool) -> None:
    """Check an exported network on this machine: hash, loading, golden outputs, accuracy."""
    from rich.console import Console

    from pipeline.run.checking import check_run, render

    report = check_run(folder, with_data=not no_data)
    if as_json:
        click.echo(json.dumps(asdict(report), indent=2))
    else:
        render(report, Console())


@click.command()
@_run_folder
@with_json
def report(folder: Path, as_json: bool) -> None:
    """Write report.html of a run anew and print the summary."""
    job = open_job(str(folder), out=folder, quiet=True)
    job.write_report()
    job.print_summary(as_json=as_json)
