"""What an agent reports about a round, checked field by field before anything is computed.

Counts and times must be positive integers of sane size; anything else is a ProtocolError, because
a number that is silently wrong would end up in a latency table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from device_agents.link.client import clean_text
from latency_tables.errors import Blames, CorruptTableError, ProtocolError
from latency_tables.fields import Fields
from latency_tables.records import Failure

T = TypeVar("T")

MAX_NS = 10**13
"""Longest believable single run: 2.8 hours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetRound:
    """One network in one round. ``samples_ns`` holds every k-th sample of each block, in order.

    ``busy_ns`` is what warm-up and timed blocks took together, 0 where the agent does not say.
    ``runtime_evidence`` is what the runtime itself counted, as it said it.
    """

    block_medians_ns: tuple[int, ...]
    block_counts: tuple[int, ...]
    samples_ns: tuple[tuple[int, ...], ...]
    min_ns: int
    load_ns: int
    first_ns: int
    warmup_runs: int
    steady: bool
    calls_per_sample: int
    involuntary_switches: int
    n_threads: int
    masks_outside: tuple[str, ...]
    finite: bool
    golden_right: bool | None
    golden_error: float | None
    child: int
    position: int
    busy_ns: int = 0
    runtime_evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def n_runs(self) -> int:
        """Timed runs of the network."""
        return sum(self.block_counts) * self.calls_per_sample


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceVisit:
    """The reference network, timed after ``position`` networks of a child."""

    position: int
    block_medians_ns: tuple[int, ...]
    busy_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildEvidence:
    """What the kernel counted around one child, see :func:`device_agents.board.system.snapshot`.

    ``witness`` holds sums between both ends (:class:`device_agents.board.witness.Witness`),
    ``cycles_per_s`` the counted cycles of a timed core where the kernel lets them be counted.
    """

    before: dict[str, Any]
    after: dict[str, Any]
    cpu_s: float
    clock_khz: dict[str, Any]
    references: tuple[ReferenceVisit, ...]
    witness: dict[str, Any] = field(default_factory=dict)
    cycles_per_s: float | None = None


def checked(what: str, read: Callable[[], T]) -> T:
    """Run a reader; whatever is wrong with the data becomes a ProtocolError."""
    try:
        return read()
    except (CorruptTableError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProtocolError(f"the agent's {what}: {clean_text(error, 300)}") from None


def net_round(data: dict[str, Any]) -> NetRound:
    """Read a ``net`` event. Raises ProtocolError naming the field."""
    return checked("result of a network", lambda: _net_round(data))


def _net_round(data: dict[str, Any]) -> NetRound:
    fields = Fields(data, "result")
    golden = data.get("golden")
    samples = tuple(_times(block, "samples_ns") for block in data["samples_ns"])
    medians = _times(data["block_medians_ns"], "block_medians_ns")
    counts = _times(data["block_counts"], "block_counts")
    if not medians or not len(medians) == len(counts) == len(samples) or not all(samples):
        raise ValueError("blocks are missing or empty")
    return NetRound(
        block_medians_ns=medians,
        block_counts=counts,
        samples_ns=samples,
        min_ns=fields.integer("min_ns", minimum=1),
        load_ns=fields.integer("load_ns", minimum=1),
        first_ns=fields.integer("first_ns", minimum=1),
        warmup_runs=fields.integer("warmup_runs"),
        steady=fields.flag("steady"),
        calls_per_sample=fields.integer("calls_per_sample", minimum=1),
        involuntary_switches=fields.integer("involuntary_switches"),
        n_threads=fields.integer("n_threads", minimum=1),
        masks_outside=tuple(clean_text(mask, 100) for mask in data["masks_outside"][:20]),
        finite=fields.flag("finite"),
        golden_right=bool(golden["right"]) if golden else None,
        golden_error=_optional_float(golden["max_abs_error"]) if golden else None,
        child=fields.integer("child"),
        position=fields.integer("position"),
        busy_ns=_optional_time(data.get("busy_ns")),
        runtime_evidence=_optional_object(data.get("runtime_evidence")),
    )


def failure(data: dict[str, Any]) -> Failure:
    """Read why a network was not measured. Raises ProtocolError."""

    def read() -> Failure:
        error = data["error"]
        blames = error["blames"]
        if blames not in ("board", "candidate", "host"):
            raise ValueError(f"nobody is called {blames!r}")
        return Failure(
            code=clean_text(error["code"], 40),
            message=clean_text(error["message"]),
            blames=cast(Blames, blames),
        )

    return checked("failure", read)


def children(result: dict[str, Any]) -> tuple[ChildEvidence, ...]:
    """Read the evidence that ends a round. Raises ProtocolError."""
    return checked("evidence", lambda: tuple(map(_child, result["children"])))


def _child(data: dict[str, Any]) -> ChildEvidence:
    fields = Fields(data, "child")
    return ChildEvidence(
        before=fields.object("before"),
        after=fields.object("after"),
        cpu_s=float(fields.number("cpu_s")),
        clock_khz=fields.object("clock_khz"),
        references=tuple(
            ReferenceVisit(
                position=int(visit["position"]),
                block_medians_ns=_times(visit["block_medians_ns"], "reference"),
                busy_ns=_optional_time(visit.get("busy_ns")),
            )
            for visit in data["references"]
        ),
        witness=_optional_object(data.get("witness")),
        cycles_per_s=_optional_float(data.get("cycles_per_s")),
    )


def _times(values: Any, name: str) -> tuple[int, ...]:
    if not isinstance(values, list):
        raise ValueError(f"{name} is not a list")
    for value in values:
        if type(value) is not int or not 0 < value < MAX_NS:
            raise ValueError(f"{name} holds {value!r}, which is not a time")
    return tuple(values)


def _optional_time(value: Any) -> int:
    return 0 if value is None else _times([value], "busy_ns")[0]


def _optional_object(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is not an object"[:200])
    return value


def _optional_float(value: Any) -> float | None:
    return None if value is None else float(value)
