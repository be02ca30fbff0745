"""``hilnas measure``: honest statistics of any ONNX file."""

from __future__ import annotations

import json
from pathlib import Path

import click

from device_agents.profiles import PROFILES
from pipeline.cli.options import with_device, with_json, work_dir


@click.command()
@click.argument("model", type=click.Path(path_type=Path, dir_okay=False))
@with_device
@click.option(
    "--measuring",
    default="screening",
    show_default=True,
    type=click.Choice(list(PROFILES)),
    help="Measuring profile.",
)
@click.option(
    "--threads",
    default=1,
    show_default=True,
    type=click.IntRange(1, 1024),
    help="Threads of the runtime.",
)
@with_json
def measure(model: Path, device: str, measuring: str, threads: int, as_json: bool) -> None:
    """Measure the latency of MODEL, an ONNX file with static shapes, on a device."""
    from rich.console import Console

    from device_agents.devices import load_device
    from pipeline.run.measuring import measure_model, render

    spec = load_device(device)
    result = measure_model(model, spec, threads=threads, profile=measuring, work_dir=work_dir())
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
    else:
        render(result, Console())
