"""``hilnas run``, ``init``, ``train`` and ``search``: the main job, whole or up to a stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from pipeline.cli.options import table_path, with_json, with_table, work_dir


def _job_options(command: Callable[..., None]) -> Callable[..., None]:
    """What every command that runs stages takes."""
    for option in (
        click.argument("source", metavar="FILE|STARTER"),
        click.option(
            "--out",
            type=click.Path(path_type=Path, file_okay=False),
            help="Run folder; runs/NAME by default.",
        ),
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="KEY=VALUE",
            help="Change one setting, as in train.epochs=5; may be repeated.",
        ),
        click.option("--quiet", is_flag=True, help="Only warnings and the result."),
    ):
        command = option(command)
    return with_table(with_json(command))


def _start(
    source: str,
    out: Path | None,
    overrides: tuple[str, ...],
    table: Path | None,
    as_json: bool,
    quiet: bool,
    *,
    until: str | None,
    plan: bool = False,
) -> None:
    from pipeline.run.job import Job
    from pipeline.run.progress import Reporter

    job = Job.open(
        source,
        out=out,
        overrides=overrides,
        table_path=table_path(table),
        work_dir=work_dir(),
        reporter=Reporter(quiet=quiet),
    )
    if plan:
        job.print_plan(as_json=as_json)
        return
    job.run(until=until)
    job.print_summary(as_json=as_json)


@click.command()
@_job_options
@click.option("--plan", is_flag=True, help="Print stages, sizes and times; start nothing.")
def run(
    source: str,
    out: Path | None,
    overrides: tuple[str, ...],
    table: Path | None,
    as_json: bool,
    quiet: bool,
    plan: bool,
) -> None:
    """Run the whole job: from a data set to a checked ONNX file under your limits.

    FILE|STARTER is a run file, a run folder to go on with, or the name of a starter. Stages that
    are up to date are skipped; a stopped run goes on where it was.
    """
    _start(source, out, overrides, table, as_json, quiet, until=None, plan=plan)


@click.command()
@_job_options
def train(
    source: str,
    out: Path | None,
    overrides: tuple[str, ...],
    table: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run the job up to the trained supernet."""
    _start(source, out, overrides, table, as_json, quiet, until="train")


@click.command()
@_job_options
def search(
    source: str,
    out: Path | None,
    overrides: tuple[str, ...],
    table: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run the job up to the measured front."""
    _start(source, out, overrides, table, as_json, quiet, until="search")


@click.command()
@click.argument("starter")
@click.option("--to", type=click.Path(path_type=Path, dir_okay=False), help="File to write.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def init(starter: str, to: Path | None, force: bool) -> None:
    """Write a commented run file to start from; 'hilnas init list' names the starters."""
    from pipeline.run.starters import starter_summaries, write_starter

    if starter == "list":
        for name, summary in starter_summaries():
            click.echo(f"{name:<22} {summary}")
        return
    path = write_starter(starter, to or Path(f"{starter}.toml"), force=force)
    click.echo(f"wrote {path}; go on with: hilnas run {path}")
