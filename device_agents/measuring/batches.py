"""Measure one batch of networks: rounds until they agree, then statistics and verdicts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from device_agents.devices import DeviceSpec
from device_agents.identity import clean_json
from device_agents.link.session import Session
from device_agents.measuring import replies, statistics, verdicts
from device_agents.measuring.profiles import Profile
from device_agents.measuring.replies import ChildEvidence, NetRound
from device_agents.measuring.verdicts import Finding
from latency_tables.errors import DeviceError, LinkLostError
from latency_tables.records import Failure, Statistics, Verdict

START_S = 60.0

BUSY = 0.15
"""A round whose reference network was slower than in quiet moments by this share is taken again:
something else used the processor, and the candidates suffered with it."""

_QUIET_QUANTILE = 0.2

NPU_RUNTIMES = ("rknn",)

Advance = Callable[[int], None]
Gate = Callable[[], Sequence[Finding]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Net:
    """A network whose files are on the device, by blob names; ``golden`` as the agent reads it."""

    name: str
    blob: str
    weights: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    golden: dict[str, Any] | None = None

    def to_request(self) -> dict[str, Any]:
        """The agent's form of it."""
        return {
            "name": self.name,
            "blob": self.blob,
            "weights": self.weights,
            "files": self.files,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "golden": self.golden,
        }


def _fault(name: str, failure: Failure) -> DeviceError:
    error = DeviceError(f"the device failed while it measured network {name}: {failure['message']}")
    error.code = failure["code"]
    return error


@dataclass(frozen=True, slots=True, kw_only=True)
class NetResult:
    """What came out for one network: numbers with verdicts, or a failure."""

    statistics: Statistics | None = None
    verdicts: tuple[Verdict, ...] = ()
    failure: Failure | None = None
    details: dict[str, Any] = field(default_factory=dict)


