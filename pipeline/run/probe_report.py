"""A probe as people read it: one line per subject; what the board does not show is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def render_probe(name: str, found: Mapping[str, Any], console: Console) -> None:
    """Print a probe; a board's texts are hostile and escaped."""
    console.print(f"[bold]{escape(name)}[/bold]")
    table = Table(box=None, show_header=False, pad_edge=False)
    for subject, lines in probe_rows(found):
        for index, line in enumerate(lines):
            table.add_row("" if index else subject, escape(line))
    console.print(table)


def probe_rows(found: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Subjects and their lines, without empty ones.

    >>> probe_rows({"soc": "Board", "machine": "aarch64", "memory_total_bytes": 2**32})
    [('board', ['Board, aarch64']), ('memory', ['4.0 GiB'])]
    """
    now = found.get("now") or {}
    rows = [
        ("board", [_joined(found, "soc", "machine")]),
        ("compatible", [", ".join(map(str, found.get("compatible") or []))]),
        ("system", [_joined(found, "os", "kernel", "libc")]),
        ("python", [_text(found, "python")]),
        ("cores", _each(found.get("clusters"), _cluster)),
        ("clocks", _each(found.get("policies"), _policy)),
        ("devfreq", _each(found.get("devfreq"), _devfreq)),
        ("memory", [_gib(found.get("memory_total_bytes"))]),
        ("disk", [_gib(found.get("disk_free_bytes"), " free")]),
        ("heat", _each(now.get("thermal_zones"), _zone)),
        ("cooling", _each(now.get("cooling_devices"), _cooling)),
        ("runtimes", _each(found.get("runtimes"), _runtime)),
    ]
    cleaned = [(subject, [line for line in lines if line]) for subject, lines in rows]
    return [(subject, lines) for subject, lines in cleaned if lines]


def _text(found: Mapping[str, Any], key: str) -> str:
    value = found.get(key)
    return "" if value is None else str(value)


def _joined(found: Mapping[str, Any], *keys: str) -> str:
    return ", ".join(filter(None, (_text(found, key) for key in keys)))


def _each(items: Any, render: Any) -> list[str]:
    if not isinstance(items, Sequence) or isinstance(items, str):
        return []
    return [render(item) for item in items if isinstance(item, Mapping)]


def _gib(value: Any, after: str = "") -> str:
    return f"{value / 2**30:.1f} GiB{after}" if isinstance(value, int) else ""


def _mhz(value: Any) -> str:
    return f"{value / 1e3:.0f} MHz" if isinstance(value, int) else "?"


def _cluster(item: Mapping[str, Any]) -> str:
    cores = ", ".join(map(str, item.get("cores") or []))
    part = f", part {item['part']}" if item.get("part") else ""
    top = f", up to {_mhz(item['max_khz'])}" if item.get("max_khz") else ""
    return f"{item.get('name')}: {cores}{part}{top}"


def _policy(item: Mapping[str, Any]) -> str:
    return (
        f"{item.get('name')} (cores {item.get('cores')}): {_mhz(item.get('cur_khz'))} of "
        f"{_mhz(item.get('min_khz'))} to {_mhz(item.get('max_khz'))}, {item.get('governor')}"
    )


def _devfreq(item: Mapping[str, Any]) -> str:
    hz = item.get("cur_hz")
    clock = f"{hz / 1e6:.0f} MHz" if isinstance(hz, int) else "?"
    return f"{item.get('name')}: {clock}, {item.get('governor')}"


def _zone(item: Mapping[str, Any]) -> str:
    heat, trip = item.get("temperature_mc"), item.get("passive_trip_mc")
    limit = f", throttles at {trip / 1e3:g} °C" if isinstance(trip, int) else ""
    return f"{item.get('type')}: {heat / 1e3:g} °C{limit}" if isinstance(heat, int) else ""


def _cooling(item: Mapping[str, Any]) -> str:
    return f"{item.get('type')} ({item.get('name')}): state {item.get('state')}"


def _runtime(item: Mapping[str, Any]) -> str:
    if item.get("broken"):
        return f"{item.get('name')}: broken, {str(item['broken']).strip().splitlines()[-1]}"
    providers = ", ".join(map(str, item.get("providers") or [item.get("provider")]))
    return f"{item.get('name')} {item.get('version')}: {providers}"
