"""Compare two tables, two devices or two sessions: which networks moved, and why they may have.

Networks are paired by space and network, in equal settings where both sides have them. The ratio of
two latencies is theirs, its interval is the widest that both intervals allow, so "moved" is said
only where they do not overlap at all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from latency_tables.errors import TableError
from latency_tables.estimate import Estimate
from latency_tables.fields import parse_json
from latency_tables.gate_columns import ranks
from latency_tables.keys import setting_text
from latency_tables.pooling import pool
from latency_tables.ranking import kendall_tau
from latency_tables.records import Measurement
from latency_tables.sources import Contents, read
from latency_tables.store import Device
from latency_tables.verify import first_numbers

MAX_RANKED = 2000
"""Kendall's tau is quadratic; so many networks are enough for it."""

_PROVENANCE = ("profile", "agent_sha256", "tool_version", "reference", "spinning")
_STATE = ("policies", "devfreq", "thermal_zones", "cooling_devices", "load_average", "python")
_Pair = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of a comparison: usable records, their device, and a name for people."""

    name: str
    records: tuple[Measurement, ...]
    devices: tuple[Device, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """One network on both sides; ``ratio`` is B / A."""

    net_id: str
    space_id: str
    a_ms: float
    b_ms: float
    ratio: float
    low: float
    high: float

    @property
    def beyond_noise(self) -> bool:
        """Whether the intervals of the two latencies do not overlap."""
        return not self.low <= 1.0 <= self.high

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {**asdict(self), "beyond_noise": self.beyond_noise}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What :func:`compare_sides` found.

    ``median_ratio`` has a 90 % interval from order statistics. ``stragglers`` are networks that
    left the median ratio beyond noise: they moved by more or less than the others did.
    ``reasons`` names what differs besides the latencies, with both values.
    """

    a: str
    b: str
    n_common: int
    n_only_a: int
    n_only_b: int
    median_ratio: float | None
    median_low: float | None
    median_high: float | None
    kendall_tau: float | None
    spearman: float | None
    networks: tuple[Moved, ...] = ()
    stragglers: tuple[Moved, ...] = ()
    reasons: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def moved(self) -> tuple[Moved, ...]:
        """Networks that are faster or slower beyond noise, the farthest first."""
        return tuple(m for m in self.networks if m.beyond_noise)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; every common network is in it."""
        plain = {
            name: getattr(self, name)
            for name in self.__slots__
            if name not in ("networks", "stragglers")
        }
        return {
            **plain,
            "n_moved": len(self.moved),
            "n_stragglers": len(self.stragglers),
            "networks": [m.to_dict() for m in self.networks],
            "stragglers": [m.net_id for m in self.stragglers],
        }


def read_side(text: str, table: Path) -> Side:
    """Find what ``text`` names: FILE, FILE@NAME, or NAME in ``table``.

    NAME is a device, the beginning of its fingerprint (8 characters or more), or a session. Raises
    TableError naming what there is.
    """
    path, _, name = text.rpartition("@")
    if Path(text).is_file():
        path, name = text, ""
    elif not path or not Path(path).is_file():
        path, name = str(table), text
    contents = Contents()
    records, _ = first_numbers(read(Path(path), contents))
    chosen = [m for m in records if not name or _is_called(m, name)]
    if not chosen:
        known = sorted({m.device_name for m in records} | {m.run_id for m in records})
        raise TableError(
            f"{path} holds no latencies of a device or session {name!r}; "
            f"there are {', '.join(known[:12]) or 'none'}",
            hint="hilnas tables show, or name a file, or FILE@DEVICE",
        )
    fps = {m.device_fp for m in chosen}
    return Side(
        name=text,
        records=tuple(chosen),
        devices=tuple(d for d in contents.devices if d.device_fp in fps),
    )


def compare_sides(a: Side, b: Side) -> Difference:
    """Compare two sides. Raises TableError where one of them mixes devices or settings.

    >>> nothing = Side(name="a", records=())
    >>> compare_sides(nothing, nothing).n_common
    0
    """
    ours, theirs = _paired(a, b)
    common = [pair for pair in ours if pair in theirs]
    networks = [_moved(pair, ours[pair], theirs[pair]) for pair in common]
    ratios = np.sort([m.ratio for m in networks])
    low, middle, high = _median(ratios) if networks else (None, None, None)
    stragglers = [m for m in networks if middle is not None and not m.low <= middle <= m.high]
    tau, rho = _agreement(networks)
    networks.sort(key=lambda m: -abs(float(np.log(m.ratio))))
    return Difference(
        a=a.name,
        b=b.name,
        n_common=len(common),
        n_only_a=len(ours) - len(common),
        n_only_b=len(theirs) - len(common),
        median_ratio=middle,
        median_low=low,
        median_high=high,
        kendall_tau=tau,
        spearman=rho,
        networks=tuple(networks),
        stragglers=tuple(stragglers),
        reasons=reasons(a, b),
    )


def reasons(a: Side, b: Side) -> dict[str, list[Any]]:
    """What differs besides the latencies: name → values of A and of B."""
    first, second = _facts(a), _facts(b)
    return {
        name: [first.get(name), second.get(name)]
        for name in sorted(set(first) | set(second))
        if first.get(name) != second.get(name)
    }


def _is_called(m: Measurement, name: str) -> bool:
    fingerprint = len(name) >= 8 and m.device_fp.startswith(name)
    return name in (m.device_name, m.run_id) or fingerprint


def _setting(m: Measurement) -> str:
    return setting_text(runtime=m.runtime, threads=m.threads, cores=m.cores)


def _paired(a: Side, b: Side) -> tuple[dict[_Pair, Estimate], dict[_Pair, Estimate]]:
    """Pooled latencies by (space, network), in the settings that are compared."""
    settings = [{_setting(m) for m in side.records} for side in (a, b)]
    shared = settings[0] & settings[1]
    for side, own in zip((a, b), settings, strict=True):
        fps = {m.device_fp for m in side.records}
        if len(fps) > 1:
            raise TableError(
                f"{side.name} holds {len(fps)} devices: "
                f"{', '.join(sorted({m.device_name for m in side.records}))}",
                hint=f"name one, as in {side.name}@DEVICE",
            )
        if len(shared or own) > 1:
            raise TableError(
                f"{side.name} holds {len(own)} settings (runtime, threads, cores), "
                f"{len(shared)} of them on both sides; one can be compared",
                hint="name a session of one setting, as in FILE@SESSION",
            )
    return _pooled(a.records, shared), _pooled(b.records, shared)


def _pooled(records: Sequence[Measurement], settings: set[str]) -> dict[_Pair, Estimate]:
    groups: dict[_Pair, list[Measurement]] = defaultdict(list)
    for m in records:
        if not settings or _setting(m) in settings:
            groups[m.space_id, m.net_id].append(m)
    return {pair: pool(found) for pair, found in groups.items()}


def _moved(pair: _Pair, a: Estimate, b: Estimate) -> Moved:
    return Moved(
        space_id=pair[0],
        net_id=pair[1],
        a_ms=a.latency_ms,
        b_ms=b.latency_ms,
        ratio=b.latency_ms / a.latency_ms,
        low=b.low_ms / a.high_ms,
        high=b.high_ms / a.low_ms if a.low_ms > 0 else 1e300,
    )


def _median(ratios: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float, float]:
    """The median and a 90 % interval of it, from order statistics."""
    n = len(ratios)
    margin = 0.8225 * n**0.5  # 1.645 standard deviations of a binomial(n, ½)
    low, high = int(np.floor((n - 1) / 2 - margin)), int(np.ceil((n - 1) / 2 + margin))
    return float(ratios[max(0, low)]), float(np.median(ratios)), float(ratios[min(n - 1, high)])


def _agreement(networks: Sequence[Moved]) -> tuple[float | None, float | None]:
    if len(networks) < 2:
        return None, None
    a, b = (np.array([getattr(m, name) for m in networks]) for name in ("a_ms", "b_ms"))
    one, two = ranks(a) - ranks(a).mean(), ranks(b) - ranks(b).mean()
    scale = float(np.sqrt((one @ one) * (two @ two)))
    step = -(-len(networks) // MAX_RANKED)
    return kendall_tau(a[::step], b[::step]), float(one @ two) / scale if scale else 0.0


def _facts(side: Side) -> dict[str, Any]:
    """Everything that may explain a difference, as flat names."""
    facts: dict[str, Any] = {}
    for device in side.devices[:1]:
        identity, state = device.fingerprint.identity, device.fingerprint.state
        facts |= {"device": device.name}
        facts |= _flat("identity", identity)
        facts |= _flat("state", {name: state[name] for name in _STATE if name in state})
    settings = sorted({_setting(m) for m in side.records})
    if len(settings) == 1:
        facts |= _flat("setting", parse_json(settings[0]))
    for name in ("library", "driver", "api"):
        facts |= _values(f"runtime.{name}", (m.runtime.get(name) for m in side.records))
    for name in _PROVENANCE:
        facts |= _values(name, (m.provenance.get(name) for m in side.records))
    utc = sorted(str(m.provenance.get("utc", "")) for m in side.records)
    return facts | ({"measured": f"{utc[0]} to {utc[-1]}"} if utc else {})


def _values(name: str, values: Iterable[Any]) -> dict[str, Any]:
    found = sorted({str(value) for value in values if value is not None})
    return {name: ", ".join(found)[:200]} if found else {}


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    """Nested objects and lists as ``a.b.0.c`` → plain value."""
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, inner in items:
        flat |= _flat(f"{prefix}.{name}", inner)
    return flat
