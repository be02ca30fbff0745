"""``hilnas generate``: a network for any limit from a trained run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pipeline.cli.jobs import open_job, with_module
from pipeline.cli.options import with_json, with_table


def _amount(context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """A number such as 5, 2.5e6 or 300M."""
    from pipeline.run.generating.limits import parse_amount

    return None if value is None else parse_amount(value)


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path, file_okay=False))
@click.option("--limit-latency-ms", "latency_ms", callback=_amount, metavar="MS",
              help="It may take so long on the device.")  # fmt: skip
@click.option("--limit-macs", "macs", callback=_amount, metavar="N",
              help="It may have so many MACs, as in 300M.")  # fmt: skip
@click.option("--limit-params", "params", callback=_amount, metavar="N",
              help="It may have so many parameters, as in 5.5M.")  # fmt: skip
@click.option("--device", help="Device of the run that it is for.")
@click.option("--sweep", metavar="FROM:TO:STEP",
              help="A network for each of these limits: ms with --device, "
              "else the generator's own cost.")  # fmt: skip
@click.option("--tolerance", type=click.FloatRange(0.001, 0.5), default=0.05, show_default=True,
              help="How far below the limit it may be, where there is a choice.")  # fmt: skip
@click.option("--candidates", type=click.IntRange(1, 64), default=1, show_default=True,
              help="Score the N most probable networks, take the best.")  # fmt: skip
@click.option("--tries", type=click.IntRange(1, 20), default=3, show_default=True,
              help="Networks to measure for one limit, at most.")  # fmt: skip
@click.option("--check/--no-check", default=None,
              help="Measure on the device; by default where it answers.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False),
              help="Folder; RUN/generated/LIMIT by default.")  # fmt: skip
@with_module
@click.option("--quiet", is_flag=True, help="Only warnings and the result.")
@with_table
@with_json
def generate(
    folder: Path, module: Path | None, table: Path | None, quiet: bool, as_json: bool, **asked: Any
) -> None:
    """Write the ONNX network that the generator of a trained run proposes for a limit.

    No search: the proposal is repaired to keep every limit, gets the supernet's weights, is
    measured on the device and exported with its manifest. The run must have been trained with
    strategy shiftnas ('hilnas init quick-shiftnas').
    """
    from rich.console import Console

    from pipeline.run.generating.generate import GenerateRequest
    from pipeline.run.generating.generate import generate as run_generate
    from pipeline.run.generating.summary import render

    request = GenerateRequest(**asked)
    job = open_job(str(folder), module=module, table=table, quiet=quiet)
    found = run_generate(job, request)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        render(found, Console())
