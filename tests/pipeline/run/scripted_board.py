"""A measurer that answers by formula, can be stopped in the middle, and counts what it is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from device_agents.measuring.profiles import load_profile
from latency_tables.cost_table import CostTable
from latency_tables.records import DeviceFingerprint, Measurement, Statistics, Verdict

REFERENCE_NS = 100_000


@dataclass
class Script:
    """What all boards of a test do, and what they were asked: (device, net_id) in order."""

    costs: CostTable
    noise: dict[str, float] = field(default_factory=dict)
    factor: Callable[[str, Any], float] = lambda device, arch: 1.0
    batch_size: int = 5
    stop_after: int | None = None
    fails: Callable[[Any], bool] = lambda job: False
    verdicts: tuple[Verdict, ...] = ()
    offline: tuple[str, ...] = ()
    asked: list[tuple[str, str]] = field(default_factory=list)

    def latency_ns(self, device: str, arch: Any) -> int:
        """0.2 ms and 1 ms per MMAC times ``factor``, with noise that belongs to the network."""
        macs = self.costs.cost(arch, "macs")
        seed = int.from_bytes(hashlib.sha256(repr(sorted(arch.items())).encode()).digest()[:8])
        noise = np.random.default_rng(seed).normal(0, self.noise.get(device, 0.01))
        return int((200_000 + macs) * np.exp(noise) * self.factor(device, arch))

    def measurer(self, spec: Any, *, profile: str, on_result: Any, **_: Any) -> ScriptedMeasurer:
        """Stands in for ``DeviceMeasurer``."""
        return ScriptedMeasurer(self, spec, profile, on_result)


class ScriptedMeasurer:
    """One board of a script."""

    def __init__(self, script: Script, spec: Any, profile: str, on_result: Any) -> None:
        self.script, self.device, self.on_result = script, spec, on_result
        self.profile = load_profile(profile)
        self.batch_size = script.batch_size
        self.transport = SimpleNamespace(exclusive=True)
        self.session = SimpleNamespace(close=lambda: None)
        self.on_progress: Any = None
        self._sessions = 0

    def fingerprint(self) -> DeviceFingerprint:
        if self.device.name in self.script.offline:
            from latency_tables.errors import UnreachableError

            raise UnreachableError(f"{self.device.name} does not answer")
        return DeviceFingerprint(identity={"soc": self.device.name}, state={})

    def runtime(self) -> dict[str, str]:
        return {
            "name": "onnxruntime", "version": "1.32.0", "provider": "CPUExecutionProvider",
            "graph_optimization": "all",
        }  # fmt: skip

    def cores(self) -> tuple[int, ...]:
        return (0,)

    def estimate_seconds(self, n_nets: int, net_ms: float = 0.5) -> float:
        return float(n_nets)

    def exclusive(self) -> AbstractContextManager[None]:
        return nullcontext()

    def measure(self, jobs: Any) -> list[Measurement]:
        self._sessions += 1
        records: list[Measurement] = []
        for start in range(0, len(jobs), self.batch_size):
            batch = []
            for job in jobs[start : start + self.batch_size]:
                if self.script.stop_after is not None and (
                    len(self.script.asked) >= self.script.stop_after
                ):
                    raise KeyboardInterrupt
                self.script.asked.append((self.device.name, job.net_id))
                batch.append(self._record(job))
            self.on_result(batch)
            records += batch
        return records

    def _record(self, job: Any) -> Measurement:
        median = self.script.latency_ns(self.device.name, job.arch)
        record = Measurement(
            net_id=job.net_id,
            arch=job.arch,
            space_id=job.space_id,
            onnx_sha256=job.net_id,
            artefact_sha256=job.net_id,
            runtime=self.runtime(),
            threads=self.device.threads,
            cores=self.cores(),
            device_name=self.device.name,
            device_fp=self.fingerprint().fingerprint,
            statistics=_statistics(median),
            verdicts=self.script.verdicts,
            provenance={
                "session_id": f"{self.device.name}-{len(self.script.asked)}",
                "utc": "2026-11-22T10:00:00+00:00",
                "profile": self.profile.name,
                "reference": self.device.reference,
                "rounds": {"reference_ns": REFERENCE_NS, "busy_ns": 200_000_000},
            },
        )
        if self.script.fails(job):
            error = {"code": "RUN_CRASHED", "message": "segfault", "blames": "candidate"}
            return replace(record, statistics=None, error=error)  # type: ignore[arg-type]
        return record


def _statistics(median: int) -> Statistics:
    spread = median // 100
    return Statistics(
        n_samples=90, n_rounds=3, median_ns=median, min_ns=median - spread, p10_ns=median - spread,
        mean_ns=median, std_ns=spread, mad_ns=spread, p90_ns=median + spread, p95_ns=None,
        p99_ns=None, ci_low_ns=median - spread, ci_high_ns=median + spread,
        round_medians_ns=(median - spread, median, median + spread), first_ns=2 * median,
        load_ns=median, warmup_runs=3, converged=True, ratio_to_reference=1.0,
    )  # fmt: skip
