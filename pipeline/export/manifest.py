"""manifest.json: everything somebody needs to run, check and trust ``subnet.onnx``.

It says what the network is (space, architecture, hashes), how a picture becomes its input, what was
measured where and when with which interval, how accurate it is on how many images, and with which
versions it was made. It holds no path, host or user (:mod:`pipeline.export.hygiene`). Reading is
strict: an unknown, missing or mistyped field is refused by name.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from latency_tables.arch import Arch
from latency_tables.errors import ExportError, HilnasError
from latency_tables.estimate import Estimate
from latency_tables.files import write_json
from latency_tables.pooling import pool
from latency_tables.records import DeviceFingerprint, Measurement
from pipeline import __version__
from pipeline.export.accuracy import Accuracy
from pipeline.export.compare import ParityReport
from pipeline.export.hygiene import check_private, scrub_private
from pipeline.export.onnx_file import INPUT_NAME, OUTPUT_NAME, ExportedModel

SCHEMA_VERSION = 1
MANIFEST_NAME, MODEL_NAME, GOLDEN_NAME = "manifest.json", "subnet.onnx", "golden.npz"
MAX_MANIFEST_BYTES = 4 * 2**20

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Utc = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)$")]
Choice = str | int | float
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class _Strict(BaseModel):
    """Unknown keys are refused, types are not converted, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TensorSpec(_Strict):
    """One input or output of the model."""

    name: str
    shape: list[int]
    dtype: Literal["float32"] = "float32"


class ModelFile(_Strict):
    """``subnet.onnx``: hash, format, tensors."""

    name: Literal["subnet.onnx"] = "subnet.onnx"
    sha256: Sha256
    size_bytes: int
    opset: int
    ir_version: int
    n_operators: int
    operators: dict[str, int]
    input: TensorSpec
    output: TensorSpec


class GoldenFile(_Strict):
    """``golden.npz``: inputs and torch's logits, to check the model without the data set."""

    name: Literal["golden.npz"] = "golden.npz"
    sha256: Sha256
    n_images: int


class Latency(_Strict):
    """An :class:`~latency_tables.estimate.Estimate` as it is written to the file."""

    latency_ms: float
    low_ms: float
    high_ms: float
    level: float
    key: str
    source: Literal["measured", "table", "predicted"]
    n: int
    in_support: bool

    @classmethod
    def of(cls, estimate: Estimate) -> Latency:
        """Take over an Estimate."""
        return cls(**estimate.to_dict())

    def estimate(self) -> Estimate:
        """The Estimate that was written."""
        return Estimate.from_dict(self.model_dump())


class Finding(_Strict):
    """A verdict of a measurement."""

    code: str
    severity: Literal["fail", "warn"]
    evidence: str


class DeviceEntry(_Strict):
    """What was measured on one device, and when."""

    name: str
    fingerprint: str
    identity: dict[str, Any]
    runtime: dict[str, Any]
    threads: int
    cores: list[int]
    profile: str
    measured_utc: Utc | None
    latency: Latency | None
    verdicts: list[Finding] = []
    table_sha256: Sha256 | None = None

    @classmethod
    def of(
        cls,
        measurement: Measurement,
        device: DeviceFingerprint,
        *,
        latency: Estimate | None = None,
        table_sha256: str | None = None,
    ) -> DeviceEntry:
        """Describe where and when the network was measured, without private texts.

        ``latency`` is the Estimate to promise; by default the measurement's own, if it is usable.
        """
        if latency is None and measurement.ok:
            latency = pool([measurement], source="measured")
        return cls(
            name=measurement.device_name,
            fingerprint=device.fingerprint,
            identity=scrub_private(device.identity),
            runtime=scrub_private(measurement.runtime),
            threads=measurement.threads,
            cores=list(measurement.cores),
            profile=str(measurement.provenance.get("profile", "")),
            measured_utc=measurement.provenance.get("utc"),
            latency=None if latency is None else Latency.of(latency),
            verdicts=[Finding(**scrub_private(v.to_dict())) for v in measurement.verdicts],
            table_sha256=table_sha256,
        )


class LimitEntry(_Strict):
    """One limit of the search and what the exported network needs; None where it is not known.

    ``device`` is None for limits that hold everywhere, such as MACs.
    """

    name: str
    device: str | None
    limit: float
    value: float | None
    unit: str
    kept: bool | None


