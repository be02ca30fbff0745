"""``hilnas measure``: honest statistics of any ONNX file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from device_agents.measuring.profiles import PROFILES
from pipeline.cli.options import chosen_device, with_device, with_json


def _counts(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, ...]:
    """Distinct thread counts in the order given."""
    if text is None:
        return ()
    try:
        counts = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        counts = ()
    if not counts or not all(1 <= count <= 1024 for count in counts):
        raise click.BadParameter(f"{text!r} is no list of thread counts such as 1,2,4")
    return counts


def _shapes(
    ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """Sizes by name of the input; names may hold ``=``."""
    found = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        try:
            found[name] = tuple(int(size) for size in sizes.lower().split("x"))
        except ValueError:
            name = ""
        if not name:
            raise click.BadParameter(f"{text!r} does not look like input=1x3x224x224")
    return found


@click.command()
@click.argument("model", type=click.Path(path_type=Path, dir_okay=False))
@with_device
@click.option(
    "--measuring",
    default="screening",
    show_default=True,
    type=click.Choice(list(PROFILES)),
    help="Measuring profile: how long to look and how strict to be.",
)
@click.option(
    "--threads",
    callback=_counts,
    metavar="N[,N...]",
    help="Threads of the runtime; several are compared.",
)
@click.option("--provider", default="", help="Execution provider of the runtime.")
@click.option(
    "--shape",
    "shapes",
    callback=_shapes,
    multiple=True,
    metavar="NAME=1x3x224x224",
    help="Shape of an open input.",
)
@click.option(
    "--inputs",
    type=click.Path(path_type=Path, exists=True),
    help="Inputs to use: a folder of NAME.npy, or an .npz file.",
)
@click.option("--per-op", is_flag=True, help="Profile the operators in a pass of its own.")
@click.option(
    "--check",
    "limits",
    multiple=True,
    metavar="METRIC<=X",
    help="Limit such as latency_ms<=5, p90_ms<=7, peak_memory_mb<=64, throughput>=200. Exit code "
    "9: broken, 10: cannot be said.",
)
@click.option("--minutes", type=click.FloatRange(min=0.05), help="Then run for so long, watched.")
@click.option(
    "--check-outputs/--no-check-outputs",
    default=True,
    show_default=True,
    help="Compare the outputs with this machine's onnxruntime.",
)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write JSON here.")
@with_json
def measure(
    device: str, limits: tuple[str, ...], output: Path | None, as_json: bool, **wish: Any
) -> None:
    """Measure the latency of MODEL, any ONNX file, on a device.

    Loading, first run, steady runs with percentiles and interval, phases, peak memory, outputs
    compared with this machine's, and what to think of the numbers.
    """
    from rich.console import Console

    from device_agents.files.budget import parse_limit
    from latency_tables.files import write_json
    from pipeline.run.measure_report import render
    from pipeline.run.measuring import MeasureWish, measure_model

    spec = chosen_device(device)
    parsed, profile = tuple(map(parse_limit, limits)), wish.pop("measuring")
    report = measure_model(MeasureWish(limits=parsed, profile=profile, **wish), spec)
    if output is not None:
        write_json(output, report.to_dict())
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        render(report, Console())
    report.require()
