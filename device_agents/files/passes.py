"""Passes beside the latency: phases, comparison of outputs, operators. Checked like all replies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from device_agents.link.client import clean_text
from device_agents.measuring.batches import START_S, Net
from device_agents.measuring.measurer import DeviceMeasurer
from device_agents.measuring.replies import MAX_NS, checked
from latency_tables.fields import Fields

MAX_ROWS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One step of a run, timed by itself ``runs`` times."""

    name: str
    runs: int
    median_ns: int
    min_ns: int
    max_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputError:
    """How far one output is from the expected one; None where there is no such number."""

    name: str
    right: bool
    max_abs_error: float | None
    max_rel_error: float | None
    cosine: float | None
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator, or all of a type (``name`` ""), in the profiling pass."""

    name: str
    op: str
    provider: str
    calls: int
    total_us: float
    median_us: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Operators:
    """The profile of a network: its slowest operators, the rest summed up, and types."""

    total_us: float
    n_operators: int
    rest_us: float
    rows: tuple[Operator, ...]
    by_type: tuple[Operator, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Phases and output errors; empty where the runtime or the sample gives none."""

    phases: tuple[Phase, ...] = ()
    outputs: tuple[OutputError, ...] = ()
    problem: str = ""


def inspect(used: DeviceMeasurer, net: Net) -> Inspection:
    """Split runs into phases and compare outputs, in a child of its own.

    The measurer is connected and holds the network's files. Raises DeviceError.
    """
    said = _request(used, "inspect", net)
    if "error" in said:
        return Inspection(problem=_problem(said))
    return checked("inspection", lambda: _inspection(said))


def profile_operators(used: DeviceMeasurer, net: Net) -> Operators | str:
    """The per-operator profile, or why there is none. Raises DeviceError."""
    said = _request(used, "profile", net)
    if "error" in said:
        return _problem(said)
    if said.get("operators") is None:
        return f"runtime {used.device.runtime!r} gives no times of operators"
    return checked("profile", lambda: _operators(said["operators"]))


def _request(used: DeviceMeasurer, operation: str, net: Net) -> dict[str, Any]:
    request = {**used.batch([net]).settings(), "nets": [net.to_request()]}
    request["net_timeout_s"] += START_S  # everything happens in one step
    patience_s = START_S + request["net_timeout_s"] + 30
    return used.connection.again(
        lambda: used.session.request(operation, request, timeout_s=patience_s)
    )


def _problem(said: Mapping[str, Any]) -> str:
    error = said["error"]
    error = error if isinstance(error, dict) else {}
    return f"{clean_text(error.get('code', '?'), 40)}, {clean_text(error.get('message', '?'), 300)}"


def _inspection(said: Mapping[str, Any]) -> Inspection:
    outputs = said.get("outputs") or {}
    return Inspection(
        phases=tuple(
            Phase(
                name=clean_text(one["name"], 60),
                runs=_count(one["runs"]),
                median_ns=_count(one["median_ns"]),
                min_ns=_count(one["min_ns"]),
                max_ns=_count(one["max_ns"]),
            )
            for one in (said.get("phases") or [])[:20]
        ),
        outputs=tuple(
            OutputError(
                name=clean_text(name, 200),
                right=one["right"] is True,
                max_abs_error=_number(one.get("max_abs_error")),
                max_rel_error=_number(one.get("max_rel_error")),
                cosine=_number(one.get("cosine")),
                problem=clean_text(one.get("problem", ""), 200),
            )
            for name, one in list(outputs.items())[:MAX_ROWS]
        ),
    )


def _operators(data: dict[str, Any]) -> Operators:
    fields = Fields(data, "profile")
    return Operators(
        total_us=float(fields.number("total_us")),
        n_operators=fields.integer("n_operators"),
        rest_us=float(fields.number("rest_us")),
        rows=tuple(map(_operator, data["rows"][:MAX_ROWS])),
        by_type=tuple(map(_operator, data["by_type"][:MAX_ROWS])),
    )


def _operator(data: dict[str, Any]) -> Operator:
    fields = Fields(data, "operator")
    return Operator(
        name=clean_text(data.get("name", ""), 200),
        op=clean_text(data["op"], 100),
        provider=clean_text(data["provider"], 100),
        calls=fields.integer("calls", minimum=1),
        total_us=float(fields.number("total_us")),
        median_us=float(fields.number("median_us")),
        share=float(fields.number("share")),
    )


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < MAX_NS:
        raise ValueError(f"{value!r} is not a count or a time")
    return value


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or value != value or abs(value) > 1e300:
        raise ValueError(f"{value!r} is not a number")
    return float(value)
