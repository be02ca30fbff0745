"""What the commands that work on a run have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline.cli.options import inventory, table_path, with_json, with_table

if TYPE_CHECKING:
    from pipeline.run.job import Job

F = TypeVar("F", bound=Callable[..., Any])

with_overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one setting, as in train.epochs=5; may be repeated.",
)


def with_job(command: F) -> F:
    """FILE|STARTER, ``--out``, ``--set``, ``--quiet``, ``--table``, ``--json``."""
    for option in (
        click.argument("source", metavar="FILE|STARTER"),
        click.option(
            "--out",
            type=click.Path(path_type=Path, file_okay=False),
            help="Run folder; runs/NAME by default.",
        ),
        with_overrides,
        click.option("--quiet", is_flag=True, help="Only warnings and the result."),
    ):
        command = option(command)
    return with_table(with_json(command))


def open_job(
    source: str,
    *,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    table: Path | None = None,
    quiet: bool = False,
) -> Job:
    """Read settings and make a job that says what it does on stderr."""
    from pipeline.run.job import Job
    from pipeline.run.progress import Reporter

    return Job.open(
        source,
        out=out,
        overrides=overrides,
        table_path=table_path(table),
        inventory=inventory(),
        reporter=Reporter(quiet=quiet),
    )
