"""``hilnas check RUN --device NAME``: the export on the device that it is for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from device_agents.devices import DeviceSpec
from device_agents.files.budget import parse_limit
from device_agents.measuring.measurer import DeviceMeasurer, Progress
from pipeline.export.device_check import Baseline, DeviceCheck, check_on_device
from pipeline.run.checking import run_test_images
from pipeline.run.measure_report import render_numbers
from pipeline.run.progress import Reporter

_MARKS = {"pass": "[green]✓[/green]", "fail": "[red]✗[/red]", "inconclusive": "[yellow]?[/yellow]"}


def check_run_on_device(
    folder: Path,
    spec: DeviceSpec,
    *,
    with_data: bool,
    n_images: int | None = None,
    measuring: str | None = None,
    limits: Sequence[str] = (),
    baseline: Path | None = None,
    output: Path | None = None,
) -> DeviceCheck:
    """Check an export on a device; with data, its accuracy on the run's own test images, too.

    Raises:
        UsageError: a limit or the baseline cannot be read.
        ExportError: files are missing, damaged or replaced.
        ParityError: the device computes something else than the manifest says.
        DeviceError: the network or the device failed.
    """
    parsed = [parse_limit(text) for text in limits]
    earlier = None if baseline is None else Baseline.read(baseline)
    batches = run_test_images(folder) if with_data else None
    with Reporter().bar(f"on {spec.name}") as advance:

        def show(progress: Progress) -> None:
            advance(progress.done, progress.total, progress.note)

        measurer = DeviceMeasurer(
            spec, profile=measuring or "screening", peak_memory=True, on_progress=show
        )
        report = check_on_device(
            folder,
            measurer,
            batches,
            n_images=n_images,
            limits=parsed,
            baseline=earlier,
            on_note=lambda note: advance(0, 1, note),
        )
    if output is not None:
        report.write(output)
    return report


def render(report: DeviceCheck, console: Console) -> None:
    """Print the findings, the measurement and the judgements."""
    golden = report.golden
    said = [
        "the file on the device is the one that the manifest describes",
        f"{golden.n_images} golden samples: logits differ from torch's by at most "
        f"{golden.max_abs_diff:.2g} ({golden.allowed:.2g} is allowed)",
    ]
    if report.accuracy is not None:
        promised = "" if report.promised is None else f", the manifest says {report.promised:.2%}"
        said.append(
            f"accuracy {report.accuracy.value:.2%} on {report.accuracy.n_images} images{promised}"
        )
    for line in said:
        console.print(f"{_MARKS['pass']} {escape(line)}")
    render_numbers(report.measured, console)
    for judgement in report.judgements:
        mark = _MARKS[judgement.outcome]
        console.print(f"{mark} {escape(str(judgement.limit))}: {escape(judgement.reason)}")
