"""``hilnas export`` and ``report``: what comes out of a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.jobs import open_job, with_module
from pipeline.cli.options import with_json, with_table

if TYPE_CHECKING:
    from pipeline.run.job import Job

_run_folder = click.argument(
    "folder", metavar="RUN", type=click.Path(path_type=Path, file_okay=False)
)


@click.command()
@_run_folder
@click.option("--features", is_flag=True,
              help="Also backbone.onnx, whose outputs are feature maps.")  # fmt: skip
@click.option("--arch", metavar="ROW|FILE",
              help="With --features: a row of the front, or JSON; else the winner.")  # fmt: skip
@click.option("--retrained", metavar="NAME",
              help="With --features: the retrained network in RUN/NAME.")  # fmt: skip
@with_module
@with_table
@with_json
def export(
    folder: Path, features: bool, arch: str | None, retrained: str | None, module: Path | None,
    table: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Export the winner of a run as ONNX; runs what is missing before it."""
    if (arch is not None or retrained is not None) and not features:
        raise click.UsageError("--arch and --retrained choose the network of --features; give that")
    job = open_job(str(folder), out=folder, module=module, table=table)
    job.run(until="export")
    if features:
        _export_features(job, arch, retrained, as_json=as_json)
    else:
        job.print_summary(as_json=as_json)
    job.require_winners()


def _export_features(job: Job, arch: str | None, retrained: str | None, *, as_json: bool) -> None:
    from rich.console import Console

    from pipeline.run.features import export_features, render

    if not job.leads:
        return  # the network is one, and so is the file
    written = export_features(job, arch=arch, retrained=retrained)
    if as_json:
        click.echo(json.dumps(list(written.values()), indent=2))
    else:
        render(written, Console())


@click.command()
@_run_folder
@with_module
@with_json
def report(folder: Path, module: Path | None, as_json: bool) -> None:
    """Write report.html of a run anew and print the summary."""
    job = open_job(str(folder), out=folder, module=module, quiet=True)
    job.write_report()
    job.print_summary(as_json=as_json)
