"""``hilnas rank``: how well a supernet keeps the order of networks whose accuracy is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pipeline.cli.jobs import open_job, with_module, with_overrides
from pipeline.cli.options import with_json

_file = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("source", metavar="FILE|STARTER|RUN")
@click.option("--truth", metavar="FILE|FOLDER", type=click.Path(path_type=Path),
              help="Table of accuracies, or a folder with retrained networks.")  # fmt: skip
@click.option("--column", help="Column of the accuracies, where it cannot be told.")
@click.option("--genomes", help="Column of the architectures, where it cannot be told.")
@click.option("--n", type=click.IntRange(3), default=500, show_default=True,
              help="Draw this many networks of the table.")  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="Take every network of the table.")
@click.option("--archs", type=_file, help="Take the architectures of this table instead.")
@click.option("--isomorphic", is_flag=True, help="Genomes of one network count separately.")
@click.option("--images", "n_images", type=click.IntRange(1), help="Score on so many images.")
@click.option("--seed", type=int, help="Of the draw; the run's own where it is not given.")
@click.option("--shifted", is_flag=True, help="Score with the weights that a search has shifted.")
@click.option("--follow", is_flag=True,
              help="Follow good and random networks through a shifting search.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Run folder.")
@with_overrides
@with_module
@click.option("--quiet", is_flag=True, help="Only warnings and the result.")
@with_json
def rank(
    source: str, out: Path | None, overrides: tuple[str, ...], module: Path | None, quiet: bool,
    as_json: bool, everything: bool, follow: bool, **request: Any,
) -> None:  # fmt: skip
    """Compare a trained supernet's scores with what networks achieve when trained alone.

    Kendall's tau, Spearman and others with intervals, beside ranking by MACs and parameters, and
    what the supernet's choice is worth beside random ones. Trains the supernet where the run has
    none. No device is needed. Results go to rank.json in the run folder.
    """
    from rich.console import Console

    from pipeline.run.rank_summary import render, render_followed
    from pipeline.run.ranking import RankRequest
    from pipeline.run.ranking import rank as run_rank

    if everything or request["archs"] is not None:
        request["n"] = None
    job = open_job(source, out=out, overrides=overrides, module=module, quiet=quiet)
    if follow:
        from pipeline.run.following import follow_run

        found = follow_run(job, RankRequest(**request))
    else:
        found = run_rank(job, RankRequest(**request))
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        (render_followed if follow else render)(found, Console())
