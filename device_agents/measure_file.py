"""Honest statistics of any ONNX file on any device."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agents.batches import Net
from device_agents.devices import DeviceSpec
from device_agents.measurer import DeviceMeasurer, Progress, peak_memory_bytes
from device_agents.onnx_files import read_model
from device_agents.profiles import Profile
from latency_tables.errors import UsageError
from latency_tables.files import sha256_bytes, sha256_json
from latency_tables.records import DeviceFingerprint, Measurement

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """Inputs and the outputs that a right device gives for them, by tensor name."""

    inputs: Mapping[str, NDArray[Any]]
    outputs: Mapping[str, NDArray[Any]]
    atol: float = 1e-3
    rtol: float = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class FileMeasurement:
    """A measurement of a file and the device it was taken on."""

    measurement: Measurement
    device: DeviceFingerprint

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "schema": SCHEMA,
            "measurement": self.measurement.to_dict(),
            "device": self.device.to_dict(),
        }


def measure_file(
    path: Path,
    device: DeviceSpec,
    *,
    profile: str | Profile = "quick",
    shapes: Mapping[str, Sequence[int]] | None = None,
    golden: Golden | None = None,
    peak_memory: bool = True,
    command: str = "",
    measurer: DeviceMeasurer | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> FileMeasurement:
    """Time one ONNX file. A file that cannot run gives a measurement with ``error``.

    ``shapes`` fixes inputs whose shape is open, ``golden`` adds a check of the outputs,
    ``measurer`` replaces the one made from ``device`` and ``profile``. Raises UsageError (no such
    file), MeasurementError (external data outside the file's folder) and DeviceError (the device).

    >>> from device_agents.devices import load_device
    >>> from device_agents.reference import reference_model
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "net.onnx").write_bytes(reference_model("tiny"))
    >>> from dataclasses import replace
    >>> from device_agents.profiles import counted
    >>> local = replace(load_device("local"), workdir=folder)
    >>> found = measure_file(folder / "net.onnx", local, profile=counted(20, 2), peak_memory=False)
    >>> found.measurement.statistics.n_samples
    40
    """
    model, files = read_model(path)
    _check_shapes(shapes or {})
    used = measurer or DeviceMeasurer(
        device,
        profile=profile,
        peak_memory=peak_memory,
        command=command,
        on_progress=on_progress,
    )
    with used.connected() as session:
        described, put = used.fingerprint(), session.put
        net = Net(
            name="0",
            blob=put(model),
            files={location: put(file) for location, file in files.items()},
            shapes={name: tuple(shape) for name, shape in (shapes or {}).items()},
            golden=None if golden is None else _put_golden(golden, put),
        )
        result = used.run_nets([net])["0"]
        sha256 = sha256_bytes(model)
        measurement = Measurement(
            net_id=sha256_json(["file", sha256, {k: list(v) for k, v in net.shapes.items()}]),
            arch=None,
            space_id="",
            onnx_sha256=sha256,
            artefact_sha256=sha256,
            runtime=used.runtime(),
            threads=used.device.threads,
            cores=used.cores(),
            device_name=used.device.name,
            device_fp=described.fingerprint,
            statistics=result.statistics,
            peak_memory_bytes=peak_memory_bytes(result),
            verdicts=result.verdicts,
            error=result.failure,
            provenance=used.provenance(result, 0, datetime.now(UTC).isoformat(timespec="seconds")),
        )
    return FileMeasurement(measurement=measurement, device=described)


def _check_shapes(shapes: Mapping[str, Sequence[int]]) -> None:
    for name, shape in shapes.items():
        if any(size < 1 for size in shape):
            raise UsageError(f"shape {list(shape)} of input {name!r}: sizes must be at least 1")


def _put_golden(golden: Golden, put: Callable[[bytes], str]) -> dict[str, Any]:
    def send(arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
        return {name: put(_npy(array)) for name, array in arrays.items()}

    return {
        "inputs": send(golden.inputs),
        "outputs": send(golden.outputs),
        "atol": golden.atol,
        "rtol": golden.rtol,
    }


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
