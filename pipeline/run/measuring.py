"""``hilnas measure`` and ``hilnas devices probe``: one ONNX file, one device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from device_agents.devices import DeviceSpec, in_work_folder
from device_agents.measure_file import FileMeasurement, measure_file
from device_agents.measurer import DeviceMeasurer, Progress
from latency_tables.errors import MeasurementError
from pipeline.run.progress import Reporter


def measure_model(
    model: Path, spec: DeviceSpec, *, threads: int, profile: str, work_dir: Path
) -> FileMeasurement:
    """Measure one ONNX file.

    Raises:
        UsageError: the file cannot be read.
        MeasurementError: the network failed on the device; says why.
        DeviceError: the device failed.
    """
    device = replace(in_work_folder(spec, work_dir), threads=threads)
    with Reporter().bar(f"on {spec.name}") as advance:

        def show(progress: Progress) -> None:
            advance(progress.done, progress.total, progress.note)

        result = measure_file(
            model, device, profile=profile, command="hilnas measure", on_progress=show
        )
    failure = result.measurement.error
    if failure is not None:
        raise MeasurementError(
            failure["code"],
            f"{model.name} could not be measured on {spec.name}: {failure['code']}, "
            f"{failure['message']}",
            blames=failure["blames"],
        )
    return result


def probe_device(spec: DeviceSpec, *, work_dir: Path) -> dict[str, Any]:
    """What a device says about itself. Raises DeviceError."""
    return DeviceMeasurer(in_work_folder(spec, work_dir)).probe()


def render(result: FileMeasurement, console: Console) -> None:
    """Print statistics the way embedded engineers read them: phases, percentiles, verdicts."""
    record = result.measurement
    found = record.statistics
    if found is None:
        console.print("nothing was timed")
        return
    runtime = record.runtime
    console.print(
        f"[bold]{escape(record.device_name)}[/bold]: {escape(str(runtime['name']))} "
        f"{escape(str(runtime['version']))}, {escape(str(runtime.get('provider', '')))}, "
        f"{record.threads} thread(s) on core(s) {', '.join(map(str, record.cores)) or 'any'}"
    )
    low, high = found.ci_low_ns / 1e6, found.ci_high_ns / 1e6
    rows = [
        ("median", f"{found.median_ms:.4f} ms", f"95 % interval {low:.4f} … {high:.4f}"),
        ("min", f"{found.min_ns / 1e6:.4f} ms", ""),
        ("mean", f"{found.mean_ns / 1e6:.4f} ms", f"standard deviation {found.std_ns / 1e6:.4f}"),
    ]
    for name, value in (("p90", found.p90_ns), ("p95", found.p95_ns), ("p99", found.p99_ns)):
        shown = "-" if value is None else f"{value / 1e6:.4f} ms"
        rows.append((name, shown, "too few independent runs to say" if value is None else ""))
    rows += [
        ("first run", f"{found.first_ns / 1e6:.4f} ms", f"loading {found.load_ns / 1e6:.1f} ms"),
        ("runs", f"{found.n_samples}", f"{found.n_rounds} processes, {found.warmup_runs} warm-up"),
    ]
    if record.peak_memory_bytes is not None:
        rows.append(
            ("memory", f"{record.peak_memory_bytes / 2**20:.1f} MiB", "growth of the process")
        )
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for verdict in record.verdicts:
        colour = "red" if verdict.severity == "fail" else "yellow"
        console.print(f"[{colour}]{escape(verdict.code)}[/{colour}] {escape(verdict.evidence)}")
    if not found.converged:
        console.print("[yellow]the rounds did not agree within the profile's goal[/yellow]")


def render_probe(name: str, found: dict[str, Any], console: Console) -> None:
    """Print a probe; a board's texts are hostile and escaped."""
    console.print(f"[bold]{escape(name)}[/bold]")
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in found.items():
        if value not in (None, [], {}, ""):
            table.add_row(key.replace("_", " "), escape(str(value)))
    console.print(table)
