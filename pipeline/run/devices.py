"""The devices of a run: how they are reached, what their table holds, what answers for them."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from device_agents.devices import DeviceSpec
from device_agents.measuring.measurer import DeviceMeasurer, Progress
from device_agents.measuring.pool import Member, Pool
from device_agents.measuring.reference import reference_for
from latency_tables.arch import Arch
from latency_tables.interchange import Header
from latency_tables.onnx_writer import to_onnx
from latency_tables.oracle import Deployment, MeasureJob, Oracle
from latency_tables.records import Measurement
from latency_tables.remarks import MEASURED
from latency_tables.store import SpaceInfo, TableStore
from pipeline import __version__
from pipeline.config import DeviceConfig
from pipeline.export.record import graph_of
from pipeline.spaces.base import Space, net_id

if TYPE_CHECKING:
    from pipeline.run.context import RunContext


SETTLED = 0.1
"""Allowed change of the reference network between the table and the front."""

DRIFTED = 0.15
"""Change of the reference network between batches from which a table's network is measured anew."""

PAUSES_S = (5.0, 20.0)
"""How long to wait for a device to settle before it is measured again."""


class RunDevice:
    """One device of a run.

    Measuring is exclusive where the device is this machine: nothing else of the run computes
    meanwhile, because every stage that measures waits for it.
    """

    def __init__(
        self,
        config: DeviceConfig,
        spec: DeviceSpec,
        *,
        space: Space,
        store: TableStore,
        seed: int,
    ) -> None:
        spec = replace(
            spec,
            threads=config.threads or spec.threads,
            reference=reference_for(space.cost_table().mean("macs")),
        )
        self.config, self.space, self.store = config, space, store
        self.measurer = DeviceMeasurer(
            spec, profile=config.measuring, seed=seed, command="hilnas run",
            on_result=self._keep,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """Name in the run file."""
        return self.config.name

    @cached_property
    def deployment(self) -> Deployment:
        """Device, runtime, threads and cores; asks the device."""
        fingerprint = self.measurer.fingerprint()
        self.store.add_device(self.name, fingerprint)
        return Deployment(
            device_name=self.name,
            device_fp=fingerprint.fingerprint,
            runtime=self.measurer.runtime(),
            threads=self.measurer.device.threads,
            cores=self.measurer.cores(),
        )

    def missing(self, archs: Sequence[Arch]) -> list[Arch]:
        """Those of ``archs`` that the live table has no latency of."""
        keys = {arch: self.deployment.key(net_id(self.space, arch)) for arch in archs}
        known = self.store.pooled_all(list(keys.values()))
        return [arch for arch, key in keys.items() if key not in known]

    def records(self, archs: Sequence[Arch]) -> list[Measurement]:
        """Every usable record of ``archs`` in the live table, in their order."""
        return [
            record
            for arch in archs
            for record in self.store.records(self.deployment.key(net_id(self.space, arch)))
        ]

    def live_oracle(self) -> Oracle:
        """Measures on the device and keeps every record in the live table."""
        return Oracle(
            self.store,
            self.deployment,
            identify=lambda arch: net_id(self.space, arch),
            make_job=lambda arch: measure_job(self.space, arch),
            measurer=self.measurer,
        )

    def measure(
        self, archs: Sequence[Arch], on_progress: Callable[[Progress], None] | None = None
    ) -> list[Measurement]:
        """Measure now; one record per architecture, all kept in the live table.

        Architectures that are the same network share a record: a session keeps one per network.
        """
        nets = [net_id(self.space, arch) for arch in archs]
        asked: dict[str, Arch] = {}
        for net, arch in zip(nets, archs, strict=True):
            asked.setdefault(net, arch)
        self.measurer.on_progress = on_progress
        try:
            records = self.live_oracle().measure(list(asked.values()))
        finally:
            self.measurer.on_progress = None
        found = dict(zip(asked, records, strict=True))
        return [found[net] for net in nets]

    def measure_settled(
        self,
        archs: Sequence[Arch],
        reference_ns: float,
        on_retry: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> list[Measurement]:
        """Measure while the device is as fast as it was when its table was built.

        ``reference_ns`` is the reference network's latency of that time. Where it is off by more
        than ``SETTLED`` now, the device is in another state (busy, hot, clocked otherwise), and
        the networks are measured again a little later; after the last attempt the one closest to
        the table's state counts. Every record is kept, drifted ones carry their verdict.
        """
        best: tuple[float, list[Measurement]] | None = None
        for pause_s in (*PAUSES_S, None):
            records = self.measure(archs)
            found = reference_of(records)
            drift = abs(found / reference_ns - 1.0) if found is not None else 0.0
            if best is None or drift < best[0]:
                best = drift, records
            if drift <= SETTLED or pause_s is None:
                break
            on_retry(
                f"{self.name} is {drift:.0%} off its speed of the table; measuring again in "
                f"{pause_s:.0f} s"
            )
            sleep(pause_s)
        return best[1] if best is not None else []

    def close(self) -> None:
        """End the agent."""
        self.measurer.session.close()

    def _keep(self, records: list[Measurement]) -> None:
        """Store each batch as soon as it ends, so that a kill loses at most one batch."""
        self.store.add_all(records)


def measure_on_all(
    wanted: Sequence[tuple[RunDevice, Sequence[Arch]]],
    on_progress: Callable[[Progress], None],
    on_note: Callable[[str], None],
) -> None:
    """Measure on every device what it is asked for; all records are in the live table then.

    Several boards measure at the same time, this machine by itself.

    Raises:
        DeviceError: a device failed for good; what was measured is kept.
    """
    asked = [(device, archs) for device, archs in wanted if archs]
    boards = [(d, archs) for d, archs in asked if not d.measurer.transport.exclusive]
    together = boards if len(boards) > 1 else []
    for device, archs in asked:
        if (device, archs) not in together:
            device.measure(archs, on_progress)
    if together:
        _measure_together(together, on_progress, on_note)


def _measure_together(
    wanted: Sequence[tuple[RunDevice, Sequence[Arch]]],
    on_progress: Callable[[Progress], None],
    on_note: Callable[[str], None],
) -> None:
    """Measure on several boards at the same time."""
    shared = _Sum(on_progress)
    for device, _ in wanted:
        device.measurer.on_progress = shared.of(device.name)
    members = {device.name: Member(device.measurer) for device, _ in wanted}
    try:
        with Pool(members, on_note=on_note) as pool:
            tickets = [
                pool.submit([measure_job(d.space, arch) for arch in archs], to=d.name)
                for d, archs in wanted
            ]
            for ticket in tickets:
                pool.collect(ticket)
    finally:
        for device, _ in wanted:
            device.measurer.on_progress = None


class _Sum:
    """Progress of several devices as one."""

    def __init__(self, on_progress: Callable[[Progress], None]) -> None:
        self.on_progress = on_progress
        self._latest: dict[str, Progress] = {}
        self._lock = threading.Lock()

    def of(self, name: str) -> Callable[[Progress], None]:
        """What the device ``name`` tells its progress."""

        def tell(progress: Progress) -> None:
            with self._lock:
                self._latest[name] = progress
                known = list(self._latest.values())
                note = f"{name}: {progress.note}" if progress.note else ""
                total = Progress(
                    done=sum(p.done for p in known), total=sum(p.total for p in known), note=note
                )
                self.on_progress(total)

        return tell


def reference_of(records: Sequence[Measurement]) -> float | None:
    """Median latency of the reference network in the sessions of ``records``, in nanoseconds."""
    found = [value for m in records if (value := _reference_ns(m)) is not None]
    return statistics.median(found) if found else None


def drifted_networks(records: Sequence[Measurement]) -> list[str]:
    """Net ids whose every session saw the reference network off its median by over ``DRIFTED``."""
    usual = reference_of(records)
    return [m.net_id for m in closest_sessions(records) if _drift(m, usual) > DRIFTED]


def closest_sessions(records: Sequence[Measurement]) -> list[Measurement]:
    """One record per network: the session in which the device was closest to its usual state."""
    usual = reference_of(records)
    chosen: dict[str, Measurement] = {}
    for record in records:
        known = chosen.get(record.net_id)
        if known is None or _drift(record, usual) < _drift(known, usual):
            chosen[record.net_id] = record
    return list(chosen.values())


def _reference_ns(record: Measurement) -> float | None:
    value = record.provenance.get("rounds", {}).get("reference_ns")
    return float(value) if isinstance(value, int | float) else None


def _drift(record: Measurement, usual_ns: float | None) -> float:
    """How far the device was off its usual speed; 0 where no reference was measured."""
    found = _reference_ns(record)
    return 0.0 if found is None or usual_ns is None else abs(found / usual_ns - 1.0)


def measure_job(space: Space, arch: Arch) -> MeasureJob:
    """The network of ``arch`` without its weights, as it travels to a device."""
    candidate = to_onnx(graph_of(space, arch))
    return MeasureJob(
        net_id=net_id(space, arch),
        arch=arch,
        onnx=candidate.model,
        weights=candidate.weights_spec,
        space_id=space.space_id,
    )


def open_devices(context: RunContext) -> tuple[RunDevice, ...]:
    """Make the devices of a run file and tell the table which space is measured."""
    space = context.space
    context.store.add_space(space_info(space))
    return tuple(
        RunDevice(
            config,
            context.inventory.find(config.name),
            space=space,
            store=context.store,
            seed=context.config.seed,
        )
        for config in context.config.device
    )


def space_info(space: Space) -> SpaceInfo:
    """What tables keep of a space."""
    return SpaceInfo(
        space_id=space.space_id,
        name=f"{space.name}/{space.preset}",
        cost_table_hash=space.cost_table().table_hash,
    )


def table_header(space: Space, *, created: str, n_measurements: int) -> Header:
    """First line of the run's frozen table."""
    return Header(
        space=space_info(space),
        created=created,
        tool_version=__version__,
        n_measurements=n_measurements,
        labels=(MEASURED,),
    )


def hello(spec: DeviceSpec) -> str:
    """Start a device's agent once and say what answered."""
    measurer = DeviceMeasurer(spec)
    runtime, cores = measurer.runtime(), measurer.cores()
    return f"{runtime['name']} {runtime['version']}, core {', '.join(map(str, cores))}"
