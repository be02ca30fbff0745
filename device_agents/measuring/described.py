"""What measuring needs of a probe: which device this is, which runtime it uses, which cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from device_agents.devices import DeviceSpec
from device_agents.identity import cores_of, fingerprint, runtime_of
from device_agents.runtimes.artefacts import board_options
from latency_tables.errors import MissingRuntimeError
from latency_tables.files import canonical_json
from latency_tables.records import DeviceFingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What a probe said, digested for the settings of one device."""

    fingerprint: DeviceFingerprint
    runtime: dict[str, Any]
    cores: tuple[int, ...]


def describe(said: Mapping[str, Any], device: DeviceSpec) -> Described:
    """Digest a probe.

    Raises MissingRuntimeError where the device lacks the runtime or the provider, UsageError where
    it lacks the cores.
    """
    return Described(
        fingerprint=fingerprint(dict(said)),
        runtime=_runtime(said, device),
        cores=timed_cores(said, device),
    )


def timed_cores(said: Mapping[str, Any], device: DeviceSpec) -> tuple[int, ...]:
    """The cores that a device's settings pin to, on the board that ``said`` describes."""
    return cores_of(dict(said), device.cores, device.threads, device.pin)


def _runtime(said: Mapping[str, Any], device: DeviceSpec) -> dict[str, Any]:
    """The runtime with what was chosen of it."""
    runtime = runtime_of(dict(said), device.runtime, device.optimization, device.name)
    offered = next(
        (r.get("providers") for r in said["runtimes"] if r.get("name") == device.runtime), None
    )
    if device.provider:
        if isinstance(offered, list) and device.provider not in offered:
            raise MissingRuntimeError(
                f"{device.runtime} on {device.name} has no provider {device.provider!r}; "
                f"it has {', '.join(map(str, offered))}"
            )
        runtime["provider"] = device.provider
    options = board_options(device.runtime_options)
    if options:
        # the key of a latency holds the provider, and options change latencies as much
        runtime["provider"] += " " + canonical_json(options)
        runtime["options"] = options
    return runtime
