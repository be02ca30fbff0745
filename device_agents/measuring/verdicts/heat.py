"""Signs in cooling devices, clock limits and temperatures that heat slowed the board."""

from __future__ import annotations

import re

from device_agents.measuring.verdicts.finding import Finding, Snapshot, paired, spent_ms

_SLOWS_NOTHING = re.compile(r"fan|lcd|backlight|tcc|wifi|wlan|charg|battery", re.IGNORECASE)
"""Cooling devices that cost no processor speed: a fan that turns is no throttling."""


def slows(device: Snapshot) -> bool:
    """Whether a cooling device cools by making processors slower.

    >>> slows({"type": "pwm-fan"}), slows({"type": "thermal-cpufreq-0"})
    (False, True)
    """
    return not _SLOWS_NOTHING.search(str(device.get("type") or ""))


def hottest(snapshot: Snapshot) -> tuple[float, str] | None:
    """Temperature in °C and type of the hottest zone; None where none can be read."""
    zones = [
        (zone["temperature_mc"] / 1e3, str(zone.get("type") or zone.get("name")))
        for zone in snapshot.get("thermal_zones") or []
        if isinstance(zone.get("temperature_mc"), int)
    ]
    return max(zones, default=None)


def throttling(before: Snapshot, after: Snapshot) -> list[Finding]:
    """One finding per cooling device that acted, limit that fell and zone at its trip point."""
    found = []
    for old, new in paired(before, after, "cooling_devices"):
        if not slows(new):
            continue
        state, name = new.get("state") or 0, f"{new.get('type')} ({new.get('name')})"
        moved = (new.get("transitions") or 0) - (old.get("transitions") or 0)
        cooling_ms = sum(ms for level, ms in spent_ms(old, new).items() if level != "0")
        if state > 0 or moved > 0:
            evidence = f"cooling device {name} is in state {state} after {moved} changes"
        elif cooling_ms > 0:
            evidence = f"cooling device {name} acted for {cooling_ms} ms"
        else:
            continue
        found.append(Finding(code="THROTTLED", evidence=evidence))
    for old, new in paired(before, after, "policies"):
        was, now = old.get("max_khz"), new.get("max_khz")
        if was and now and now < was:
            evidence = f"clock limit of {new.get('name')} fell from {was} to {now} kHz"
            found.append(Finding(code="THROTTLED", evidence=evidence))
    for _, new in paired(before, after, "thermal_zones"):
        heat, trip = new.get("temperature_mc"), new.get("passive_trip_mc")
        if heat and trip and heat >= trip:
            evidence = f"{new.get('type')} is at {heat / 1e3:g} °C, its limit is {trip / 1e3:g} °C"
            found.append(Finding(code="THROTTLED", evidence=evidence))
    return found
