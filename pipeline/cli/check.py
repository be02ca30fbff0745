"""``hilnas check``: the exported network as somebody else would get it, here or on its device."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from device_agents.measuring.profiles import PROFILES
from pipeline.cli.options import chosen_device, with_json

_file = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path, file_okay=False))
@click.option("--no-data", is_flag=True, help="Leave out the accuracy on the test images.")
@click.option("--device", help="Check on this device, latency and memory against limits too.")
@click.option("--images", "n_images", type=click.IntRange(1), help="Only so many test images.")
@click.option("--measuring", type=click.Choice(list(PROFILES)), help="Profile, else screening.")
@click.option("--check", "limits", multiple=True, metavar="LIMIT", help="As in latency_ms<=5.")
@click.option("--baseline", type=_file, help="Report of an earlier check: worse is a failure.")
@click.option("--output", type=_file, help="Write the report, a baseline for later checks.")
@with_json
def check(folder: Path, no_data: bool, device: str | None, as_json: bool, **options: Any) -> None:
    """Check an exported network: hash, loading, golden outputs, accuracy; with --device there.

    With --device the exit code is 0 where all limits are kept, 9 where one is broken or something
    got worse than the baseline, 10 where the interval of the measurement leaves it open, and 7
    where the device computes something else than torch did.
    """
    if device is not None:
        _on_device(folder, device, with_data=not no_data, as_json=as_json, **options)
    elif given := [f"--{name}" for name, value in options.items() if value]:
        raise click.UsageError(f"{', '.join(given)}: only with --device")
    else:
        _here(folder, with_data=not no_data, as_json=as_json)


def _here(folder: Path, *, with_data: bool, as_json: bool) -> None:
    from rich.console import Console

    from pipeline.run.checking import check_run, render

    report = check_run(folder, with_data=with_data)
    if as_json:
        click.echo(json.dumps(asdict(report), indent=2))
    else:
        render(report, Console())


def _on_device(
    folder: Path, device: str, *, with_data: bool, as_json: bool, **options: Any
) -> None:
    from rich.console import Console

    from device_agents.files.budget import require
    from pipeline.run.device_checking import check_run_on_device, render

    report = check_run_on_device(folder, chosen_device(device), with_data=with_data, **options)
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        render(report, Console())
    require(report.judgements)
