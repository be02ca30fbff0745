"""Check an export on the device that it is for: the same file, its outputs, accuracy and latency.

Everything is computed on the device by its own runtime. A file that computes something else than
torch did is an error; limits and comparisons with an earlier check are judged with the uncertainty
of the measurement (pass, fail, inconclusive), for a team's continuous integration.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from device_agents.files.budget import Judgement, Limit, judge, outcome
from device_agents.files.measure_file import FileMeasurement, measure_file
from device_agents.measuring.inference import infer
from device_agents.measuring.measurer import DeviceMeasurer
from device_agents.runtimes.artefacts import prepare
from latency_tables.errors import ExportError, MeasurementError, UsageError
from latency_tables.files import write_json
from pipeline.export.accuracy import Accuracy
from pipeline.export.check import (
    Batches,
    require_accuracy,
    require_golden_shape,
    require_hash,
)
from pipeline.export.compare import ParityReport, compare_logits
from pipeline.export.golden import read_golden
from pipeline.export.manifest import (
    GOLDEN_NAME,
    MANIFEST_NAME,
    MODEL_NAME,
    Manifest,
    load_manifest,
)
from pipeline.onnx_runtime import FloatArray

SCHEMA = 1

SLOWER = 0.02
"""Growth of latency, and of memory, over an earlier check that is no regression."""

LESS_ACCURATE = 0.005
"""Loss of accuracy that is no regression: other kernels round differently."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCheck:
    """What was found on a device. ``judgements`` are about limits, then about the baseline."""

    onnx_sha256: str
    golden: ParityReport
    accuracy: Accuracy | None
    promised: float | None
    measured: FileMeasurement
    judgements: tuple[Judgement, ...]

    @property
    def outcome(self) -> str:
        """pass, fail or inconclusive: the worst of all judgements; pass where there is none."""
        return outcome(self.judgements)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; :func:`check_on_device` takes it as a baseline."""
        return {
            "schema": SCHEMA,
            "onnx_sha256": self.onnx_sha256,
            "golden": asdict(self.golden),
            "accuracy": None if self.accuracy is None else self.accuracy.to_dict(),
            "promised_accuracy": self.promised,
            "outcome": self.outcome,
            "judgements": [judgement.to_dict() for judgement in self.judgements],
            **self.measured.to_dict(),
        }

    def write(self, path: Path) -> None:
        """Write the report, whole or not at all."""
        write_json(path, self.to_dict())


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The figures of an earlier check that later ones are compared with."""

    latency_high_ms: float
    peak_memory_bytes: int | None
    accuracy: float | None

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """Read what ``hilnas check --device NAME --output FILE`` wrote. Raises UsageError."""
        try:
            data = json.loads(path.read_text())
            measurement = data["measurement"]
            return cls(
                latency_high_ms=float(measurement["statistics"]["ci_high_ns"]) / 1e6,
                peak_memory_bytes=measurement["peak_memory_bytes"],
                accuracy=None if data["accuracy"] is None else float(data["accuracy"]["value"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{path} is no report of a check on a device: {error!r}",
                hint="hilnas check RUN --device NAME --output FILE",
            ) from None


def check_on_device(
    folder: Path,
    measurer: DeviceMeasurer,
    batches: Batches | None = None,
    *,
    n_images: int | None = None,
    limits: Sequence[Limit] = (),
    baseline: Baseline | None = None,
    on_note: Callable[[str], None] = lambda note: None,
) -> DeviceCheck:
    """Check ``subnet.onnx`` of ``folder`` on a device.

    Args:
        folder: where ``subnet.onnx``, ``golden.npz`` and ``manifest.json`` lie.
        measurer: the device and its measuring profile.
        batches: test images, normalised (N, C, H, W), with labels (N,); None leaves accuracy out.
        n_images: take that many of the images only.
        limits: judged beside those that the manifest names for the device.
        baseline: an earlier check that this one is compared with.
        on_note: told what is being done.

    Raises:
        ExportError: a file is missing, damaged or replaced.
        ParityError: the device computes something else than torch did.
        MeasurementError: the network fails on the device.
        DeviceError: the device failed.
    """
    manifest = load_manifest(folder / MANIFEST_NAME)
    path = folder / MODEL_NAME
    require_hash(path, manifest.model.sha256)
    require_hash(folder / GOLDEN_NAME, manifest.golden.sha256)
    golden = read_golden(folder / GOLDEN_NAME)
    require_golden_shape(golden, manifest)
    name, model = measurer.device.name, path.read_bytes()
    device = measurer.device
    artefact = prepare(device.runtime, model, options=device.runtime_options)
    with measurer.connected():

        def run(images: FloatArray) -> FloatArray:
            return infer(measurer, artefact, images)

        on_note(f"golden samples on {name}")
        parity = compare_logits(
            golden.logits, run(golden.images), tolerance=manifest.parity.tolerance
        )
        parity.require(f"{MODEL_NAME} on {name}")
        accuracy = None
        if batches is not None:
            on_note(f"test images on {name}")
            accuracy = _accuracy(run, batches, n_images)
            if manifest.accuracy.test is not None:
                promised = manifest.accuracy.test
                require_accuracy(accuracy, promised.value, promised.n_images)
        on_note(f"latency on {name}")
        measured = measure_file(
            path, measurer.device, measurer=measurer, phases=False, command="hilnas check"
        )
    _require_measured(measured, name)
    judgements = judge([*_limits(manifest, name), *limits], measured.measurement)
    if baseline is not None:
        judgements += _compare(baseline, measured, accuracy)
    return DeviceCheck(
        onnx_sha256=manifest.model.sha256,
        golden=parity,
        accuracy=accuracy,
        promised=None if manifest.accuracy.test is None else manifest.accuracy.test.value,
        measured=measured,
        judgements=judgements,
    )


def _accuracy(
    run: Callable[[FloatArray], FloatArray], batches: Batches, n_images: int | None
) -> Accuracy:
    seen = right = 0
    for images, labels in batches:
        left = len(images) if n_images is None else min(len(images), n_images - seen)
        if left <= 0:
            break
        found = run(np.ascontiguousarray(images[:left]))
        right += int((found.argmax(axis=1) == labels[:left]).sum())
        seen += left
    if seen == 0:
        raise ExportError("there are no test images", hint="--no-data leaves the accuracy out")
    return Accuracy(n_images=seen, n_correct=right)


def _limits(manifest: Manifest, device: str) -> list[Limit]:
    """Limits on what can be measured on the device itself."""
    names = ("latency_ms", "peak_memory_bytes")
    return [
        Limit(metric=entry.name, relation="<=", bound=entry.limit)
        for entry in manifest.limits
        if entry.name in names and entry.device in (device, None)
    ]


def _compare(
    baseline: Baseline, measured: FileMeasurement, accuracy: Accuracy | None
) -> tuple[Judgement, ...]:
    limits = [
        Limit(metric="latency_ms", relation="<=", bound=baseline.latency_high_ms * (1 + SLOWER))
    ]
    if baseline.peak_memory_bytes is not None:
        bound = baseline.peak_memory_bytes * (1 + SLOWER)
        limits.append(Limit(metric="peak_memory_bytes", relation="<=", bound=bound))
    found = list(judge(limits, measured.measurement))
    if baseline.accuracy is not None and accuracy is not None:
        bound = baseline.accuracy - LESS_ACCURATE
        kept = accuracy.value >= bound
        found.append(
            Judgement(
                limit=Limit(metric="accuracy", relation=">=", bound=bound),
                outcome="pass" if kept else "fail",
                value=accuracy.value,
                low=None,
                high=None,
                reason=f"{accuracy.value:.2%}, the baseline has {baseline.accuracy:.2%}",
            )
        )
    return tuple(found)


def _require_measured(measured: FileMeasurement, device: str) -> None:
    failure = measured.measurement.error
    if failure is not None:
        raise MeasurementError(
            failure["code"],
            f"{MODEL_NAME} could not be measured on {device}: {failure['message']}",
            blames=failure["blames"],
        )
