"""Time networks on a device: the measurer that tables and searches are given.

>>> from device_agents.devices import load_device
>>> DeviceMeasurer(load_device("local"), profile="quick").estimate_seconds(40) < 60
True
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from device_agents.board.frames import PROTOCOL_VERSION
from device_agents.devices import DeviceSpec, default_workdir
from device_agents.files.onnx_files import external_locations
from device_agents.identity import clean_json
from device_agents.link.client import clean_text
from device_agents.link.local import MachineLock, unlocked
from device_agents.link.session import Session
from device_agents.link.transport import Transport
from device_agents.link.transports import make_transport
from device_agents.measuring.batches import START_S, Batch, Net, NetResult
from device_agents.measuring.connection import Connection
from device_agents.measuring.described import Described, describe
from device_agents.measuring.profiles import Profile, load_profile
from device_agents.measuring.recording import record, tool_version
from device_agents.measuring.reference import reference_model
from device_agents.runtimes.artefacts import Artefact, artefact_request, board_options, prepare
from latency_tables.errors import MeasurementError, UsageError
from latency_tables.oracle import MeasureJob
from latency_tables.records import DeviceFingerprint, Failure, Measurement

CHILD_START_S = 0.35
"""Interpreter, numpy and runtime start of one round's process on a slow core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a call of ``measure`` is: networks × rounds done, out of at most ``total``."""

    done: int
    total: int
    note: str = ""


