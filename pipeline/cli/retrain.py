"""``hilnas retrain``: train one network of a finished run alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pipeline.cli.jobs import open_job, with_module, with_overrides
from pipeline.cli.options import with_json, with_table


def _list_recipes(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """``--recipe list`` prints the recipes and ends."""
    if value == "list":
        from pipeline.retraining.config import recipe_summaries

        for name, summary in recipe_summaries():
            click.echo(f"{name:<22} {summary}")
        context.exit()
    return value


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path, file_okay=False))
@click.option("--from-scratch", "start", flag_value="scratch", help="Fresh weights (default).")
@click.option("--fine-tune", "start", flag_value="inherited", help="The supernet's weights.")
@click.option("--recipe", callback=_list_recipes, is_eager=True, metavar="NAME|list",
              help="A paper's settings; else the run's own [train].")  # fmt: skip
@click.option("--arch", metavar="ROW|FILE", help="A row of the front, or JSON; else the winner.")
@click.option("--all-data", is_flag=True, help="Train on the held-out images as well.")
@click.option("--own-augment", is_flag=True, help="The run's augmentation, not the recipe's.")
@click.option("--teacher", type=click.Path(path_type=Path), help="A network to learn from.")
@click.option("--tensorboard", is_flag=True, help="Write the log for TensorBoard, too.")
@click.option("--measure", is_flag=True, help="Then measure it on the devices of the run.")
@click.option("--name", default="retrained", show_default=True, help="Folder in the run folder.")
@with_overrides
@with_module
@click.option("--quiet", is_flag=True, help="Only warnings and the result.")
@with_table
@with_json
def retrain(folder: Path, as_json: bool, measure: bool, **options: Any) -> None:
    """Train one network of a finished run alone, and export it to RUN/retrained.

    Takes the winner, with fresh weights, on the train split, unless told otherwise. A stopped
    retraining goes on where it was. Keys of --set are those of [train] and of a recipe, as in
    epochs=50 or optimizer.lr=0.1.
    """
    from rich.console import Console

    from pipeline.run.retraining import measure_on_devices, render
    from pipeline.run.retraining import retrain as run_retrain

    to = folder / options["name"]
    job = open_job(str(folder), **{key: options[key] for key in ("module", "table", "quiet")})
    config = _config(job.source.config.train, **options)
    chosen = {key: options[key] for key in ("arch", "recipe", "name")}
    summary = run_retrain(job, config, **chosen)
    if as_json:
        click.echo(json.dumps(summary, indent=2))
    else:
        render(summary, to, Console())
    if measure:
        measure_on_devices(job, to)


def _config(
    run: Any, *, recipe: str | None, overrides: tuple[str, ...], start: str | None,
    all_data: bool, own_augment: bool, teacher: Path | None, tensorboard: bool, **_: Any,
) -> Any:  # fmt: skip
    from pipeline.retraining.config import retrain_config

    given = list(overrides)
    if teacher is not None:
        given.append(f"teacher.model={json.dumps(str(teacher.resolve()))}")
    flags: dict[str, Any] = {"start": start} if start else {}
    flags |= {"all_data": True} if all_data else {}
    flags |= {"tensorboard": True} if tensorboard else {}
    flags |= {"augment": None} if own_augment else {}
    return retrain_config(recipe, run, given, flags)
