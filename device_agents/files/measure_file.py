"""Honest statistics of any ONNX file on any device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from device_agents.devices import DeviceSpec
from device_agents.files.advice import Advice, advise
from device_agents.files.given_inputs import Arrays
from device_agents.files.golden import Golden, HostAnswer
from device_agents.files.model_file import prepare_file
from device_agents.files.onnx_files import ModelFacts
from device_agents.files.passes import (
    Inspection,
    Operators,
    OutputError,
    inspect,
    profile_operators,
)
from device_agents.measuring.measurer import DeviceMeasurer, Progress
from device_agents.measuring.profiles import Profile
from device_agents.measuring.recording import record
from latency_tables.records import DeviceFingerprint, Measurement

SCHEMA = 1

__all__ = ["FileMeasurement", "Golden", "OutputCheck", "measure_file"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputCheck:
    """The device's outputs against the expected ones; ``right`` None: they were not compared.

    ``note`` says why nothing, or what part, was not compared.
    """

    right: bool | None
    outputs: tuple[OutputError, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileMeasurement:
    """A measurement of a file, the device it was taken on, and the passes beside it.

    ``operators`` is None where it was not asked for, a text where there is none.
    """

    model: ModelFacts
    measurement: Measurement
    device: DeviceFingerprint
    shapes: Mapping[str, tuple[int, ...]]
    inspection: Inspection
    outputs: OutputCheck
    operators: Operators | str | None = None

    @property
    def advice(self) -> tuple[Advice, ...]:
        """What the verdicts mean and what to do."""
        return advise(self.measurement, self.inspection.phases)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        found, operators = self.measurement.statistics, self.operators
        return {
            "schema": SCHEMA,
            "model": {
                **self.model.to_dict(),
                "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            },
            "measurement": self.measurement.to_dict(),
            "device": self.device.to_dict(),
            "throughput_per_s": None if found is None else 1e9 / found.median_ns,
            "phases": [asdict(phase) for phase in self.inspection.phases],
            "outputs": asdict(self.outputs),
            "operators": operators.to_dict() if isinstance(operators, Operators) else None,
            "operators_note": operators if isinstance(operators, str) else "",
            "advice": [one.to_dict() for one in self.advice],
        }


def measure_file(
    path: Path,
    device: DeviceSpec,
    *,
    profile: str | Profile = "quick",
    shapes: Mapping[str, Sequence[int]] | None = None,
    inputs: Arrays | None = None,
    golden: Golden | None = None,
    check_outputs: bool = True,
    peak_memory: bool = True,
    phases: bool = True,
    per_op: bool = False,
    command: str = "",
    measurer: DeviceMeasurer | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> FileMeasurement:
    """Time one ONNX file. A file that cannot run gives a measurement with ``error``.

    ``shapes`` fixes inputs whose shape is open, ``inputs`` replaces the made-up ones. The outputs
    are compared with ``golden``, or with this machine's onnxruntime unless ``check_outputs`` is
    False. ``phases`` and ``per_op`` are passes of their own after the timing. ``measurer`` replaces
    the one made from ``device`` and ``profile``. Raises UsageError (no such file, shape, input or
    provider), MeasurementError (no model, external data outside the file's folder) and DeviceError
    (the device).

    >>> from device_agents.devices import load_device
    >>> from device_agents.measuring.reference import reference_model
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "net.onnx").write_bytes(reference_model("tiny"))
    >>> from dataclasses import replace
    >>> from device_agents.measuring.profiles import counted
    >>> local = replace(load_device("local"), workdir=folder)
    >>> found = measure_file(folder / "net.onnx", local, profile=counted(20, 2), peak_memory=False)
    >>> found.measurement.statistics.n_samples, found.outputs.right
    (40, True)
    """
    used = measurer or DeviceMeasurer(
        device,
        profile=profile,
        peak_memory=peak_memory,
        command=command,
        on_progress=on_progress,
    )
    file = prepare_file(
        path, used, shapes=shapes, inputs=inputs, golden=golden, check_outputs=check_outputs
    )
    with used.connected(), used.connection.clocked():
        net = file.send(used)
        result = used.run_nets([net])["0"]
        measurement = record(
            result,
            net_id=file.net_id,
            onnx=file.onnx,
            artefact=file.artefact,
            device=used.device,
            described=used.described(),
            provenance=used.provenance(result, 0, datetime.now(UTC).isoformat(timespec="seconds")),
        )
        measured = result.failure is None
        inspection = inspect(used, net) if measured and phases else Inspection()
        operators = profile_operators(used, net) if measured and per_op else None
        return FileMeasurement(
            model=file.facts,
            measurement=measurement,
            device=used.fingerprint(),
            shapes=file.shapes,
            inspection=inspection,
            outputs=_output_check(file.answer, measurement, inspection),
            operators=operators,
        )


def _output_check(
    answer: HostAnswer, measurement: Measurement, inspection: Inspection
) -> OutputCheck:
    """What the rounds said about the outputs; the details are from the pass beside them."""
    if answer.golden is None or not answer.golden.outputs or measurement.error is not None:
        return OutputCheck(right=None, note=answer.note or "nothing ran")
    wrong = any(verdict.code == "WRONG_ANSWER" for verdict in measurement.verdicts)
    return OutputCheck(
        right=not wrong and all(one.right for one in inspection.outputs),
        outputs=inspection.outputs,
        note=answer.note,
    )
