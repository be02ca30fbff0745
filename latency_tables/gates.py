"""Whether a latency table can be believed, before anything is searched on it.

A loop can run perfectly and measure the wrong thing: one fixed network again and again, sums of
blocks instead of networks, another device, a clock that ticks in milliseconds. Each gate is a pure
function over measurements that gives a :class:`Gate`. Those that ``refuse`` stop a table, those
that ``warn`` are shown beside it. Accepting a refusal is possible and is written down.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from latency_tables import signal_gates
from latency_tables.cost_table import CostTable
from latency_tables.errors import CorruptTableError, GateError, UsageError
from latency_tables.keys import setting_text
from latency_tables.records import Measurement

GATES = (
    *("schema", "positive", "device", "duplicates", "signal"),
    *("resolution", "additive", "monotone", "leakage"),
)
"""Names of the gates: the first five refuse, the others warn. ``additive`` refuses where a header
claims that the latencies were measured end to end."""

Severity = Literal["refuse", "warn"]

COARSE = 0.02
"""A clock coarser than this share of the median latency is worth a warning."""

MIXED_UNITS = 100
"""A median this many times the minimum of the same record is no spread but another unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Outcome of one gate. ``evidence`` says which values led to it."""

    name: str
    severity: Severity
    passed: bool
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """All gates of one table, and the refusals that somebody accepted."""

    gates: tuple[Gate, ...]
    accepted: tuple[str, ...] = ()

    @property
    def refusals(self) -> tuple[Gate, ...]:
        """Gates that stop the table: failed, refusing and not accepted."""
        return tuple(
            gate
            for gate in self.gates
            if gate.severity == "refuse" and not gate.passed and gate.name not in self.accepted
        )

    @property
    def warnings(self) -> tuple[Gate, ...]:
        """Failed gates that do not stop the table, accepted refusals included."""
        return tuple(g for g in self.gates if not g.passed and g not in self.refusals)

    @property
    def passed(self) -> bool:
        """Whether the table may be used."""
        return not self.refusals

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary for manifests and reports."""
        return {"gates": [asdict(g) for g in self.gates], "accepted": list(self.accepted)}


def check(
    measurements: Sequence[Measurement],
    *,
    cost_table: CostTable | None = None,
    device_fp: str | None = None,
    accept: Collection[str] = (),
    claims_measured: bool = False,
) -> GateReport:
    """Run every gate over the records of one table.

    ``device_fp`` is the device that the table should be of. ``cost_table`` sharpens the gates
    ``signal``, ``additive`` and ``monotone``. ``claims_measured``: a header says that the latencies
    were measured end to end, so exact sums are refused. Raises UsageError where ``accept`` names no
    gate.

    >>> [gate.name for gate in check([]).gates if not gate.passed]
    []
    """
    unknown = sorted(set(accept) - set(GATES))
    if unknown:
        raise UsageError(f"no gate is called {', '.join(unknown)}; there are {', '.join(GATES)}")
    usable = [m for m in measurements if m.ok]
    gates = (
        schema(measurements),
        positive(measurements),
        device(usable, device_fp),
        duplicates(usable),
        _signal(usable, cost_table),
        resolution(usable),
        _additive(usable, cost_table, claims_measured),
        _monotone(usable, cost_table),
        _leakage(usable),
    )
    failed = {gate.name for gate in gates if not gate.passed}
    return GateReport(gates=gates, accepted=tuple(sorted(set(accept) & failed)))


def enforce(
    measurements: Sequence[Measurement],
    *,
    cost_table: CostTable | None = None,
    device_fp: str | None = None,
    accept: Collection[str] = (),
    claims_measured: bool = False,
) -> GateReport:
    """:func:`check`, raising GateError for the first refusal that ``accept`` does not name."""
    report = check(
        measurements,
        cost_table=cost_table,
        device_fp=device_fp,
        accept=accept,
        claims_measured=claims_measured,
    )
    for gate in report.refusals:
        raise GateError(
            gate.name,
            gate.evidence,
            hint=f"look at it; who knows better adds --set 'latency.accept=[\"{gate.name}\"]'",
        )
    return report


def schema(measurements: Sequence[Measurement]) -> Gate:
    """Refuse records that are incomplete: a missing unit, runtime, version or device."""
    for i, measurement in enumerate(measurements):
        try:
            Measurement.from_dict(measurement.to_dict())
        except CorruptTableError as error:
            return _refuse("schema", f"record {i}: {error.message}")
        stats = measurement.statistics
        if stats is not None and 0 < stats.min_ns * MIXED_UNITS <= stats.median_ns:
            return _refuse(
                "schema",
                f"record {i}: median {stats.median_ns} and minimum {stats.min_ns} ns cannot be of "
                "one unit",
            )
    return _passed("schema", f"{len(measurements)} records are complete")


