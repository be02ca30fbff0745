"""Checks of what moves a latency: cores, governors, NPU and memory clocks, heat."""

from __future__ import annotations

import re

from device_agents.board.child import core_list
from device_agents.clocks import HELPER, sudoers_line
from device_agents.devices import DeviceSpec
from device_agents.doctor.check import Check, Probe, items, number, text
from device_agents.identity import clusters_of, cores_of, whole_numbers
from latency_tables.errors import UsageError

FIXED_GOVERNORS = ("performance", "userspace")
NEAR_TRIP_MC = 10_000
_CORES = re.compile(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*")


def cores(said: Probe, device: DeviceSpec) -> Check:
    """Which cores a network would run on."""
    clusters = "; ".join(map(str, clusters_of(dict(said)))) or "no clusters are told"
    try:
        chosen = cores_of(dict(said), device.cores, device.threads, device.pin)
    except UsageError as error:
        return Check(name="cores", state="fail", evidence=error.message, remedy=error.hint or "")
    evidence = f"networks run on {', '.join(map(str, chosen))}; {clusters}"
    absent = set(chosen) - _allowed(said)
    if absent:
        return Check(
            name="cores",
            state="fail",
            evidence=f"{evidence}; the agent may not use {', '.join(map(str, sorted(absent)))}",
            remedy="other cores, or see what confines the login (cpuset, taskset)",
        )
    if not _allowed(said) - set(chosen):
        remedy = "leave a core to the system: fewer threads, or another cluster"
        evidence += "; none is left for the agent and the system"
        return Check(name="cores", state="warn", evidence=evidence, remedy=remedy)
    return Check(name="cores", state="ok", evidence=evidence)


def governors(said: Probe, device: DeviceSpec, user: str) -> Check:
    """Whether the clocks of the timed cores stand still, and who may make them."""
    policies = items(said, "policies")
    if not policies:
        evidence = "this machine shows no cpufreq policy (virtual machine?): no clock can be seen"
        return Check(name="governors", state="unknown", evidence=evidence)
    try:
        timed = set(cores_of(dict(said), device.cores, device.threads, device.pin))
    except UsageError:
        timed = set()
    mine = [p for p in policies if not timed or _cores(p) & timed]
    seen = ", ".join(
        f"{text(p, 'name', 30)} {text(p, 'governor', 30)} "
        f"{_mhz(number(p, 'min_khz'))}–{_mhz(number(p, 'max_khz'))} MHz"
        for p in mine
    )
    moving = [p for p in mine if not _fixed(p, "min_khz", "max_khz")]
    if not moving:
        return Check(name="governors", state="ok", evidence=seen)
    if device.clocks and device.power != "observe":
        evidence = f"{seen}; set for each measurement by power = {device.power!r}"
        return Check(name="governors", state="ok", evidence=evidence)
    return Check(
        name="governors",
        state="warn",
        evidence=f"{seen}; clocks are only observed and may move",
        remedy=_how_to_fix_clocks(moving, said, device, user),
    )


def power(said: Probe, device: DeviceSpec, user: str, helper_works: bool | None) -> Check:
    """Whether the wished way to set clocks works."""
    if device.power == "observe":
        return Check(
            name="power", state="ok", evidence="clocks are only observed (power 'observe')"
        )
    if device.power == "direct":
        if number(said, "user_id") == 0:
            return Check(name="power", state="ok", evidence="the agent runs as root")
        remedy = "power = 'sudo' with the helper, or a udev rule for the nodes"
        evidence = f"the agent runs as {user or 'a user'} and not as root"
        return Check(name="power", state="warn", evidence=evidence, remedy=remedy)
    if helper_works is None:
        return Check(name="power", state="unknown", evidence="sudo could not be asked")
    if helper_works:
        return Check(name="power", state="ok", evidence=f"sudo -n {HELPER} is allowed")
    return Check(
        name="power",
        state="fail",
        evidence=f"sudo -n {HELPER} is refused",
        remedy=_how_to_install(user),
    )


def devfreq(said: Probe, device: DeviceSpec) -> Check:
    """Clocks of NPU, GPU and memory."""
    devices = items(said, "devfreq")
    if not devices:
        evidence = "the kernel shows no devfreq device: memory and NPU clocks are unknown"
        return Check(name="devfreq", state="unknown", evidence=evidence)
    seen = ", ".join(
        f"{text(d, 'name', 60)} {text(d, 'governor', 30)} at {_mhz(number(d, 'cur_hz'), 1e6)} MHz"
        for d in devices
    )
    roles = ("npu", "dmc") if device.runtime == "rknn" else ("dmc",)
    matter = [d for d in devices if _role(d) in roles]
    moving = [d for d in matter if not _fixed(d, "min_hz", "max_hz")]
    missing = [role for role in roles if role not in {_role(d) for d in devices}]
    wished = {name for name in device.clocks if device.power != "observe"}
    left = [d for d in moving if not wished & {text(d, "name", 80), _role(d)}]
    if missing:
        seen += f"; no device for {', '.join(missing)}"
    if not left and not missing:
        return Check(name="devfreq", state="ok", evidence=seen)
    names = ", ".join(f"{_role(d)} = {int(number(d, 'max_hz') or 0)}" for d in left)
    remedy = f"clocks = {{ {names} }} in devices.toml, with power to set them" if left else ""
    return Check(name="devfreq", state="warn", evidence=seen, remedy=remedy)


def heat(said: Probe, device: DeviceSpec) -> Check:
    """How warm the board is, and how near to being throttled."""
    zones = [z for z in _now(said, "thermal_zones") if number(z, "temperature_mc") is not None]
    if not zones:
        return Check(name="heat", state="unknown", evidence="the kernel shows no thermal zone")
    hottest = max(zones, key=lambda zone: number(zone, "temperature_mc") or 0)
    heat_mc, trip = number(hottest, "temperature_mc") or 0, number(hottest, "passive_trip_mc")
    evidence = f"{text(hottest, 'type', 60)} is at {heat_mc / 1e3:g} °C"
    evidence += f", throttled from {trip / 1e3:g} °C" if trip else ", no trip point is told"
    limit = device.max_temperature_c
    if limit is not None:
        evidence += f", rounds start below {limit:g} °C"
    if (trip and heat_mc >= trip) or (limit is not None and heat_mc / 1e3 > limit):
        remedy = "let it cool, or give it a heat sink or a fan"
        return Check(name="heat", state="fail", evidence=evidence, remedy=remedy)
    if trip and heat_mc >= trip - NEAR_TRIP_MC:
        remedy = "lower clocks that can be held, or better cooling"
        return Check(name="heat", state="warn", evidence=evidence, remedy=remedy)
    return Check(name="heat", state="ok", evidence=evidence)


def cooling(said: Probe, device: DeviceSpec) -> Check:
    """Whether the kernel holds clocks down, and whether heat is why."""
    devices = _now(said, "cooling_devices")
    if not devices:
        return Check(name="cooling", state="unknown", evidence="the kernel shows no cooling device")
    acting = [d for d in devices if (number(d, "state") or 0) > 0]
    # a fan that turns cools, and slows nothing down
    slowing = [d for d in acting if not re.search("fan", text(d, "type"), re.IGNORECASE)]
    seen = ", ".join(f"{text(d, 'type', 60)} in state {number(d, 'state'):g}" for d in acting)
    if not slowing:
        evidence = f"{len(devices)} cooling devices, none holds a clock down"
        return Check(
            name="cooling", state="ok", evidence=f"{evidence}; {seen}" if seen else evidence
        )
    if heat(said, device).state == "ok":
        return Check(
            name="cooling",
            state="fail",
            evidence=f"{seen} although no zone is warm: the throttling is stuck",
            remedy="restart the board; if it comes back, look at its power supply",
        )
    remedy = "let it cool, or give it a heat sink or a fan"
    return Check(name="cooling", state="fail", evidence=seen, remedy=remedy)


def _how_to_fix_clocks(
    moving: list[dict[str, object]], said: Probe, device: DeviceSpec, user: str
) -> str:
    clocks = ", ".join(f"{text(p, 'name', 30)} = {_sustainable(p, said)}" for p in moving)
    wish = f"clocks = {{ {clocks} }}"
    if number(said, "user_id") == 0:
        return f'in devices.toml: {wish} and power = "direct"'
    return f'in devices.toml: {wish} and power = "sudo"; {_how_to_install(user)}'


def _how_to_install(user: str) -> str:
    try:
        line = sudoers_line(user)
    except UsageError:
        line = sudoers_line("user") + " (with the name of the login)"
    return (
        f"on the board, as root: install the helper of docs/boards.md as {HELPER} (mode 0755) and "
        f"write '{line}' to /etc/sudoers.d/hilnas"
    )


def _sustainable(policy: dict[str, object], said: Probe) -> int:
    """One listed clock below the top, which is easier to hold; the top where nothing is listed."""
    top = int(number(policy, "hardware_max_khz") or number(policy, "max_khz") or 0)
    for choice in items(said, "choices"):
        if choice.get("name") == policy.get("name"):
            below = [khz for khz in whole_numbers(choice.get("available_khz")) if khz < top]
            return max(below, default=top)
    return top


def _fixed(clock: dict[str, object], low: str, high: str) -> bool:
    same = number(clock, low) is not None and number(clock, low) == number(clock, high)
    return same or clock.get("governor") in FIXED_GOVERNORS


def _role(device: dict[str, object]) -> str:
    name = text(device, "device") or text(device, "name")
    return next((role for role in ("npu", "gpu", "dmc") if name.endswith(role)), name)


def _cores(policy: dict[str, object]) -> set[int]:
    listed = text(policy, "cores").replace(" ", ",")
    return core_list(listed) if _CORES.fullmatch(listed) else set()


def _allowed(said: Probe) -> set[int]:
    return set(whole_numbers(said.get("allowed_cores")))


def _now(said: Probe, name: str) -> list[dict[str, object]]:
    now = said.get("now")
    return items(now, name) if isinstance(now, dict) else []


def _mhz(clock: float | None, per_mhz: float = 1e3) -> str:
    return "?" if clock is None else f"{clock / per_mhz:g}"
