"""How long measuring networks will take, and what that is known from.

Records say how long the device was busy with them (``provenance.rounds.busy_ns``). Where a device
has none of this space, its time for the reference network stands in; where it has none at all, the
measuring profile does, and whoever asks should measure a few networks first.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from device_agents.measuring.measurer import CHILD_START_S, DeviceMeasurer
from latency_tables.errors import DeviceError
from latency_tables.records import Measurement
from pipeline.run.devices import RunDevice, reference_of

Basis = Literal["records", "reference", "profile", "offline"]

PREPARE_S = 0.03
"""Making the file of one network on the host and sending it."""

LOAD_S = 0.02
"""Loading one network on the device in one round, as the measuring profiles have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeEstimate:
    """What measuring ``n`` networks on a device takes, in seconds, and how that is known.

    ``basis`` is "records" (``n_known`` networks of this space measured there before), "reference"
    (only the reference network is known there), "profile" (nothing is: what the measuring profile
    needs for a small network) or "offline" (the same, because the device did not answer).
    """

    device: str
    n: int
    seconds: float
    basis: Basis
    n_known: int = 0

    def __str__(self) -> str:
        networks = f"{self.n} network{'s' if self.n != 1 else ''} on {self.device}"
        if not self.n:
            return f"{networks}: the table has them all"
        source = {
            "records": f"from {self.n_known} measured there before",
            "reference": "from the reference network's time there",
            "profile": "from the measuring profile alone: nothing was measured there yet",
            "offline": "from the measuring profile alone: the device does not answer",
        }[self.basis]
        return f"{networks}, about {duration(self.seconds)} ({source})"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


def estimate_time(device: RunDevice, n: int) -> TimeEstimate:
    """How long ``n`` networks of the run's space take on a device. Raises DeviceError."""
    deployment, profile = device.deployment, device.measurer.profile.name
    found = [
        m
        for m in device.store.measurements(device_fp=deployment.device_fp)
        if m.provenance.get("profile") == profile
    ]
    same = [
        m
        for m in found
        if m.space_id == device.space.space_id
        and m.threads == deployment.threads
        and m.runtime.get("name") == deployment.runtime["name"]
        and busy_seconds(m) is not None
    ]
    if same:
        known = len({m.net_id for m in same})
        return TimeEstimate(
            device=device.name, n=n, seconds=seconds_from(same, device.measurer, n),
            basis="records", n_known=known,
        )  # fmt: skip
    spec = device.measurer.device
    reference_ns = reference_of(
        [m for m in found if m.provenance.get("reference") == spec.reference]
    )
    if reference_ns is not None:
        seconds = device.measurer.estimate_seconds(n, reference_ns / 1e6)
        return TimeEstimate(device=device.name, n=n, seconds=seconds, basis="reference")
    return _from_profile(device, n, "profile")


def planned_time(device: RunDevice, count: Callable[[], int], *, otherwise: int) -> TimeEstimate:
    """What is planned on a device, where ``count`` may have to ask it how many networks it lacks.

    A device that does not answer is planned for all the same, with ``otherwise`` networks.
    """
    try:
        return estimate_time(device, count())
    except DeviceError:
        return _from_profile(device, otherwise, "offline")


def _from_profile(device: RunDevice, n: int, basis: Basis) -> TimeEstimate:
    seconds = device.measurer.estimate_seconds(n)
    return TimeEstimate(device=device.name, n=n, seconds=seconds, basis=basis)


def busy_seconds(record: Measurement) -> float | None:
    """How long the device warmed up and timed one network, all rounds together."""
    value = record.provenance.get("rounds", {}).get("busy_ns")
    return float(value) / 1e9 if isinstance(value, int | float) and value > 0 else None


def seconds_from(records: Sequence[Measurement], measurer: DeviceMeasurer, n: int) -> float:
    """Seconds that ``n`` networks take that are like those of ``records``.

    Timed runs, loading and preparing of each network; visits to the reference network, one per
    ``reference_every`` networks and two per batch; a process per batch and round.
    """
    profile = measurer.profile
    busy = [value for m in records if (value := busy_seconds(m)) is not None]
    rounds = statistics.fmean([m.statistics.n_rounds for m in records if m.statistics is not None])
    reference_ms = (reference_of(records) or 0.0) / 1e6
    batches = -(-n // measurer.batch_size)
    visits = n / profile.reference_every + 2 * batches
    per_network = statistics.fmean(busy) + rounds * LOAD_S + PREPARE_S
    per_round = visits * profile.net_seconds(reference_ms) + batches * CHILD_START_S
    return n * per_network + rounds * per_round


def duration(seconds: float) -> str:
    """A duration as a person says it.

    >>> duration(40), duration(200), duration(8000)
    ('40 s', '3 min', '2.2 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