def positive(measurements: Sequence[Measurement]) -> Gate:
    """Refuse times that are zero, negative or not finite."""
    for measurement in measurements:
        stats = measurement.statistics
        if stats is None:
            continue
        times = {"median": stats.median_ns, "min": stats.min_ns, "mean": stats.mean_ns}
        for name, value in times.items():
            if not math.isfinite(value) or value <= 0:
                return _refuse(
                    "positive", f"network {measurement.net_id[:12]} has a {name} of {value} ns"
                )
    return _passed("positive", "all times are positive")


def device(measurements: Sequence[Measurement], device_fp: str | None = None) -> Gate:
    """Refuse records of another device, of several devices or of several settings."""
    found = {m.device_fp: m.device_name for m in measurements}
    if device_fp is not None and set(found) - {device_fp}:
        others = ", ".join(f"{name} ({fp[:12]})" for fp, name in found.items() if fp != device_fp)
        return _refuse("device", f"records of {others}, not of {device_fp[:12]}")
    if len(found) > 1:
        return _refuse("device", f"records of {len(found)} devices: {', '.join(found.values())}")
    settings = {
        setting_text(runtime=m.runtime, threads=m.threads, cores=m.cores) for m in measurements
    }
    if len(settings) > 1:
        return _refuse("device", f"records of {len(settings)} settings: {'; '.join(settings)}")
    return _passed("device", "one device, one setting")


def duplicates(measurements: Sequence[Measurement]) -> Gate:
    """Refuse one deployed file under the names of different networks."""
    networks: dict[str, set[str]] = defaultdict(set)
    for measurement in measurements:
        artefact = measurement.artefact_sha256 or measurement.onnx_sha256
        if artefact:
            networks[artefact].add(measurement.net_id)
    worst = max(networks.items(), key=lambda item: len(item[1]), default=("", set[str]()))
    if len(worst[1]) > 1:
        return _refuse(
            "duplicates",
            f"file {worst[0][:12]} was timed as {len(worst[1])} different networks "
            f"({', '.join(sorted(net[:12] for net in worst[1])[:3])}, …): the loop measures "
            "something else than the candidates",
        )
    return _passed("duplicates", f"{len(networks)} different files")


def resolution(measurements: Sequence[Measurement]) -> Gate:
    """Warn where the clock ticks coarser than 2 % of the median latency."""
    medians = sorted(m.statistics.median_ns for m in measurements if m.statistics is not None)
    if len(set(medians)) < 2:
        return _passed("resolution", "too few different values to tell", severity="warn")
    minima = [m.statistics.min_ns for m in measurements if m.statistics is not None]
    # a minimum is one reading of the clock, whereas medians may be means of two readings
    tick = max(math.gcd(*minima) if len(set(minima)) > 1 else 0, math.gcd(*medians))
    share = tick / medians[len(medians) // 2]
    evidence = f"all times are multiples of {tick} ns, {share:.2%} of the median latency"
    if share > COARSE:
        return Gate(name="resolution", severity="warn", passed=False, evidence=evidence)
    return _passed("resolution", evidence, severity="warn")


def _signal(measurements: Sequence[Measurement], cost_table: CostTable | None) -> Gate:
    passed, evidence = signal_gates.signal(measurements, cost_table)
    return Gate(name="signal", severity="refuse", passed=passed, evidence=evidence)


def _additive(
    measurements: Sequence[Measurement], cost_table: CostTable | None, claims_measured: bool
) -> Gate:
    passed, exact, evidence = signal_gates.additive(measurements, cost_table)
    refuses = claims_measured and exact
    if not passed:
        evidence += ": sums of parts, not measurements"
        evidence += ", although the header claims 'measured end to end'" if refuses else ""
    severity: Severity = "refuse" if refuses else "warn"
    return Gate(name="additive", severity=severity, passed=passed, evidence=evidence)


def _leakage(measurements: Sequence[Measurement]) -> Gate:
    passed, evidence = signal_gates.copies(measurements)
    return Gate(name="leakage", severity="warn", passed=passed, evidence=evidence)


def _monotone(measurements: Sequence[Measurement], cost_table: CostTable | None) -> Gate:
    passed, evidence = signal_gates.monotone(measurements, cost_table)
    return Gate(name="monotone", severity="warn", passed=passed, evidence=evidence)


def _refuse(name: str, evidence: str) -> Gate:
    return Gate(name=name, severity="refuse", passed=False, evidence=evidence)


def _passed(name: str, evidence: str, severity: Severity = "refuse") -> Gate:
    return Gate(name=name, severity=severity, passed=True, evidence=evidence)
