"""What a device said about a network: the records that tables are made of.

Times are integer nanoseconds inside and milliseconds where people read them. A record is complete
in itself: what ran, on what, with which runtime, threads and cores, how it was timed, what looked
wrong, and what was rejected. Reading is strict, because records come from boards and from files of
other people: every error names the field.

A measurement that failed is a record, too; it is kept for the journal and is never served as a
latency.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any, Literal, TypedDict, cast

from latency_tables.arch import Arch
from latency_tables.errors import Blames, InvalidArchError, MissingLatencyError
from latency_tables.fields import MAX_INTEGER, Fields
from latency_tables.files import sha256_json
from latency_tables.keys import measurement_key

SCHEMA = 1
"""Version of the dictionaries written here; readers refuse any other."""

CI_LEVEL = 0.95
"""Level of :attr:`Statistics.ci_low_ns` and :attr:`Statistics.ci_high_ns`."""

NS_PER_MS = 1_000_000
_RUNTIME_REQUIRED = ("name", "version")

Severity = Literal["fail", "warn"]
_BLAMES: tuple[Blames, ...] = ("board", "candidate", "host")


class Failure(TypedDict):
    """Why a network was not measured; ``blames`` says who is at fault."""

    code: str
    message: str
    blames: Blames


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Something that was wrong with a measurement, with its evidence.

    ``code`` is a stable name (THROTTLED, INTERFERENCE, DRIFT, …). A ``fail`` keeps the number out
    of every table, a ``warn`` widens its interval and is shown beside it.
    """

    code: str
    severity: Severity
    evidence: str

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> Verdict:
        """Read what :meth:`to_dict` wrote. Raises CorruptTableError naming the field."""
        fields = Fields(data, "verdict")
        verdict = cls(
            code=fields.text("code", empty=False),
            severity=cast(Severity, fields.one_of("severity", ("fail", "warn"))),
            evidence=fields.text("evidence"),
        )
        fields.end()
        return verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Times of one network in one session, in nanoseconds.

    ``median_ns`` is the headline: the median over rounds of the median of block medians. The
    interval is a 95 % bootstrap over rounds. ``p90_ns``, ``p95_ns`` and ``p99_ns`` are None below
    their sample floors (64, 130 and 662 runs). ``first_ns`` and ``load_ns`` are the first run and
    the loading of the model; ``ratio_to_reference`` is the median divided by that of the reference
    network of the same rounds.
    """

    n_samples: int
    n_rounds: int
    median_ns: int
    min_ns: int
    p10_ns: int
    mean_ns: int
    std_ns: int
    mad_ns: int
    p90_ns: int | None
    p95_ns: int | None
    p99_ns: int | None
    ci_low_ns: int
    ci_high_ns: int
    round_medians_ns: tuple[int, ...]
    first_ns: int
    load_ns: int
    warmup_runs: int
    converged: bool
    ratio_to_reference: float | None = None

    @property
    def median_ms(self) -> float:
        """The headline in milliseconds."""
        return self.median_ns / NS_PER_MS

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {**asdict(self), "round_medians_ns": list(self.round_medians_ns)}

    @classmethod
    def from_dict(cls, data: object) -> Statistics:
        """Read what :meth:`to_dict` wrote. Raises CorruptTableError naming the field.

        Times may be zero or negative here: that a clock ran backwards is for the gates to tell.
        """
        fields = Fields(data, "statistics")
        times = {
            name: fields.integer(name, minimum=-MAX_INTEGER)
            for name in (
                *("median_ns", "min_ns", "p10_ns", "mean_ns", "std_ns", "mad_ns"),
                *("ci_low_ns", "ci_high_ns", "first_ns", "load_ns"),
            )
        }
        statistics = cls(
            **times,
            n_samples=fields.integer("n_samples", minimum=1),
            n_rounds=fields.integer("n_rounds", minimum=1),
            p90_ns=fields.optional_integer("p90_ns"),
            p95_ns=fields.optional_integer("p95_ns"),
            p99_ns=fields.optional_integer("p99_ns"),
            round_medians_ns=fields.integers("round_medians_ns", minimum=-MAX_INTEGER),
            warmup_runs=fields.integer("warmup_runs"),
            converged=fields.flag("converged"),
            ratio_to_reference=fields.optional_number("ratio_to_reference"),
        )
        if statistics.ci_low_ns > statistics.ci_high_ns:
            fields.fail("ci_low_ns", f"is above ci_high_ns ({statistics.ci_high_ns})")
        fields.end()
        return statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFingerprint:
    """Which device this is, and in which state it was.

    ``identity`` must match for two latencies to be comparable (SoC, board, cores and their clocks,
    kernel, memory, drivers); ``state`` may move (governors, clocks, temperature, load).

    >>> quiet = DeviceFingerprint(identity={"soc": "x86"}, state={"load": 0.1})
    >>> busy = DeviceFingerprint(identity={"soc": "x86"}, state={"load": 7.5})
    >>> quiet.fingerprint == busy.fingerprint
    True
    """

    identity: dict[str, Any]
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the identity."""
        return sha256_json(self.identity)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {"schema": SCHEMA, "identity": self.identity, "state": self.state}

    @classmethod
    def from_dict(cls, data: object) -> DeviceFingerprint:
        """Read what :meth:`to_dict` wrote. Raises CorruptTableError naming the field."""
        fields = Fields(data, "device")
        fields.schema(SCHEMA)
        device = cls(identity=fields.object("identity"), state=fields.object("state"))
        if not device.identity:
            fields.fail("identity", "is empty; a device without identity cannot be told apart")
        fields.end()
        return device


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One network, timed (or not) on one device in one session.

    ``net_id`` names the network up to isomorphism (:func:`latency_tables.keys.net_id`), ``runtime``
    holds at least ``name`` and ``version``, usually ``provider`` and ``graph_optimization``, too;
    ``cores`` is empty where nothing was pinned. ``provenance`` holds ``session_id``, ``utc``,
    ``order``, ``profile``, ``agent_sha256``, ``protocol_version``, ``tool_version``, ``command``.
    """

    net_id: str
    arch: Arch | None
    space_id: str
    onnx_sha256: str
    artefact_sha256: str
    runtime: dict[str, Any]
    threads: int
    cores: tuple[int, ...]
    device_name: str
    device_fp: str
    statistics: Statistics | None = None
    peak_memory_bytes: int | None = None
    verdicts: tuple[Verdict, ...] = ()
    error: Failure | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the latency may be used: timed, positive, no error, no failing verdict."""
        return (
            self.error is None
            and self.statistics is not None
            and self.statistics.median_ns > 0
            and not any(verdict.severity == "fail" for verdict in self.verdicts)
        )

    @property
    def key(self) -> str:
        """Where the latency is found again: :func:`latency_tables.keys.measurement_key`."""
        return measurement_key(
            net_id=self.net_id,
            runtime=self.runtime,
            threads=self.threads,
            cores=self.cores,
            device_fp=self.device_fp,
        )

    @property
    def run_id(self) -> str:
        """The session in which it was measured; key and run together are unique."""
        return str(self.provenance.get("session_id", ""))

    @property
    def latency_ms(self) -> float:
        """The headline in milliseconds. Raises MissingLatencyError unless :attr:`ok`."""
        return self._usable().median_ms

    def interval_ms(self, level: float = 0.9) -> tuple[float, float]:
        """Interval of the latency at ``level``, in milliseconds.

        The 95 % bootstrap interval, scaled to ``level`` as a normal one. A warning widens it to
        cover the median of every round and one robust standard deviation of single runs: what
        disturbed a round is not in the bootstrap of the others. Raises MissingLatencyError.
        """
        stats = self._usable()
        scale = NormalDist().inv_cdf((1 + level) / 2) / NormalDist().inv_cdf((1 + CI_LEVEL) / 2)
        low = stats.median_ns - max(0.0, (stats.median_ns - stats.ci_low_ns) * scale)
        high = stats.median_ns + max(0.0, (stats.ci_high_ns - stats.median_ns) * scale)
        if self.verdicts:
            spread = 1.4826 * abs(stats.mad_ns)  # of normal noise: one standard deviation
            low = min(low, stats.median_ns - spread, *stats.round_medians_ns)
            high = max(high, stats.median_ns + spread, *stats.round_medians_ns)
        return max(0.0, low) / NS_PER_MS, high / NS_PER_MS

    def why_not(self) -> str:
        """Say in a few words why the latency may not be used; empty where it may."""
        if self.error is not None:
            return f"{self.error['code']}: {self.error['message']}"
        failed = [v for v in self.verdicts if v.severity == "fail"]
        if failed:
            return "; ".join(f"{v.code} ({v.evidence})" for v in failed)
        if self.statistics is None:
            return "no statistics"
        return "" if self.ok else f"median {self.statistics.median_ns} ns is not positive"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; :meth:`from_dict` reads it back."""
        return {
            "schema": SCHEMA,
            "net_id": self.net_id,
            "arch": None if self.arch is None else dict(self.arch),
            "space_id": self.space_id,
            "onnx_sha256": self.onnx_sha256,
            "artefact_sha256": self.artefact_sha256,
            "runtime": self.runtime,
            "threads": self.threads,
            "cores": list(self.cores),
            "device_name": self.device_name,
            "device_fp": self.device_fp,
            "statistics": None if self.statistics is None else self.statistics.to_dict(),
            "peak_memory_bytes": self.peak_memory_bytes,
            "verdicts": [verdict.to_dict() for verdict in self.verdicts],
            "error": None if self.error is None else dict(self.error),
            "provenance": self.provenance,
        }

    @classmethod
    def from_dict(cls, data: object) -> Measurement:
        """Read what :meth:`to_dict` wrote. Raises CorruptTableError naming the field."""
        fields = Fields(data, "measurement")
        fields.schema(SCHEMA)
        measurement = cls(
            net_id=fields.text("net_id", empty=False),
            arch=_read_arch(fields),
            space_id=fields.text("space_id"),
            onnx_sha256=fields.text("onnx_sha256"),
            artefact_sha256=fields.text("artefact_sha256"),
            runtime=_read_runtime(fields),
            threads=fields.integer("threads", minimum=1),
            cores=fields.integers("cores"),
            device_name=fields.text("device_name"),
            device_fp=fields.text("device_fp", empty=False),
            statistics=(
                Statistics.from_dict(fields.take("statistics"))
                if fields.optional("statistics")
                else None
            ),
            peak_memory_bytes=fields.optional_integer("peak_memory_bytes"),
            verdicts=tuple(Verdict.from_dict(item) for item in fields.items("verdicts")),
            error=_read_failure(fields.take("error")) if fields.optional("error") else None,
            provenance=fields.object("provenance"),
        )
        fields.end()
        return measurement

    def _usable(self) -> Statistics:
        if self.statistics is None or not self.ok:
            raise MissingLatencyError(
                f"network {self.net_id[:12]} has no usable latency on {self.device_name!r}: "
                f"{self.why_not()}"
            )
        return self.statistics


def _read_arch(fields: Fields) -> Arch | None:
    if not fields.optional("arch"):
        return None
    choices = fields.object("arch")
    if any(isinstance(value, float) and not math.isfinite(value) for value in choices.values()):
        fields.fail("arch", "holds a number that is not finite")
    try:
        return Arch.from_dict(choices)
    except InvalidArchError as error:
        fields.fail("arch", f"is not an architecture: {error}")


def _read_runtime(fields: Fields) -> dict[str, Any]:
    runtime = fields.object("runtime")
    for name in _RUNTIME_REQUIRED:
        if not isinstance(runtime.get(name), str) or not runtime[name]:
            fields.fail("runtime", f"lacks {name!r}: without it latencies cannot be compared")
    return runtime


def _read_failure(data: object) -> Failure:
    fields = Fields(data, "error")
    failure = Failure(
        code=fields.text("code", empty=False),
        message=fields.text("message"),
        blames=cast(Blames, fields.one_of("blames", _BLAMES)),
    )
    fields.end()
    return failure
