"""One answer of the doctor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from device_agents.link.client import clean_text

State = Literal["ok", "warn", "fail", "unknown"]
Probe = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was looked at, how it is, what was seen, and what to do where it is not ok.

    "fail" keeps the board from measuring, "warn" makes numbers worse or less sure, and "unknown"
    says that the board does not tell.
    """

    name: str
    state: State
    evidence: str
    remedy: str = ""

    def to_json(self) -> dict[str, str]:
        """A JSON-ready dictionary."""
        return asdict(self)


def items(said: Probe, name: str) -> list[dict[str, Any]]:
    """The objects of a list that a board sent; whatever else it holds is left out."""
    found = said.get(name)
    found = found[:256] if isinstance(found, list) else []
    return [item for item in found if isinstance(item, dict)]


def number(said: Probe, name: str) -> float | None:
    """A number that a board sent, or None."""
    value = said.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def text(said: Probe, name: str, limit: int = 200) -> str:
    """Text that a board sent, fit to print; '' where there is none."""
    value = said.get(name)
    return "" if value is None else clean_text(value, limit)


def mib(n_bytes: float) -> str:
    """Bytes for people.

    >>> mib(3 << 20), mib(5 << 30)
    ('3 MiB', '5.0 GiB')
    """
    large = n_bytes >= 1 << 30
    return f"{n_bytes / (1 << 30):.1f} GiB" if large else f"{n_bytes / (1 << 20):.0f} MiB"
