"""``hilnas space``: how large a space is and what its networks cost, before any training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.jobs import with_model, with_module, with_overrides
from pipeline.cli.options import table_path, with_json, with_table

if TYPE_CHECKING:
    from pipeline.run.source import RunSource


def _read(source: str, overrides: tuple[str, ...], module: Path | None) -> RunSource:
    from pipeline.run.source import read_source, require_own_model

    found = read_source(source, with_model(overrides, module))
    require_own_model(found)
    return found


@click.group()
def space() -> None:
    """Look at the search space of a run file before anything is trained."""


@space.command()
@click.argument("source", metavar="FILE|STARTER")
@with_overrides
@with_module
@with_json
def show(source: str, overrides: tuple[str, ...], module: Path | None, as_json: bool) -> None:
    """List the decisions and their choices."""
    from pipeline.run.profile import space_of

    run_source = _read(source, overrides, module)
    made = space_of(run_source.config, run_source.base)
    if as_json:
        decisions = {d.label: list(d.choices) for d in made.decisions}
        click.echo(json.dumps({**made.describe(), "decisions": decisions}, indent=2))
        return
    click.echo(f"{made.name}, preset {made.preset}, input {made.input_shape}, id {made.space_id}")
    for decision in made.decisions:
        click.echo(f"  {decision.label:<10} {' '.join(map(str, decision.choices))}")


@space.command()
@click.argument("source", metavar="FILE|STARTER")
@with_overrides
@with_module
@click.option("--levels", type=click.IntRange(1, 1000), metavar="N",
              help="Share of N levels of MACs and of latency.")  # fmt: skip
@with_table
@with_json
def profile(
    source: str,
    overrides: tuple[str, ...],
    module: Path | None,
    levels: int | None,
    table: Path | None,
    as_json: bool,
) -> None:
    """Size, cheapest, median and dearest cost, and how many networks keep the limits.

    Latency is judged where the table knows the device; nothing is measured here.
    """
    from rich.console import Console

    from pipeline.run.profile import profile_source, render

    run_source = _read(source, overrides, module)
    found = profile_source(run_source, table_path(table), n_levels=levels or 0)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        render(found, Console())
