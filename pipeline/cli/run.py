"""``hilnas run``, ``init``, ``train`` and ``search``: the main job, whole or up to a stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.cli.jobs import open_job, with_job
from pipeline.cli.options import with_profile


def _run_until(stage: str | None, *, as_json: bool, profile: bool, **job: Any) -> None:
    opened = open_job(**job)
    opened.run(until=stage, profile=profile)
    opened.print_summary(as_json=as_json)
    if stage != "train":
        opened.require_winners()


@click.command()
@with_job
@with_profile
@click.option("--plan", is_flag=True, help="Print stages, sizes and times; start nothing.")
def run(plan: bool, as_json: bool, profile: bool, **job: Any) -> None:
    """Run the whole job: from a data set to a checked ONNX file under your limits.

    FILE|STARTER is a run file, a run folder to go on with, or the name of a starter. Stages that
    are up to date are skipped; a stopped run goes on where it was.
    """
    if plan:
        open_job(**job).print_plan(as_json=as_json)
    else:
        _run_until(None, as_json=as_json, profile=profile, **job)


@click.command()
@with_job
@with_profile
def train(as_json: bool, profile: bool, **job: Any) -> None:
    """Run the job up to the trained supernet."""
    _run_until("train", as_json=as_json, profile=profile, **job)


@click.command()
@with_job
@with_profile
def search(as_json: bool, profile: bool, **job: Any) -> None:
    """Run the job up to the measured front."""
    _run_until("search", as_json=as_json, profile=profile, **job)


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
