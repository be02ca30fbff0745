"""Other ways to look at one ONNX file: with several thread counts, and for minutes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from device_agents.devices import DeviceSpec
from device_agents.files.given_inputs import Arrays
from device_agents.files.model_file import prepare_file
from device_agents.measuring.measurer import DeviceMeasurer, Progress
from device_agents.measuring.profiles import Profile
from device_agents.measuring.sustained import Period, Sustained, measure_sustained
from device_agents.measuring.sweeps import SweepRow, rounds_of, thread_sweep

Shapes = Mapping[str, Sequence[int]]


def sweep_file(
    path: Path,
    device: DeviceSpec,
    threads: Sequence[int],
    *,
    profile: str | Profile = "quick",
    shapes: Shapes | None = None,
    inputs: Arrays | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[SweepRow, ...]:
    """Compare thread counts in interleaved rounds of one session; one row for each.

    Raises UsageError (also for more threads than cores), MeasurementError and DeviceError.
    """
    used = DeviceMeasurer(device, profile=profile, on_progress=on_progress)
    file = prepare_file(path, used, shapes=shapes, inputs=inputs, check_outputs=False)
    with used.connected(), used.connection.clocked():
        return thread_sweep(device, threads, partial(rounds_of, used, file.send(used)))


def sustain_file(
    path: Path,
    device: DeviceSpec,
    *,
    minutes: float,
    profile: str | Profile = "quick",
    shapes: Shapes | None = None,
    inputs: Arrays | None = None,
    on_period: Callable[[Period], None] = lambda period: None,
) -> Sustained:
    """Run a file without pause for minutes and watch it. Raises as :func:`sweep_file`."""
    used = DeviceMeasurer(device, profile=profile)
    file = prepare_file(path, used, shapes=shapes, inputs=inputs, check_outputs=False)
    seconds = 60 * minutes
    with used.connected():
        return measure_sustained(
            used,
            file.send(used),
            seconds=seconds,
            period_s=min(5.0, seconds / 6),
            on_period=on_period,
        )