class DeviceMeasurer:
    """Measures jobs on one device; implements :class:`latency_tables.oracle.Measurer`.

    ``on_result`` gets the records of each batch as soon as it ends, so that they can be journalled
    before the whole call does. ``command`` is kept as provenance. ``batch_size`` networks share a
    process per round, by default as many as the profile says. Used as a context manager, the
    connection and the lease stay between calls; otherwise every call takes and frees them.
    """

    def __init__(
        self,
        device: DeviceSpec,
        *,
        profile: str | Profile = "quick",
        batch_size: int | None = None,
        seed: int = 0,
        peak_memory: bool = False,
        command: str = "",
        transport: Transport | None = None,
        archive: bytes | None = None,
        lease_wait_s: float = 20.0,
        on_progress: Callable[[Progress], None] | None = None,
        on_result: Callable[[list[Measurement]], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"batches of {batch_size} networks; at least 1 is needed")
        self.device, self.profile = device, load_profile(profile)
        self.batch_size = batch_size or self.profile.batch_size
        self.seed, self.peak_memory, self.command = seed, peak_memory, command
        self.on_progress, self.on_result = on_progress, on_result
        self.transport = transport or make_transport(device)
        self.session = Session(
            self.transport,
            lease_wait_s=lease_wait_s,
            archive=archive,
            deadline_s=device.deadline_s,
            sleep=sleep,
        )
        self.connection = Connection(
            self.session, device, self.profile, tell=self._tell, sleep=sleep
        )
        self._lock = MachineLock((device.workdir or default_workdir()) / "compute.lock")
        self._described: Described | None = None
        self._kept_open = False
        self._reference_ns: list[float] = []
        self._reference_files: dict[str, Any] = {}
        self.busy_s = 0.0
        """Warm-up and timed runs so far, reference and dropped rounds included."""
        self._done, self._total = 0, 0
        self.session_id = uuid.uuid4().hex
        """Names one call of :meth:`measure`; with a record's key it is unique."""

    # ---- connection ---------------------------------------------------------------------------

    def __enter__(self) -> DeviceMeasurer:
        self._kept_open = True
        return self

    def __exit__(self, *_: object) -> None:
        self._kept_open = False
        self.session.close()

    def exclusive(self) -> AbstractContextManager[object]:
        """Hold this while the host computes: it waits for measurements on the same machine.

        Does nothing for a device that is another machine.
        """
        return self._lock if self.transport.exclusive else unlocked()

    def stop(self) -> None:
        """End the connection, from any thread; a call that is measuring raises LinkLostError.

        What it finished was told to ``on_result``. Later calls connect anew.
        """
        self.connection.stop()

    @contextlib.contextmanager
    def connected(self) -> Iterator[Session]:
        """An open session that holds the device, and this machine if they are one.

        Raises UnreachableError, LeasedError, LinkLostError or ProtocolError.
        """
        with self.exclusive():
            mine = not self.session.is_open and not self._kept_open  # not so in an inner call
            try:
                if not self.session.is_open:
                    self._reference_files = {}
                    self.connection.open()
                yield self.session
            finally:
                if mine:
                    self.session.close()

    def _tell(self, note: str = "", step: int = 0) -> None:
        self._done += step
        if self.on_progress is not None:
            self.on_progress(Progress(done=self._done, total=self._total, note=note))

    # ---- describing ---------------------------------------------------------------------------

    def probe(self) -> dict[str, Any]:
        """What the board says about itself, without control codes. Raises DeviceError."""
        with self.connected():
            said: dict[str, Any] = clean_json(
                self.connection.again(lambda: self.session.probe([self.device.runtime]))
            )
            return said

    def fingerprint(self) -> DeviceFingerprint:
        """Which device this is and in which state. Raises DeviceError."""
        return self.described().fingerprint

    def runtime(self) -> dict[str, Any]:
        """The runtime that measurements use: name, version, provider, graph_optimization."""
        return dict(self.described().runtime)

    def cores(self) -> tuple[int, ...]:
        """The cores that measurements are pinned to."""
        return self.described().cores

    def described(self) -> Described:
        """What a probe said, digested; asked once. Raises DeviceError."""
        if self._described is None:
            said = self.probe()
            self._described = describe(said, self.device)
        return self._described

    def estimate_seconds(self, n_nets: int, net_ms: float = 0.5) -> float:
        """Expected duration of measuring ``n_nets`` networks of about ``net_ms`` each."""
        batches = -(-n_nets // self.batch_size)
        references = n_nets / self.profile.reference_every + 2 * batches
        per_round = (n_nets + references) * self.profile.net_seconds(net_ms)
        return self.profile.min_rounds * (per_round + batches * CHILD_START_S)

    # ---- measuring ----------------------------------------------------------------------------

    def measure(self, jobs: Sequence[MeasureJob]) -> list[Measurement]:
        """Time ``jobs``: one record per job, in their order; failed ones carry ``error``.

        Raises DeviceError for faults that concern the whole device, after bounded retries.
        """
        self._done, self._total = 0, len(jobs) * self.profile.max_rounds
        records: list[Measurement] = []
        if not jobs:
            return records
        with self.connected(), self.connection.clocked():
            self.session_id = uuid.uuid4().hex
            self.described()
            for start in range(0, len(jobs), self.batch_size):
                batch = self._measure_batch(jobs[start : start + self.batch_size], start)
                records += batch
                if self.on_result is not None:
                    self.on_result(batch)
                self._done = min(len(jobs), start + self.batch_size) * self.profile.max_rounds
                self._tell()
        return records

    def _measure_batch(self, jobs: Sequence[MeasureJob], start: int) -> list[Measurement]:
        prepared: dict[str, Artefact] = {}
        results: dict[str, NetResult] = {}
        for index, job in enumerate(jobs, start):
            try:
                prepared[str(index)] = self._prepare(job)
            except MeasurementError as error:
                failure = Failure(code=error.code, message=error.message, blames=error.blames)
                results[str(index)] = NetResult(failure=failure)
        nets = self._send(prepared)
        results.update(self.run_nets(nets, order_seed=start))
        utc = datetime.now(UTC).isoformat(timespec="seconds")
        return [
            record(
                results[str(index)],
                net_id=job.net_id,
                onnx=job.onnx,
                artefact=prepared.get(str(index)),
                device=self.device,
                described=self.described(),
                provenance=self.provenance(results[str(index)], index, utc),
                arch=job.arch,
                space_id=job.space_id,
            )
            for index, job in enumerate(jobs, start)
        ]

    def _prepare(self, job: MeasureJob) -> Artefact:
        """What the device's runtime loads for a job. Raises MeasurementError."""
        known = set() if job.weights is None else {job.weights.location}
        if foreign := set(external_locations(job.onnx)) - known:
            raise MeasurementError(
                "LOAD_FAILED", f"the model needs external data that was not sent: {sorted(foreign)}"
            )
        return prepare(
            self.device.runtime,
            job.onnx,
            weights=job.weights,
            options=self.device.runtime_options,
        )

    def _send(self, prepared: Mapping[str, Artefact]) -> list[Net]:
        """Upload the files of all networks, and of the reference, at once."""
        if not prepared:
            return []
        parts = [self._reference.parts(), *(artefact.parts() for artefact in prepared.values())]
        blobs = iter(self.upload([part for some in parts for part in some]))
        self._reference_files = artefact_request(self._reference, blobs)
        return [
            Net(name=name, **artefact_request(artefact, blobs))
            for name, artefact in prepared.items()
        ]

    def upload(self, sources: Sequence[bytes | Path]) -> list[str]:
        """Make files present on the device, with few round trips; their names there.

        They are offered again after every reconnect, until the next call. Raises DeviceError.
        """
        return self.connection.put_all(sources)

    @cached_property
    def _reference(self) -> Artefact:
        """The reference network as the device's runtime loads it."""
        return prepare(
            self.device.runtime,
            reference_model(self.device.reference),
            options=self.device.runtime_options,
        )

    def run_nets(self, nets: Sequence[Net], *, order_seed: int = 0) -> dict[str, NetResult]:
        """Measure networks whose files are on the device; results by name."""
        if not nets:
            return {}
        with self.connection.clocked():
            batch = self.batch(nets, order_seed=order_seed)
            while self.next_round(batch):
                pass
            results = {net.name: batch.result(net.name) for net in nets}
            self._reference_ns += batch.all_visits_ns()
            self.busy_s += batch.busy_ns / 1e9
            if self.peak_memory:
                results = {
                    net.name: self._with_memory(batch, net, results[net.name]) for net in nets
                }
        return results

    def batch(
        self,
        nets: Sequence[Net],
        *,
        order_seed: int = 0,
        device: DeviceSpec | None = None,
        cores: tuple[int, ...] | None = None,
        runtime_options: Mapping[str, Any] | None = None,
    ) -> Batch:
        """Rounds of networks whose files are on the device, none taken yet.

        ``device``, ``cores`` and ``runtime_options`` replace those of the measurer: for sweeps.
        """
        if not self._reference_files:
            blobs = self.session.transport.put_all(self._reference.parts())
            self._reference_files = artefact_request(self._reference, iter(blobs))
        return Batch(
            self.session,
            nets,
            device=device or self.device,
            profile=self.profile,
            cores=cores or self.described().cores,
            reference=self._reference_files,
            seed=self.seed * 1_000_003 + order_seed * 101,
            earlier_ns=self._reference_ns if (device, runtime_options) == (None, None) else (),
            advance=lambda step: self._tell(step=step),
            gate=self.connection.gate,
            clocks=self.connection.clock_evidence(),
            runtime_options=board_options(
                self.device.runtime_options if runtime_options is None else runtime_options
            ),
        )

    def next_round(self, batch: Batch) -> bool:
        """Take one more round of a batch; False when it needs none. Raises DeviceError."""

        def attempt() -> bool:
            if set(batch.boot_ids) - {self.session.boot_id}:
                # nothing is known about clocks and heat across a reboot: take all rounds again
                self._tell("the board rebooted; its rounds are taken again")
                batch.restart()
                self._reference_ns.clear()
            return batch.run_round()

        return self.connection.again(attempt)

    def _with_memory(self, batch: Batch, net: Net, result: NetResult) -> NetResult:
        if result.failure is not None:
            return result
        request = {**batch.settings(), "nets": [net.to_request()]}
        timeout_s = self.profile.net_timeout_s + START_S + 30

        said = self.connection.again(
            lambda: self.session.request("peak_memory", request, timeout_s=timeout_s)
        )
        names = ("baseline_bytes", "peak_bytes")
        memory = {name: said[name] for name in names if type(said.get(name)) is int}
        if "error" in said or len(memory) < len(names):
            memory = {"error": clean_text(said.get("error", "no answer"), 300)}
        return replace(result, details={**result.details, "memory": memory})

    def provenance(self, result: NetResult, index: int, utc: str) -> dict[str, Any]:
        """Where a number comes from: session, agent, profile, versions and round details."""
        return {
            "session_id": self.session_id,
            "utc": utc,
            "order": index,
            "profile": self.profile.name,
            "agent_sha256": self.session.agent_sha256,
            "protocol_version": PROTOCOL_VERSION,
            "tool_version": tool_version(),
            "command": self.command,
            "seed": self.seed,
            "lease_token": self.session.lease_token,
            "spinning": self.device.spins,
            "reference": self.device.reference,
            "rounds": result.details,
        }
