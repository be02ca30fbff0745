"""``hilnas export`` and ``report``: what comes out of a run folder."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.jobs import open_job, with_module
from pipeline.cli.options import with_json, with_table

_run_folder = click.argument(
    "folder", metavar="RUN", type=click.Path(path_type=Path, file_okay=False)
)


@click.command()
@_run_folder
@with_module
@with_table
@with_json
def export(folder: Path, module: Path | None, table: Path | None, as_json: bool) -> None:
    """Export the winner of a run as ONNX; runs what is missing before it."""
    job = open_job(str(folder), out=folder, module=module, table=table)
    job.run(until="export")
    job.print_summary(as_json=as_json)
    job.require_winners()


@click.command()
@_run_folder
@with_module
@with_json
def report(folder: Path, module: Path | None, as_json: bool) -> None:
    """Write report.html of a run anew and print the summary."""
    job = open_job(str(folder), out=folder, module=module, quiet=True)
    job.write_report()
    job.print_summary(as_json=as_json)
