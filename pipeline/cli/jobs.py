"""What the commands that work on a run have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline.cli.options import inventory, table_path, with_json, with_table
from pipeline.cli.ranks import current_launch

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


with_module = click.option(
    "--module",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.py",
    help="Run this Python file; [space] name is a model in it.",
)


def with_model(overrides: Sequence[str], module: Path | None) -> tuple[str, ...]:
    """The overrides, and the one that ``--module`` stands for.

    >>> with_model(["seed=1"], None)
    ('seed=1',)
    """
    if module is None:
        return tuple(overrides)
    return (*overrides, f"space.module={json.dumps(str(module.resolve()))}")


def with_job(command: F) -> F:
    """FILE|STARTER, ``--out``, ``--set``, ``--module``, ``--quiet``, ``--table``, ``--json``."""
    for option in (
        click.argument("source", metavar="FILE|STARTER"),
        click.option(
            "--out",
            type=click.Path(path_type=Path, file_okay=False),
            help="Run folder; runs/NAME by default.",
        ),
        with_module,
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
    module: Path | None = None,
    table: Path | None = None,
    quiet: bool = False,
) -> Job:
    """Read settings and make a job that says what it does on stderr.

    Under torchrun all processes meet here, so what is wrong on one of them ends all at once.
    """
    from pipeline.run.job import Job
    from pipeline.run.progress import Reporter

    launch = current_launch()
    ranks = None if launch is None else launch.join()
    with nullcontext() if ranks is None else ranks.together():
        job = Job.open(
            source,
            out=out,
            overrides=with_model(overrides, module),
            table_path=table_path(table),
            inventory=inventory(),
            reporter=Reporter(quiet=quiet),
            ranks=ranks,
        )
        if ranks is not None:
            ranks.gather(None)
    return job