class Batch:
    """The rounds of one batch on an open session.

    ``earlier_ns`` are visits to the reference network in batches before: drift is judged against
    them, too. ``gate`` is asked before each round and tells what speaks against it; ``clocks`` is
    what came out of setting clocks: asked, got, refused. ``runtime_options`` go to the runtime.
    """

    def __init__(
        self,
        session: Session,
        nets: Sequence[Net],
        *,
        device: DeviceSpec,
        profile: Profile,
        cores: tuple[int, ...],
        reference: Mapping[str, Any],
        seed: int,
        earlier_ns: Sequence[float] = (),
        advance: Advance = lambda step: None,
        gate: Gate = tuple,
        clocks: Mapping[str, Any] | None = None,
        runtime_options: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.session, self.nets, self.device, self.profile = session, nets, device, profile
        self.cores, self.reference, self.seed, self.advance = cores, reference, seed, advance
        self.earlier_ns = tuple(earlier_ns)
        self.gate, self.clocks, self._clock = gate, dict(clocks or {}), clock
        self.runtime_options = dict(runtime_options or {})
        self._began_s: float | None = None
        self._gate_findings: list[Finding] = []
        self.busy_ns = 0
        """Warm-up and timed runs of all rounds taken, reference and dropped rounds included."""
        self.rounds: dict[str, list[tuple[NetRound, ChildEvidence]]] = {n.name: [] for n in nets}
        self.failures: dict[str, Failure] = {}
        self.boot_ids: list[str] = []
        self.retaken = 0
        self._dropped_ns: list[float] = []

    def run_round(self) -> bool:
        """Time once every network that needs another round; False when none does.

        A round counts whole or not at all, so it can be repeated after a LinkLostError, and is
        dropped where the device was busy.
        """
        index = len(self.boot_ids)
        names = self._open_names(index)
        if not names:
            return False
        if self._began_s is None:
            self._began_s = self._clock()
        closed_gates = self.gate()
        heard: dict[str, NetRound] = {}
        failed: dict[str, Failure] = {}

        def on_event(event: str, data: dict[str, Any]) -> None:
            name = data.get("name")
            if not isinstance(name, str) or name not in names:
                return
            if event == "net":
                heard[name] = replies.net_round(data)
                self.advance(1)
            elif event == "failed":
                failed[name] = replies.failure(data)

        result = self.session.request(
            "measure",
            self._request(names, index),
            timeout_s=self._patience(names),
            on_event=on_event,
        )
        children = replies.children(result)
        self.busy_ns += sum(net.busy_ns for net in heard.values())
        self.busy_ns += sum(visit.busy_ns for child in children for visit in child.references)
        for name, error in failed.items():
            if error["blames"] == "board":
                raise _fault(name, error)
        if not failed and self._was_busy(children):
            self.advance(-len(heard))
            return True
        for name in names:
            if name in failed:
                self.failures[name] = failed[name]
            elif name in heard and heard[name].child < len(children):
                self.rounds[name].append((heard[name], children[heard[name].child]))
            else:
                raise LinkLostError(f"the agent said nothing about network {name!r}")
        self.boot_ids.append(self.session.boot_id)
        self._gate_findings += closed_gates
        return True

    def _was_busy(self, children: Sequence[ChildEvidence]) -> bool:
        """Whether to drop this round; counts it and keeps its visits as evidence of quiet times."""
        visits = _visits_ns(children)
        known = [*self.earlier_ns, *self.reference_visits_ns(), *self._dropped_ns, *visits]
        if not visits or self.retaken >= self.profile.retakes:
            return False
        if np.median(visits) <= (1 + BUSY) * np.quantile(known, _QUIET_QUANTILE):
            return False
        self.retaken += 1
        self._dropped_ns += visits
        return True

    def restart(self) -> None:
        """Forget the rounds taken before a reboot; what crashed then may crash again."""
        for taken in self.rounds.values():
            taken.clear()
        self.boot_ids.clear()
        self._gate_findings.clear()

    def _open_names(self, index: int) -> list[str]:
        if index >= self.profile.max_rounds:
            return []
        names = [net.name for net in self.nets if net.name not in self.failures]
        if index < self.profile.min_rounds:
            return names
        if self._over_budget():
            return []
        target = self.profile.target_half_width
        return [
            name
            for name in names
            if not statistics.converged([r for r, _ in self.rounds[name]], target)
        ]

    def _over_budget(self) -> bool:
        budget_s = self.profile.time_budget_s
        if budget_s is None or self._began_s is None:
            return False
        return self._clock() - self._began_s >= budget_s * len(self.nets)

    def _request(self, names: Sequence[str], index: int) -> dict[str, Any]:
        wanted = set(names)
        return {
            **self.settings(),
            "nets": [net.to_request() for net in self.nets if net.name in wanted],
            "seed": self.seed + index,
        }

    def settings(self) -> dict[str, Any]:
        """The part of a request that is equal for all rounds."""
        return {
            "runtime": self.device.runtime,
            "threads": self.device.threads,
            "cores": list(self.cores),
            "spinning": self.device.spins,
            "optimization": self.device.optimization,
            "provider": self.device.provider,
            "runtime_options": self.runtime_options,
            "plan": self.profile.board_plan(),
            "input_seed": 0,
            "reference": dict(self.reference),
            "reference_every": self.profile.reference_every,
            "start_timeout_s": START_S,
            "net_timeout_s": self.profile.net_timeout_s,
            "memory_limit_bytes": self.device.memory_limit_bytes,
        }

    def _patience(self, names: Sequence[str]) -> float:
        """Longest time a round may take: every net breaks a child and is tried again alone."""
        return (2 * len(names) + 2) * (START_S + self.profile.net_timeout_s)

    def result(self, name: str) -> NetResult:
        """Statistics and verdicts of one network over the rounds taken."""
        taken = self.rounds[name]
        if name in self.failures:
            return NetResult(failure=self.failures[name])
        rounds = [r for r, _ in taken]
        around = [statistics.reference_around(c.references, r.position) for r, c in taken]
        visits_ns = self.reference_visits_ns()
        found = [*verdicts.reboots(self.boot_ids), *self._gate_findings]
        found += replies.checked("clocks", lambda: verdicts.clocks_refused(self.clocks))
        clocks = {k: v for k, v in (self.clocks.get("got") or {}).items() if isinstance(v, int)}
        npu = self.device.runtime in NPU_RUNTIMES
        for result, child in taken:
            found += verdicts.net_findings(result)
            judge_board = partial(
                verdicts.board_findings, child, self.cores, npu=npu, clocks=clocks
            )
            found += replies.checked("evidence", judge_board)
        found += [*verdicts.trend(rounds), *verdicts.bimodal(rounds)]
        found += replies.checked("evidence", lambda: verdicts.npu_fluctuation(rounds))
        if visits_ns:
            session_ns = float(np.median([*self.earlier_ns, *visits_ns]))
            found += verdicts.drift(around, session_ns)
        judged, widening = verdicts.judge(found, self.profile)
        return NetResult(
            statistics=statistics.summarise(
                rounds,
                around,
                target_half_width=self.profile.target_half_width,
                widening=widening,
            ),
            verdicts=judged,
            details={
                "reference_ns": round(float(np.median(visits_ns))) if visits_ns else None,
                "order": [r.position for r in rounds],
                "calls_per_sample": max(r.calls_per_sample for r in rounds),
                "n_threads": max(r.n_threads for r in rounds),
                "steady": all(r.steady for r in rounds),
                "ci_widening": round(widening, 6),
                "retaken_rounds": self.retaken,
                "boot_id": self.session.boot_id,
                "busy_ns": sum(r.busy_ns for r in rounds),
                "runtime_evidence": told_evidence(rounds[-1].runtime_evidence),
                "quarantine": verdicts.to_quarantine(judged),
                **({"clocks": self.clocks} if self.clocks else {}),
            },
        )

    def reference_visits_ns(self) -> list[float]:
        """Every visit to the reference in this batch; children are shared by its networks."""
        children = {id(c): c for taken in self.rounds.values() for _, c in taken}
        return _visits_ns(list(children.values()))

    def all_visits_ns(self) -> list[float]:
        """Visits of dropped rounds, too: what later batches compare with."""
        return [*self.reference_visits_ns(), *self._dropped_ns]


def told_evidence(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """What a runtime counted, without the series that verdicts are made from."""
    told = {name: value for name, value in evidence.items() if not name.endswith("_ns")}
    cleaned: dict[str, Any] = clean_json(told)
    return cleaned


def _visits_ns(children: Sequence[ChildEvidence]) -> list[float]:
    return [
        float(np.median(visit.block_medians_ns)) for child in children for visit in child.references
    ]
