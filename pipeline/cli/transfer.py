"""``hilnas transfer``: a trained supernet for another data set."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.jobs import with_overrides
from pipeline.cli.options import inventory, table_path, with_json, with_profile, with_table


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path, file_okay=False))
@click.argument("target", metavar="FILE|STARTER")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False),
              help="Run folder; runs/TARGET-from-RUN by default.")  # fmt: skip
@click.option("--head-steps", type=click.IntRange(0), metavar="N",
              help="Train the new classifier alone for N steps first.")  # fmt: skip
@click.option("--head-only", is_flag=True, help="Train it alone in the search, too.")
@with_overrides
@click.option("--quiet", is_flag=True, help="Only warnings and the result.")
@click.option("--plan", is_flag=True, help="Print stages, sizes and times; start nothing.")
@with_profile
@with_table
@with_json
def transfer(
    run: Path, target: str, out: Path | None, head_steps: int | None, head_only: bool,
    overrides: tuple[str, ...], quiet: bool, plan: bool, profile: bool, table: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Search a network for other images with the supernet of a finished run.

    RUN is its folder; FILE|STARTER says which images, devices and limits. The classifier is new,
    the rest of the supernet learns each candidate as it is searched. 'hilnas run FOLDER' goes on
    with a stopped transfer.
    """
    from pipeline.run.job import Job
    from pipeline.run.progress import Reporter
    from pipeline.run.transfer import default_folder, read_transfer

    given = [*overrides, *([f"transfer.head_steps={head_steps}"] if head_steps is not None else [])]
    found = read_transfer(run, target, [*given, *(["transfer.head_only=true"] * head_only)])
    job = Job.of(
        found,
        out=out or default_folder(found, run),
        table_path=table_path(table),
        inventory=inventory(),
        reporter=Reporter(quiet=quiet),
    )
    if plan:
        job.print_plan(as_json=as_json)
        return
    job.run(profile=profile)
    job.print_summary(as_json=as_json)
    job.require_winners()
