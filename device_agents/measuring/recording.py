"""From a result to a record: what a number is about, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from device_agents.devices import DeviceSpec
from device_agents.measuring.batches import NetResult
from device_agents.measuring.described import Described
from device_agents.runtimes.artefacts import Artefact
from latency_tables.arch import Arch
from latency_tables.files import sha256_bytes
from latency_tables.records import Measurement


def record(
    result: NetResult,
    *,
    net_id: str,
    onnx: bytes,
    artefact: Artefact | None,
    device: DeviceSpec,
    described: Described,
    provenance: Mapping[str, Any],
    arch: Arch | None = None,
    space_id: str = "",
) -> Measurement:
    """The record of one network; ``artefact`` None: it could not be prepared for the device."""
    sha256 = sha256_bytes(onnx)
    notes = list(artefact.notes) if artefact is not None else []
    return Measurement(
        net_id=net_id,
        arch=arch,
        space_id=space_id,
        onnx_sha256=sha256,
        artefact_sha256=sha256 if artefact is None else artefact.sha256,
        runtime=described.runtime,
        threads=device.threads,
        cores=described.cores,
        device_name=device.name,
        device_fp=described.fingerprint.fingerprint,
        statistics=result.statistics,
        peak_memory_bytes=peak_memory_bytes(result),
        verdicts=result.verdicts,
        error=result.failure,
        provenance={**provenance, **({"artefact_notes": notes} if notes else {})},
    )


def peak_memory_bytes(result: NetResult) -> int | None:
    """Growth of the resident set by loading and running once; None where it was not measured."""
    memory = result.details.get("memory") or {}
    if "peak_bytes" not in memory:
        return None
    growth: int = memory["peak_bytes"] - memory["baseline_bytes"]
    return max(0, growth)


def tool_version() -> str:
    """Version of the installed distribution, or of none."""
    try:
        return version("hilnas")
    except PackageNotFoundError:
        return "not installed"
