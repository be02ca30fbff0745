"""Which records of the live table a run uses, and measuring those that it lacks.

A run uses every usable record of its space, device and setting: those of the networks it asks for,
and all others that met the device in its usual state, whoever measured them. Of several sessions of
one network the one closest to that state counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from device_agents.measuring.measurer import Progress
from latency_tables.arch import Arch
from latency_tables.errors import MissingLatencyError
from latency_tables.records import Measurement
from pipeline.run.context import RunContext
from pipeline.run.devices import (
    DRIFTED,
    RunDevice,
    closest_sessions,
    drifted_networks,
    measure_on_all,
    reference_of,
)
from pipeline.run.table_time import estimate_time
from pipeline.spaces.base import net_id

N_FIRST = 3
"""Networks that are measured to know how long the others take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRecords:
    """One record per network of a device: of the networks asked for, and of others."""

    asked: tuple[Measurement, ...]
    others: tuple[Measurement, ...]

    @property
    def all(self) -> list[Measurement]:
        """What the latency model is fitted on."""
        return [*self.asked, *self.others]


def usable_records(device: RunDevice) -> list[Measurement]:
    """Every usable record of the run's space on a device in its setting, oldest first."""
    found = device.store.measurements(
        device_fp=device.deployment.device_fp,
        space_id=device.space.space_id,
        setting=device.deployment.setting,
    )
    return [m for m in found if m.arch is not None]


def known_networks(device: RunDevice) -> list[Arch]:
    """The networks that the table of a device has a latency of, each once."""
    by_net = {m.net_id: m.arch for m in usable_records(device)}
    return [arch for arch in by_net.values() if arch is not None]


def n_missing(device: RunDevice, archs: Sequence[Arch]) -> int:
    """How many of ``archs`` the table of a device lacks. Raises DeviceError."""
    return len(device.missing(archs))


def chosen_records(device: RunDevice, archs: Sequence[Arch]) -> TableRecords:
    """What the table of a device gives a run that asks for ``archs``.

    Raises:
        MissingLatencyError: it has none of them.
    """
    asked = device.records(archs)
    if not asked:
        raise MissingLatencyError(
            f"not one of {len(archs)} networks could be measured on {device.name!r}",
            hint=f"hilnas devices doctor {device.name}",
        )
    usual_ns = reference_of(asked)
    names = {m.net_id for m in asked}
    others = closest_sessions([m for m in usable_records(device) if m.net_id not in names])
    return TableRecords(
        asked=tuple(closest_sessions(asked)),
        others=tuple(m for m in others if _is_usual(m, usual_ns)),
    )


def _is_usual(record: Measurement, usual_ns: float | None) -> bool:
    found_ns = reference_of([record])
    return found_ns is None or usual_ns is None or abs(found_ns / usual_ns - 1.0) <= DRIFTED


def measure_missing(context: RunContext, wanted: Mapping[str, Sequence[Arch]]) -> None:
    """Measure what the live table lacks of ``wanted`` (by device), boards at once.

    Says before it starts how long it takes; where nothing is known about a device, a few networks
    are measured first. Networks whose batch just saw the device much slower or faster than the
    others did are measured once more.

    Raises:
        DeviceError: a device failed; what was measured is kept.
    """
    asked = [(d, list(wanted.get(d.name, ()))) for d in context.devices]
    missing = [(device, device.missing(archs)) for device, archs in asked]
    for (device, archs), (_, lacking) in zip(asked, missing, strict=True):
        if archs and len(lacking) < len(archs):
            context.reporter.say(
                f"  {len(archs) - len(lacking)} of {len(archs)} networks are in the table of "
                f"{device.name} already"
            )
    if not any(lacking for _, lacking in missing):
        return
    names = ", ".join(device.name for device, lacking in missing if lacking)
    with context.reporter.bar(f"on {names}") as advance:

        def show(progress: Progress) -> None:
            advance(progress.done, progress.total, progress.note)

        rest = _announced(context, missing, show)
        measure_on_all(rest, show, context.reporter.warn)
        drifted = [
            (device, _drifted(context, device, lacking, archs))
            for (device, archs), (_, lacking) in zip(asked, missing, strict=True)
        ]
        for device, again in drifted:
            if again:
                context.reporter.say(
                    f"  {len(again)} networks met {device.name} in another state than the others; "
                    "measuring them again"
                )
        measure_on_all(drifted, show, context.reporter.warn)


def _announced(
    context: RunContext,
    missing: Sequence[tuple[RunDevice, Sequence[Arch]]],
    show: Callable[[Progress], None],
) -> list[tuple[RunDevice, Sequence[Arch]]]:
    """Say how long it takes; gives what is left where a few had to be measured for that."""
    unknown = {
        device.name
        for device, lacking in missing
        if len(lacking) > N_FIRST and estimate_time(device, 1).basis == "profile"
    }
    if unknown:
        context.reporter.say(
            f"  nothing was measured on {', '.join(sorted(unknown))} yet; {N_FIRST} networks first "
            "tell how long the others take"
        )
        first = [(d, lacking[:N_FIRST]) for d, lacking in missing if d.name in unknown]
        measure_on_all(first, show, context.reporter.warn)
    rest = [(d, lacking[N_FIRST:] if d.name in unknown else lacking) for d, lacking in missing]
    for device, lacking in rest:
        if lacking:
            context.reporter.say(f"  {estimate_time(device, len(lacking))}")
    return rest


def _drifted(
    context: RunContext, device: RunDevice, fresh: Sequence[Arch], archs: Sequence[Arch]
) -> list[Arch]:
    """Those of ``fresh`` that met the device in another state than the table did."""
    if not fresh:
        return []
    by_net = {net_id(context.space, arch): arch for arch in fresh}
    records = usable_records(device)
    return [by_net[net] for net in drifted_networks(records) if net in by_net]
