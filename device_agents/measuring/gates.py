"""Gates before a round: is the device in a state in which a number means something?

``obstacles`` is a pure function of a snapshot; :class:`Gatekeeper` asks the device, waits while
waiting helps, and gives what stayed as findings. What a device does not tell never blocks: a
virtual machine has no thermal zones.

=====================  ==========================================================================
the lease is lost      the agent refuses to look (DeviceError): somebody else may measure
another boot id        LinkLostError: the session is opened anew and the rounds are taken again
disk nearly full       DeviceDiskFullError
little memory          wait, then BUSY_BOARD
load, pressure, NPU    wait, then BUSY_BOARD
heat                   wait, then HOT (above ``max_temperature_c``: DeviceError, no round starts)
colder than at start   wait while it gets warmer, then COLD
cooling while cool     wait, then DeviceError STUCK_THROTTLE: heat does not explain it
=====================  ==========================================================================
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from device_agents.devices import DeviceSpec
from device_agents.link.client import clean_text
from device_agents.link.session import Session
from device_agents.measuring.profiles import Profile
from device_agents.measuring.replies import checked
from device_agents.measuring.verdicts.finding import Finding, Snapshot
from device_agents.measuring.verdicts.heat import hottest, slows
from latency_tables.errors import DeviceDiskFullError, DeviceError, LinkLostError

BELOW_START_C = 5.0
ABOVE_START_C = 3.0
LOAD_OF_OTHERS = 0.3
MIN_DISK_BYTES = 32 << 20
MIN_MEMORY_BYTES = 64 << 20
PRESSURE_PERCENT = {"cpu": 20.0, "io": 20.0, "memory": 5.0}
"""Above this share of the last 10 s tasks of other programs waited; our own start-up does, too."""

NPU_LOAD_PERCENT = 5
COOL_BELOW_TRIP_C = 5.0
STUCK_WAIT_S = 10.0
"""At least this long is waited for a cooling device: kernels lower its state step by step."""

HARD_WAIT_S = 120.0
GIVEN_UP_S = 600.0
"""A gate that stayed closed for a whole wait is not waited for again for this long."""

POLL_S = 2.0
SNAPSHOT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a snapshot is held against.

    ``start_c`` is the hottest zone when the session began, ``own_load`` the load average that our
    own rounds explain.
    """

    threads: int
    start_c: float | None = None
    max_temperature_c: float | None = None
    own_load: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Why a round should not start now; ``code`` is HOT, COLD, BUSY_BOARD or STUCK_THROTTLE.

    A ``hard`` one stops the session if it stays.
    """

    code: str
    reason: str
    hard: bool = False


def obstacles(snapshot: Snapshot, limits: Limits) -> list[Obstacle]:
    """Every gate that is closed.

    >>> warm = {"thermal_zones": [{"type": "soc", "temperature_mc": 51_000}]}
    >>> obstacles(warm, Limits(threads=1, start_c=50.0))
    []
    >>> obstacles(warm, Limits(threads=1, start_c=45.0))[0].reason
    'soc is at 51 °C, the session began at 45 °C (allowed: 40 to 48 °C)'
    """
    return [
        *_temperature(snapshot, limits),
        *_cooling(snapshot, limits),
        *_load(snapshot, limits),
        *_memory(snapshot),
    ]


def load_after(before: float, threads: int, seconds: float) -> float:
    """Load average (1 min) that ``threads`` cause which ran for ``seconds``; 0 threads: it decays.

    >>> round(load_after(0.0, 2, 60.0), 2), round(load_after(1.0, 0, 60.0), 2)
    (1.26, 0.37)
    """
    return threads + (before - threads) * math.exp(-seconds / 60)


def _temperature(snapshot: Snapshot, limits: Limits) -> list[Obstacle]:
    found = hottest(snapshot)
    if found is None:
        return []
    now, zone = found[0], clean_text(found[1], 60)
    if limits.max_temperature_c is not None and now >= limits.max_temperature_c:
        reason = f"{zone} is at {now:g} °C, the device's limit is {limits.max_temperature_c:g} °C"
        return [Obstacle(code="HOT", reason=reason, hard=True)]
    if limits.start_c is None:
        return []
    low, high = limits.start_c - BELOW_START_C, limits.start_c + ABOVE_START_C
    if low <= now <= high:
        return []
    reason = (
        f"{zone} is at {now:g} °C, the session began at {limits.start_c:g} °C "
        f"(allowed: {low:g} to {high:g} °C)"
    )
    return [Obstacle(code="HOT" if now > high else "COLD", reason=reason)]


def _cooling(snapshot: Snapshot, limits: Limits) -> list[Obstacle]:
    acting = [
        device
        for device in snapshot.get("cooling_devices") or []
        if slows(device) and (device.get("state") or 0) > 0
    ]
    found = []
    for device in acting:
        name = clean_text(f"{device.get('type')} ({device.get('name')})", 100)
        reason = f"cooling device {name} is in state {device['state']}"
        if is_cool(snapshot, limits):
            heat = hottest(snapshot)
            at = f" at {heat[0]:g} °C" if heat else ""
            reason += f" though the device is cool{at}"
            found.append(Obstacle(code="STUCK_THROTTLE", reason=reason, hard=True))
        else:
            found.append(Obstacle(code="HOT", reason=reason))
    return found


def is_cool(snapshot: Snapshot, limits: Limits) -> bool:
    """Whether no zone explains cooling: all below their trip points and not over the window."""
    heat = hottest(snapshot)
    if heat is None:
        return False  # unknown: the round's own evidence will say THROTTLED
    if limits.start_c is not None and heat[0] > limits.start_c + ABOVE_START_C:
        return False
    margin_mc = COOL_BELOW_TRIP_C * 1000
    return all(
        zone["temperature_mc"] < zone["passive_trip_mc"] - margin_mc
        for zone in snapshot.get("thermal_zones") or []
        if zone.get("temperature_mc") and zone.get("passive_trip_mc")
    )


def _load(snapshot: Snapshot, limits: Limits) -> list[Obstacle]:
    found = []
    load, allowed = snapshot.get("load_average"), LOAD_OF_OTHERS + limits.own_load
    if load is not None and load > allowed:
        reason = f"the load average is {load:g}, allowed: {allowed:.2f}"
        found.append(Obstacle(code="BUSY_BOARD", reason=reason))
    for kind, percent in PRESSURE_PERCENT.items():
        waited = (snapshot.get("psi") or {}).get(kind)
        if waited is not None and waited > percent:
            reason = f"tasks waited for {kind} in {waited:g} % of the last 10 s"
            found.append(Obstacle(code="BUSY_BOARD", reason=reason))
    npu = max(snapshot.get("npu_load_percent") or [0])
    if npu > NPU_LOAD_PERCENT:
        found.append(Obstacle(code="BUSY_BOARD", reason=f"another client uses {npu} % of the NPU"))
    return found


def _memory(snapshot: Snapshot) -> list[Obstacle]:
    free = snapshot.get("memory_available_bytes")
    if free is None or free >= MIN_MEMORY_BYTES:
        return []
    reason = f"{free >> 20} MiB of memory are available, needed: {MIN_MEMORY_BYTES >> 20}"
    return [Obstacle(code="BUSY_BOARD", reason=reason)]


class Gatekeeper:
    """Asks the device before each round of one session.

    ``tell`` hears why a round waits.
    """

    def __init__(
        self,
        device: DeviceSpec,
        profile: Profile,
        *,
        tell: Callable[[str], None] = lambda note: None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.device, self.profile = device, profile
        self._tell, self._sleep, self._clock = tell, sleep, clock
        self._boot_id: str | None = None
        self._own_load, self._asked_s = 0.0, 0.0
        self._given_up_s: dict[str, float] = {}
        self.start_c: float | None = None

    def wait(self, session: Session) -> list[Finding]:
        """Return when the gates are open, or with a finding per gate that stayed closed.

        Raises LinkLostError (lease or boot changed), DeviceDiskFullError, and DeviceError with
        the code HOT or STUCK_THROTTLE.
        """
        waited_s, told, before_c = 0.0, "", math.inf
        self._pass_time(self.device.threads)  # since the last gate a round of ours ran
        while True:
            now = self._look(session)
            self._pass_time(0)
            closed = checked("snapshot", lambda now=now: obstacles(now, self._limits()))  # type: ignore[misc]
            heat_c = (hottest(now) or (math.inf, ""))[0]
            colder = heat_c <= before_c
            left = [
                obstacle
                for obstacle in closed
                if waited_s < self._patience_s(obstacle)
                and not (obstacle.code == "COLD" and waited_s and colder)
            ]
            if not left:
                break
            reason = "; ".join(obstacle.reason for obstacle in left)
            if reason != told:
                self._tell(f"waiting: {reason}")
                told = reason
            self._sleep(POLL_S)
            waited_s += POLL_S
            before_c = heat_c
        for obstacle in closed:
            if obstacle.hard:
                raise _refusal(obstacle, waited_s)
            if waited_s >= self.profile.gate_wait_s > 0:
                self._given_up_s[obstacle.code] = self._clock()
        after = f" (after waiting {waited_s:g} s)" if waited_s else ""
        return [Finding(code=o.code, evidence=o.reason + after) for o in closed]

    def _look(self, session: Session) -> Snapshot:
        now = session.request("snapshot", {}, timeout_s=SNAPSHOT_S)
        if now.get("boot_id") != session.boot_id:
            session.close()
            raise LinkLostError("the device rebooted")
        free = now.get("disk_free_bytes")
        if isinstance(free, int) and free < MIN_DISK_BYTES:
            raise DeviceDiskFullError(
                f"{free >> 20} MiB are free in the device's work folder, needed: "
                f"{MIN_DISK_BYTES >> 20}",
                hint=f"hilnas devices clean {self.device.name}",
            )
        if self._boot_id != session.boot_id:
            self._boot_id, self._own_load, self._asked_s = session.boot_id, 0.0, self._clock()
            self.start_c = checked("snapshot", lambda: (hottest(now) or (None, ""))[0])
        return now

    def _limits(self) -> Limits:
        return Limits(
            threads=self.device.threads,
            start_c=self.start_c,
            max_temperature_c=self.device.max_temperature_c,
            own_load=self._own_load,
        )

    def _pass_time(self, threads: int) -> None:
        now_s = self._clock()
        self._own_load = load_after(self._own_load, threads, now_s - self._asked_s)
        self._asked_s = now_s

    def _patience_s(self, obstacle: Obstacle) -> float:
        if obstacle.code == "STUCK_THROTTLE":
            return max(STUCK_WAIT_S, self.profile.gate_wait_s)
        if obstacle.hard:
            return HARD_WAIT_S
        since_s = self._clock() - self._given_up_s.get(obstacle.code, -math.inf)
        return 0.0 if since_s < GIVEN_UP_S else self.profile.gate_wait_s


def _refusal(obstacle: Obstacle, waited_s: float) -> DeviceError:
    error = DeviceError(
        f"no round can start: {obstacle.reason}, also after {waited_s:g} s",
        hint="reboot the device: some kernels do not let go"
        if obstacle.code == "STUCK_THROTTLE"
        else "cool the device better, or raise its max_temperature_c",
    )
    error.code = obstacle.code
    return error