class AccuracyEntry(_Strict):
    """Top-1 accuracy and on how many images it was taken."""

    value: Share
    n_images: int

    @classmethod
    def of(cls, accuracy: Accuracy) -> AccuracyEntry:
        """Take over what :func:`pipeline.export.accuracy.onnx_accuracy` found."""
        return cls(value=accuracy.value, n_images=accuracy.n_images)


class AccuracyBlock(_Strict):
    """``search_validation`` chose the network (torch), ``test`` was read once at the end (ONNX)."""

    search_validation: AccuracyEntry | None
    test: AccuracyEntry | None


class ParityEntry(_Strict):
    """Torch against the file on real images."""

    n_images: int
    max_abs_diff: float
    allowed: float
    tolerance: float
    argmax_agreement: Share

    @classmethod
    def of(cls, report: ParityReport, *, tolerance: float) -> ParityEntry:
        """Take over a ParityReport."""
        return cls(
            n_images=report.n_images,
            max_abs_diff=report.max_abs_diff,
            allowed=report.allowed,
            tolerance=tolerance,
            argmax_agreement=report.agreement,
        )


class Manifest(_Strict):
    """The whole of manifest.json."""

    schema_version: Literal[1] = 1
    kind: Literal["hilnas-export"] = "hilnas-export"
    created_utc: Utc
    model: ModelFile
    golden: GoldenFile
    space: dict[str, Any]
    space_id: str
    arch: dict[str, Choice]
    weights_sha256: Sha256
    dataset: dict[str, Any]
    preprocessing: dict[str, Any]
    classes: list[str]
    costs: dict[str, float]
    accuracy: AccuracyBlock
    parity: ParityEntry
    limits: list[LimitEntry]
    devices: list[DeviceEntry]
    seed: int
    versions: dict[str, str]

    def architecture(self) -> Arch:
        """The architecture as the space knows it."""
        return Arch(self.arch)


def model_file(
    model: ExportedModel, *, input_shape: tuple[int, int, int], n_classes: int
) -> ModelFile:
    """Describe an exported file; ``input_shape`` is (C, H, W)."""
    return ModelFile(
        sha256=model.sha256,
        size_bytes=model.size_bytes,
        opset=model.opset,
        ir_version=model.ir_version,
        n_operators=model.n_operators,
        operators=model.operator_histogram,
        input=TensorSpec(name=INPUT_NAME, shape=[1, *input_shape]),
        output=TensorSpec(name=OUTPUT_NAME, shape=[1, n_classes]),
    )


def current_versions() -> dict[str, str]:
    """Versions of hilnas, Python and the packages that decide what the file holds."""
    found = {"hilnas": __version__, "python": platform.python_version()}
    for package in ("torch", "onnx", "onnxscript", "onnxruntime", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write manifest.json, whole or not at all.

    Raises:
        ExportError: a value is a path or names this machine or its user.
    """
    data = manifest.model_dump(mode="json")
    # a class may be called as the user is; that is the data set's own vocabulary
    check_private({key: value for key, value in data.items() if key != "classes"})
    check_private(data["classes"], names=(), where="classes")
    write_json(path, data)


def load_manifest(path: Path) -> Manifest:
    """Read manifest.json.

    Raises:
        ExportError: it is missing, no JSON, or a field is missing, unknown or of a wrong type.
    """
    try:
        size = path.stat().st_size
        if size > MAX_MANIFEST_BYTES:
            raise ExportError(f"{path.name} has {size:,} bytes; {MAX_MANIFEST_BYTES:,} are allowed")
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(
            f"there is no {path.name} in {path.parent}", hint="hilnas export"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{path.name} is damaged: {error}", hint="hilnas export") from None
    return parse_manifest(data, name=path.name)


def parse_manifest(data: object, *, name: str = MANIFEST_NAME) -> Manifest:
    """Check decoded JSON; raises ExportError naming the first wrong field and the schema."""
    found = data.get("schema_version") if isinstance(data, Mapping) else None
    if found != SCHEMA_VERSION or isinstance(found, bool):
        raise ExportError(
            f"{name} has schema version {found!r}; this version reads {SCHEMA_VERSION}",
            hint="hilnas export",
        )
    try:
        manifest = Manifest.model_validate(data)
        for device in manifest.devices:
            if device.latency is not None:
                device.latency.estimate()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the manifest"
        raise ExportError(f"{name}: {where}: {first['msg']}", hint="hilnas export") from None
    except ExportError:
        raise
    except HilnasError as error:
        raise ExportError(f"{name}: {error.message}", hint="hilnas export") from None
    return manifest
