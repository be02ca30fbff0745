"""``hilnas check``: the files of a run folder, as somebody else would get them."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from pipeline.export.check import Batches, CheckReport, check_export
from pipeline.export.manifest import MANIFEST_NAME, load_manifest


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
    """The run's own test images in batches, as the exported file takes them.

    Raises:
        DataError, ConfigError: the images cannot be read, or the run file cannot.
        ExportError: there is no manifest.
    """
    import torch

    from pipeline.data.dataset import dataset_at, load_dataset
    from pipeline.run.context import eval_batches
    from pipeline.run.source import read_source
    from pipeline.run.stages.export import arrays

    source = read_source(str(folder))
    config, seed = source.config.data, source.config.seed
    *_, height, width = load_manifest(folder / MANIFEST_NAME).model.input.shape
    dataset = load_dataset(config, seed=seed, base=source.base)
    dataset = dataset_at(dataset, (height, width), config, seed=seed, base=source.base)
    return arrays(eval_batches(dataset, dataset.test, torch.device("cpu")))


def render(report: CheckReport, console: Console) -> None:
    """Print the findings."""
    for line in report.lines():
        console.print(f"[green]✓[/green] {escape(line)}")
