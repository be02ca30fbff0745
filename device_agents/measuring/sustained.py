"""Sustained mode: what a network costs after minutes, when the device is warm.

A latency table says what a network costs on a device that is not hot. An application that runs
all the time meets another device: this module shows how its latency, clocks and temperatures move,
when throttling begins, and what an inference costs in energy where a sensor can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from device_agents.identity import clean_json
from device_agents.link.client import clean_text
from device_agents.measuring import replies
from device_agents.measuring.batches import START_S, Net
from device_agents.measuring.measurer import DeviceMeasurer
from device_agents.measuring.verdicts.heat import slows
from latency_tables.errors import MeasurementError, ProtocolError, UsageError
from latency_tables.fields import Fields

THROTTLED_BY = 0.05
"""From this much slower than in its first minute on, without going back, a network is throttled."""

SETTLED_PERIODS = 2
MIN_POWER_SAMPLES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """Some seconds of a sustained run and the state of the device at their end."""

    start_s: float
    end_s: float
    median_ns: int
    min_ns: int
    max_ns: int
    n_runs: int
    clock_khz: dict[str, Any] = field(default_factory=dict)
    temperature_mc: dict[str, Any] = field(default_factory=dict)
    cooling: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Energy of an inference by one sensor: its mean power over the runs in that time.

    ``uncertainty_mj`` is how much the steps between neighbouring samples could hide. It says
    nothing about the sensor's own accuracy, and a load that changes faster than ``sample_hz`` can
    be missed altogether. What the device takes while idle is part of it.
    """

    sensor: str
    per_inference_mj: float
    uncertainty_mj: float
    power_w: float
    sample_hz: float
    n_samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sustained:
    """A sustained run: what it was at first, what it was at last, and when it changed.

    ``slowdown`` is last minute / first minute. ``throttled_after_s`` is None where nothing slowed
    it. ``energy`` is empty where the device has no sensor; say "no sensor" then.
    """

    periods: tuple[Period, ...]
    first_minute_ns: int
    last_minute_ns: int
    slowdown: float
    throttled_after_s: float | None
    throttled_by: str
    energy: tuple[Energy, ...]

    @property
    def energy_text(self) -> str:
        """One line about energy, with rate and uncertainty, or "no sensor"."""
        if not self.energy:
            return "no sensor"
        return "; ".join(
            f"{e.per_inference_mj:.3g} ± {e.uncertainty_mj:.2g} mJ per inference "
            f"({e.sensor}, {e.n_samples} samples at {e.sample_hz:.3g} Hz)"
            for e in self.energy
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


def measure_sustained(
    measurer: DeviceMeasurer,
    net: Net,
    *,
    seconds: float = 300.0,
    period_s: float = 5.0,
    on_period: Callable[[Period], None] = lambda period: None,
) -> Sustained:
    """Run a network whose files are on the device for ``seconds``.

    The gates of a round apply at the start. Nothing is repeated after a lost link: the device is
    warm then. Raises UsageError, MeasurementError (the network cannot run) and DeviceError.
    """
    if not 0 < period_s <= seconds:
        raise UsageError(f"{seconds:g} s in periods of {period_s:g} s; a period must fit in")
    periods: list[Period] = []

    def on_event(event: str, data: dict[str, Any]) -> None:
        if event == "period":
            periods.append(replies.checked("period", lambda: read_period(data)))
            on_period(periods[-1])

    with measurer.connected() as session, measurer.connection.clocked():
        measurer.connection.gate()
        request = {
            **measurer.batch([net]).settings(),
            "nets": [net.to_request()],
            "seconds": seconds,
            "period_s": period_s,
        }
        patience_s = seconds + period_s + START_S + measurer.profile.net_timeout_s
        said = session.request("sustain", request, timeout_s=patience_s, on_event=on_event)
    if "error" in said:
        failure = replies.failure(said)
        raise MeasurementError(failure["code"], failure["message"], blames=failure["blames"])
    if not periods:
        raise ProtocolError("the agent told no period of a sustained run")
    return replies.checked("sustained run", lambda: summarise(periods, said))


def summarise(periods: Sequence[Period], said: Mapping[str, Any]) -> Sustained:
    """From periods and the agent's answer (``n_runs``, ``wall_ns``, ``energy``) to a result."""
    first = _minute_ns([p for p in periods if p.start_s < min(60.0, periods[-1].end_s / 2)])
    begin_last_s = max(periods[-1].end_s - 60.0, periods[-1].end_s / 2)
    last = _minute_ns([p for p in periods if p.end_s > begin_last_s])
    after_s, by = throttling_time(periods)
    return Sustained(
        periods=tuple(periods),
        first_minute_ns=round(first),
        last_minute_ns=round(last),
        slowdown=last / first,
        throttled_after_s=after_s,
        throttled_by=by,
        energy=energies(said.get("energy"), said["n_runs"], said["wall_ns"] / 1e9),
    )


def _minute_ns(periods: Sequence[Period]) -> float:
    return float(np.median([period.median_ns for period in periods]))


def throttling_time(periods: Sequence[Period]) -> tuple[float | None, str]:
    """When throttling began, in seconds, and how it was seen; (None, "") where it did not.

    The first cooling device that acts, or clock that falls under its first value, or the start of
    the last stretch of at least two periods that are 5 % slower than the fastest so far.
    """
    seen: list[tuple[float, str]] = []
    for period in periods:
        for name, level in period.cooling.items():
            if slows({"type": name}):
                seen.append((period.end_s, f"cooling device {clean_text(name, 80)}: {level}"))
        for policy, khz in period.clock_khz.items():
            before = periods[0].clock_khz.get(policy)
            if before and khz < before * (1 - THROTTLED_BY):
                seen.append((period.end_s, f"{clean_text(policy, 40)} fell to {khz} kHz"))
    limit = (1 + THROTTLED_BY) * min(_minute_ns(periods[:SETTLED_PERIODS]), _quiet_ns(periods))
    slow = len(periods)
    while slow > 0 and periods[slow - 1].median_ns > limit:
        slow -= 1
    if len(periods) - slow >= SETTLED_PERIODS and slow > 0:
        share = _minute_ns(periods[slow:]) / limit * (1 + THROTTLED_BY) - 1
        seen.append((periods[slow].start_s, f"runs became {share:.0%} slower and stayed so"))
    return min(seen) if seen else (None, "")


def _quiet_ns(periods: Sequence[Period]) -> float:
    early = [p.median_ns for p in periods if p.start_s < 60.0]
    return float(np.median(early))


def energies(told: Any, n_runs: int, wall_s: float) -> tuple[Energy, ...]:
    """Energy per inference by sensor, from what :mod:`device_agents.board.sensors` told.

    >>> ina = {"mean_watt": 2.0, "uncertainty_joule": 1.0, "seconds": 10.0, "rate_hz": 20.0}
    >>> energies({"ina": {**ina, "samples": 200}}, 1000, 10.0)[0].per_inference_mj
    20.0
    """
    if not isinstance(told, Mapping) or n_runs < 1:
        return ()
    found = []
    for sensor, seen in sorted(told.items()):
        if seen is None or seen["samples"] < MIN_POWER_SAMPLES:
            continue
        seconds_per_run = wall_s / n_runs
        uncertain_w = float(seen["uncertainty_joule"]) / float(seen["seconds"])
        found.append(
            Energy(
                sensor=clean_text(sensor, 60),
                per_inference_mj=float(seen["mean_watt"]) * seconds_per_run * 1e3,
                uncertainty_mj=uncertain_w * seconds_per_run * 1e3,
                power_w=float(seen["mean_watt"]),
                sample_hz=float(seen["rate_hz"]),
                n_samples=int(seen["samples"]),
            )
        )
    return tuple(found)


def read_period(data: dict[str, Any]) -> Period:
    """Read an event of the agent. Raises ValueError or CorruptTableError naming the field."""
    fields = Fields(data, "period")
    return Period(
        start_s=fields.integer("start_ns") / 1e9,
        end_s=fields.integer("end_ns", minimum=1) / 1e9,
        median_ns=fields.integer("median_ns", minimum=1),
        min_ns=fields.integer("min_ns", minimum=1),
        max_ns=fields.integer("max_ns", minimum=1),
        n_runs=fields.integer("n_runs", minimum=1),
        clock_khz=_numbers(fields.object("clock_khz")),
        temperature_mc=_numbers(fields.object("temperature_mc")),
        cooling=_numbers(fields.object("cooling")),
    )


def _numbers(values: Mapping[str, Any]) -> dict[str, int]:
    return {k: v for k, v in clean_json(dict(values)).items() if type(v) is int}
