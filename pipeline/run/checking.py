"""``hilnas check``: the files of a run folder, as somebody else would get them."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from pipeline.export.check import Batches, CheckReport, check_export


def check_run(folder: Path, *, with_data: bool) -> CheckReport:
    """Check an export; with data, its accuracy on the run's own test images, too.

    Raises:
        ExportError: files are missing, damaged or replaced.
        ParityError: the model computes something else than the manifest says.
    """
    if not with_data:
        return check_export(folder)
    return check_export(folder, run_test_images(folder))


def run_test_images(folder: Path) -> Batches:
    """The run's own test images in batches. Raises DataError, ConfigError."""
    import torch

    from pipeline.data.dataset import load_dataset
    from pipeline.run.context import eval_batches
    from pipeline.run.source import read_source
    from pipeline.run.stages.export import arrays

    source = read_source(str(folder))
    dataset = load_dataset(source.config.data, seed=source.config.seed, base=source.base)
    return arrays(eval_batches(dataset, dataset.test, torch.device("cpu")))


def render(report: CheckReport, console: Console) -> None:
    """Print the findings."""
    for line in report.lines():
        console.print(f"[green]✓[/green] {escape(line)}")
