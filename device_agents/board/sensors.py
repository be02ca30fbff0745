"""Clocks, temperatures and power of a board over time.

A board tells power by a current sensor (hwmon: INA219, INA226, …), by a battery's or charger's
gauge (power_supply), or energy by a counter that only grows (hwmon, RAPL). Most have none, and
then there is nothing to say. Power is read in steps, so an energy from it is an estimate: the
faster the load moves, the worse; how far apart neighbouring samples lie says how bad.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any, Dict, List, Optional, Sequence

from device_agents.board.cpu import policies
from device_agents.board.hardware import devfreq, thermal_zones
from device_agents.board.tree import Tree

HWMON = "/sys/class/hwmon/hwmon*"
SUPPLY = "/sys/class/power_supply/*"
RAPL = "/sys/class/powercap/intel-rapl:*"
MAX_POINTS = 600
"""Points kept of a series; when it is full, every second one goes and the step doubles."""

Json = Dict[str, Any]


class Sensor:
    """One node that tells power in µW or energy in µJ; or voltage and current (µV, µA)."""

    def __init__(self, name: str, kind: str, nodes: Sequence[str], range_uj: int = 0) -> None:
        self.name, self.kind, self.nodes, self.range_uj = name, kind, tuple(nodes), range_uj

    def read(self, tree: Tree) -> Optional[int]:
        """The value now, None where it cannot be read."""
        values = [tree.number(node) for node in self.nodes]
        if any(value is None for value in values):
            return None
        if len(values) == 2:
            # a discharging battery gives a negative current
            return abs(int(values[0] or 0) * int(values[1] or 0)) // 1_000_000
        return abs(int(values[0] or 0))


def find_sensors(tree: Tree) -> List[Sensor]:
    """Sensors that can be read now; none on most boards.

    >>> find_sensors(Tree("/nowhere/to/be/found"))
    []
    """
    found = []
    for folder in tree.folders(HWMON):
        chip = tree.text(folder + "/name") or os.path.basename(folder)
        for kind, unit in (("power", "power"), ("energy", "energy")):
            for node in tree.folders("{}/{}*_input".format(folder, unit)):
                label = tree.text(node[: -len("_input")] + "_label")
                port = label or os.path.basename(node)[: -len("_input")]
                found.append(Sensor("{}/{}".format(chip, port), kind, [node]))
    for folder in tree.folders(SUPPLY):
        name = os.path.basename(folder)
        if tree.number(folder + "/power_now") is not None:
            found.append(Sensor(name, "power", [folder + "/power_now"]))
        else:
            nodes = [folder + "/voltage_now", folder + "/current_now"]
            found.append(Sensor(name, "power", nodes))
    for folder in tree.folders(RAPL):
        name = tree.text(folder + "/name") or os.path.basename(folder)
        limit = tree.number(folder + "/max_energy_range_uj") or 0
        found.append(Sensor("rapl/" + name, "energy", [folder + "/energy_uj"], limit))
    return [sensor for sensor in found if sensor.read(tree) is not None]


class Energy:
    """Energy from the first to the last reading of a sensor, with its uncertainty.

    A counter is exact to its step: the uncertainty is the largest update. For power it is half of
    what the steps before and after each interval would differ by: what hides between two samples
    cannot be known, and this is how much it matters if the power moved at once.

    >>> energy = Energy(Sensor("ina", "power", []))
    >>> for second, microwatt in enumerate([2_000_000, 2_000_000, 4_000_000]):
    ...     energy.add(float(second), microwatt)
    >>> energy.result()["joule"], energy.result()["uncertainty_joule"]
    (5.0, 1.0)
    """

    def __init__(self, sensor: Sensor) -> None:
        self.sensor = sensor
        self.n = 0
        self._first_s = self._last_s = 0.0
        self._last = 0
        self._joule = self._off = 0.0
        self._was_reset = False

    def add(self, now_s: float, value: int) -> None:
        """Take one reading, in µW or µJ."""
        if self.n == 0:
            self._first_s = now_s
        elif self.sensor.kind == "energy":
            step = value - self._last
            if step < 0 and self.sensor.range_uj:
                step += self.sensor.range_uj + 1  # it wrapped
            self._was_reset = self._was_reset or step < 0
            self._joule += step / 1e6
            self._off = max(self._off, step / 1e6)
        else:
            took_s = now_s - self._last_s
            self._joule += took_s * (self._last + value) / 2e6
            self._off += took_s * abs(value - self._last) / 2e6
        self._last_s, self._last, self.n = now_s, value, self.n + 1

    def result(self) -> Optional[Json]:
        """Joule, uncertainty, mean power and sample rate; None below three readings."""
        took_s = self._last_s - self._first_s
        if self.n < 3 or took_s <= 0 or self._was_reset:
            return None
        return {
            "joule": round(self._joule, 6),
            "uncertainty_joule": round(self._off, 6),
            "mean_watt": round(self._joule / took_s, 6),
            "seconds": round(took_s, 6),
            "samples": self.n,
            "rate_hz": round((self.n - 1) / took_s, 3),
        }


class Sampler:
    """Samples every ``period_s`` in a thread of its own between :meth:`start` and :meth:`stop`.

    >>> sampler = Sampler(Tree("/"), 0.01)
    >>> sampler.start(); sampler.stop()["n"] >= 1
    True
    """

    def __init__(self, tree: Tree, period_s: float, max_points: int = MAX_POINTS) -> None:
        if not period_s > 0:
            raise ValueError("a period of {} s; it must be positive".format(period_s))
        self.tree, self.period_s, self.max_points = tree, period_s, max_points
        self.sensors = find_sensors(tree)
        self._stop = threading.Event()
        self._thread: Optional[threading.Thread] = None
        self._began_s = time.monotonic()
        self._n = 0
        self._every = 1
        self._series: List[Json] = []
        self._clocks: Dict[str, List[int]] = {}
        self._heat: Dict[str, List[int]] = {}
        self._energy = {sensor.name: Energy(sensor) for sensor in self.sensors}

    def start(self) -> None:
        """Take the first sample at once and go on until :meth:`stop`."""
        self._began_s = time.monotonic()
        self.sample()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()

    def stop(self) -> Json:
        """Take a last sample and give everything that was seen.

        ``clock_khz`` has [lowest, highest] by policy or devfreq device, ``temperature_mc`` [first,
        highest, last] by zone, ``energy`` what :class:`Energy` says by sensor; ``power_uw`` and
        ``series`` are thinned out. ``sensors`` is empty on a board that cannot tell its power.
        """
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self.sample()
        return {
            "n": self._n,
            "period_s": self.period_s,
            "rate_hz": self.rate_hz,
            "clock_khz": self._clocks,
            "temperature_mc": self._heat,
            "sensors": [{"name": s.name, "kind": s.kind} for s in self.sensors],
            "power_uw": {
                sensor.name: [
                    point["sensors"][sensor.name]
                    for point in self._series
                    if sensor.name in point["sensors"]
                ]
                for sensor in self.sensors
                if sensor.kind == "power"
            },
            "energy": {name: energy.result() for name, energy in self._energy.items()},
            "series": self._series,
        }

    @property
    def rate_hz(self) -> float:
        """Samples per second that were really taken."""
        took_s = time.monotonic() - self._began_s
        return round((self._n - 1) / took_s, 3) if self._n > 1 and took_s > 0 else 0.0

    def sample(self) -> None:
        """Look once at everything."""
        now_s = time.monotonic() - self._began_s
        clocks = {str(p["name"]): p["cur_khz"] for p in policies(self.tree)}
        clocks.update(
            {str(d["name"]): d["cur_hz"] // 1000 for d in devfreq(self.tree) if d["cur_hz"]}
        )
        heat = {_zone(zone): zone["temperature_mc"] for zone in thermal_zones(self.tree)}
        for name, clock in clocks.items():
            if clock is not None:
                low, high = self._clocks.get(name, [clock, clock])
                self._clocks[name] = [min(low, clock), max(high, clock)]
        for name, value in heat.items():
            if value is not None:
                first, top, _ = self._heat.get(name, [value, value, value])
                self._heat[name] = [first, max(top, value), value]
        power = {}
        for sensor in self.sensors:
            reading = sensor.read(self.tree)
            if reading is not None:
                self._energy[sensor.name].add(now_s, reading)
                power[sensor.name] = reading
        if self._n % self._every == 0:
            point = {"s": round(now_s, 3), "khz": clocks, "mc": heat, "sensors": power}
            self._series.append(point)
        self._n += 1
        self._thin_out()

    def _run(self) -> None:
        due_s = self._began_s + self.period_s
        while not self._stop.wait(max(0.0, due_s - time.monotonic())):
            self.sample()
            # a late sample is not made up for: that would sample a busy board in bursts
            due_s = max(due_s + self.period_s, time.monotonic())

    def _thin_out(self) -> None:
        if len(self._series) > self.max_points:
            self._series = self._series[::2]
            self._every *= 2


def describe(tree: Tree) -> List[Json]:
    """Sensors by name and kind, for a probe."""
    return [{"name": sensor.name, "kind": sensor.kind} for sensor in find_sensors(tree)]


def _zone(zone: Json) -> str:
    """Zones are told apart by their number: several may have one type."""
    return "{} ({})".format(zone["name"], zone["type"])
