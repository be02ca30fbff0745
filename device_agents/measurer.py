"""Time networks on a device: the measurer that tables and searches are given.

>>> from device_agents.devices import load_device
>>> DeviceMeasurer(load_device("local"), profile="quick").estimate_seconds(40) < 60
True
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from device_agents.batches import START_S, Batch, Net, NetResult
from device_agents.board.frames import PROTOCOL_VERSION
from device_agents.client import clean_text
from device_agents.devices import DeviceSpec, default_workdir
from device_agents.identity import clean_json, cores_of, fingerprint, runtime_of
from device_agents.local import LocalTransport, MachineLock, unlocked
from device_agents.onnx_files import external_locations
from device_agents.profiles import Profile, load_profile
from device_agents.reference import reference_model
from device_agents.session import Session, with_retries
from device_agents.transport import Transport
from latency_tables.errors import DeviceError, MeasurementError, UsageError
from latency_tables.files import canonical_json, sha256_bytes
from latency_tables.oracle import MeasureJob
from latency_tables.records import DeviceFingerprint, Failure, Measurement

ATTEMPTS = 3
CHILD_START_S = 0.35
"""Interpreter, numpy and runtime start of one round's process on a slow core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a call of ``measure`` is: networks × rounds done, out of at most ``total``."""

    done: int
    total: int
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What a probe said, digested."""

    fingerprint: DeviceFingerprint
    runtime: dict[str, Any]
    cores: tuple[int, ...]


class DeviceMeasurer:
    """Measures jobs on one device; implements :class:`latency_tables.oracle.Measurer`.

    ``on_result`` gets the records of each batch as soon as it ends, so that they can be journalled
    before the whole call does. ``command`` is kept as provenance. ``batch_size`` networks share a
    process per round. Used as a context manager, the connection and the lease stay between calls;
    otherwise every call takes and frees them.
    """

    def __init__(
        self,
        device: DeviceSpec,
        *,
        profile: str | Profile = "quick",
        batch_size: int = 10,
        seed: int = 0,
        peak_memory: bool = False,
        command: str = "",
        transport: Transport | None = None,
        archive: bytes | None = None,
        lease_wait_s: float = 20.0,
        silence_s: float = 15.0,
        on_progress: Callable[[Progress], None] | None = None,
        on_result: Callable[[list[Measurement]], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batches of {batch_size} networks; at least 1 is needed")
        self.device, self.profile = device, load_profile(profile)
        self.batch_size, self.seed, self.peak_memory = batch_size, seed, peak_memory
        self.command, self._sleep = command, sleep
        self.on_progress, self.on_result = on_progress, on_result
        self.transport = transport or make_transport(device)
        self.session = Session(
            self.transport,
            lease_wait_s=lease_wait_s,
            archive=archive,
            silence_s=silence_s,
            sleep=sleep,
        )
        self._lock = MachineLock((device.workdir or default_workdir()) / "compute.lock")
        self._described: Described | None = None
        self._kept_open = False
        self._reference_ns: list[float] = []
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

    @contextlib.contextmanager
    def connected(self) -> Iterator[Session]:
        """An open session that holds the device, and this machine if they are one.

        Raises UnreachableError, LeasedError, LinkLostError or ProtocolError.
        """
        with self.exclusive():
            mine = not self.session.is_open and not self._kept_open  # not so in an inner call
            try:
                if not self.session.is_open:
                    with_retries(
                        self.session.open,
                        attempts=ATTEMPTS,
                        on_retry=self._note,
                        sleep=self._sleep,
                    )
                    for leftover in self.session.leftovers:
                        self._tell(f"still runs on the device and may disturb: {leftover}")
                yield self.session
            finally:
                if mine:
                    self.session.close()

    def _note(self, error: DeviceError) -> None:
        self._tell(f"{error.message}; trying again")

    def _tell(self, note: str = "", step: int = 0) -> None:
        self._done += step
        if self.on_progress is not None:
            self.on_progress(Progress(done=self._done, total=self._total, note=note))

    # ---- describing ---------------------------------------------------------------------------

    def probe(self) -> dict[str, Any]:
        """What the board says about itself, without control codes. Raises DeviceError."""
        with self.connected():
            said: dict[str, Any] = clean_json(self.session.probe([self.device.runtime]))
            return said

    def fingerprint(self) -> DeviceFingerprint:
        """Which device this is and in which state. Raises DeviceError."""
        return self._describe().fingerprint

    def runtime(self) -> dict[str, Any]:
        """The runtime that measurements use: name, version, provider, graph_optimization."""
        return dict(self._describe().runtime)

    def cores(self) -> tuple[int, ...]:
        """The cores that measurements are pinned to."""
        return self._describe().cores

    def _describe(self) -> Described:
        if self._described is None:
            said = self.probe()
            self._described = Described(
                fingerprint=fingerprint(said),
                runtime=runtime_of(said, self.device.runtime, self.device.optimization),
                cores=cores_of(said, self.device.cores, self.device.threads),
            )
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
        with self.connected():
            self.session_id = uuid.uuid4().hex
            self._describe()
            for start in range(0, len(jobs), self.batch_size):
                batch = self._measure_batch(jobs[start : start + self.batch_size], start)
                records += batch
                if self.on_result is not None:
                    self.on_result(batch)
                self._done = min(len(jobs), start + self.batch_size) * self.profile.max_rounds
                self._tell()
        return records

    def _measure_batch(self, jobs: Sequence[MeasureJob], start: int) -> list[Measurement]:
        nets: list[Net] = []
        refused: dict[str, Failure] = {}
        for index, job in enumerate(jobs, start):
            try:
                nets.append(self._send(str(index), job))
            except MeasurementError as error:
                refused[str(index)] = Failure(
                    code=error.code, message=error.message, blames=error.blames
                )
        results = self.run_nets(nets, order_seed=start)
        for name, failure in refused.items():
            results[name] = NetResult(failure=failure)
        utc = datetime.now(UTC).isoformat(timespec="seconds")
        return [
            self._record(job, results[str(index)], index, utc)
            for index, job in enumerate(jobs, start)
        ]

    def _send(self, name: str, job: MeasureJob) -> Net:
        """Put a job's files on the device. Raises MeasurementError where it may not be loaded."""
        needed = set(external_locations(job.onnx))
        spec = None if job.weights is None else job.weights.to_dict()
        if needed - ({spec["location"]} if spec else set()):
            raise MeasurementError(
                "LOAD_FAILED", f"the model needs external data that was not sent: {sorted(needed)}"
            )
        weights = self.session.put(canonical_json(spec).encode()) if spec else None
        return Net(name=name, blob=self.session.put(job.onnx), weights=weights)

    def run_nets(self, nets: Sequence[Net], *, order_seed: int = 0) -> dict[str, NetResult]:
        """Measure networks whose files are on the device; results by name."""
        if not nets:
            return {}
        described = self._describe()
        batch = Batch(
            self.session,
            nets,
            device=self.device,
            profile=self.profile,
            cores=described.cores,
            reference=self.session.put(reference_model(self.device.reference)),
            seed=self.seed * 1_000_003 + order_seed * 101,
            earlier_ns=self._reference_ns,
            advance=lambda step: self._tell(step=step),
        )
        while self._next_round(batch):
            pass
        results = {net.name: batch.result(net.name) for net in nets}
        self._reference_ns += batch.all_visits_ns()
        if self.peak_memory:
            results = {net.name: self._with_memory(batch, net, results[net.name]) for net in nets}
        return results

    def _next_round(self, batch: Batch) -> bool:
        def attempt() -> bool:
            if not self.session.is_open:
                self.session.open()
            if set(batch.boot_ids) - {self.session.boot_id}:
                # nothing is known about clocks and heat across a reboot: take all rounds again
                self._tell("the board rebooted; its rounds are taken again")
                batch.restart()
                self._reference_ns.clear()
            return batch.run_round()

        return with_retries(attempt, attempts=ATTEMPTS, on_retry=self._note, sleep=self._sleep)

    def _with_memory(self, batch: Batch, net: Net, result: NetResult) -> NetResult:
        if result.failure is not None:
            return result
        request = {**batch.settings(), "nets": [net.to_request()]}
        timeout_s = self.profile.net_timeout_s + START_S + 30

        def attempt() -> dict[str, Any]:
            if not self.session.is_open:
                self.session.open()
            return self.session.request("peak_memory", request, timeout_s=timeout_s)

        said = with_retries(attempt, attempts=ATTEMPTS, on_retry=self._note, sleep=self._sleep)
        names = ("baseline_bytes", "peak_bytes")
        memory = {name: said[name] for name in names if type(said.get(name)) is int}
        if "error" in said or len(memory) < len(names):
            memory = {"error": clean_text(said.get("error", "no answer"), 300)}
        return replace(result, details={**result.details, "memory": memory})

    def _record(self, job: MeasureJob, result: NetResult, index: int, utc: str) -> Measurement:
        described = self._describe()
        sha256 = sha256_bytes(job.onnx)
        return Measurement(
            net_id=job.net_id,
            arch=job.arch,
            space_id=job.space_id,
            onnx_sha256=sha256,
            artefact_sha256=sha256,  # onnxruntime deploys the file as it is
            runtime=described.runtime,
            threads=self.device.threads,
            cores=described.cores,
            device_name=self.device.name,
            device_fp=described.fingerprint.fingerprint,
            statistics=result.statistics,
            peak_memory_bytes=peak_memory_bytes(result),
            verdicts=result.verdicts,
            error=result.failure,
            provenance=self.provenance(result, index, utc),
        )

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
            "spinning": self.device.spins,
            "reference": self.device.reference,
            "rounds": result.details,
        }


def peak_memory_bytes(result: NetResult) -> int | None:
    """Growth of the resident set by loading and running once; None where it was not measured."""
    memory = result.details.get("memory") or {}
    if "peak_bytes" not in memory:
        return None
    growth: int = memory["peak_bytes"] - memory["baseline_bytes"]
    return max(0, growth)


def make_transport(device: DeviceSpec) -> Transport:
    """The transport that a device asks for. Raises UsageError naming those that exist."""
    if device.transport != "local":
        raise UsageError(f"device {device.name!r}: transport {device.transport!r}; there is: local")
    return LocalTransport(Path(device.workdir or default_workdir()))


def tool_version() -> str:
    """Version of the installed distribution, or of none."""
    try:
        return version("hilnas")
    except PackageNotFoundError:
        return "not installed"
