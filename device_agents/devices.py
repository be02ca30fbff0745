"""Which devices there are, and how networks run on them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from latency_tables.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """A device and the settings that belong to every latency taken on it.

    ``cores`` empty: the last ``threads`` cores that the agent may use (interrupts mostly arrive on
    the first one). ``spinning`` None: only for more than one thread. ``reference`` names the size
    of the reference network (:mod:`device_agents.reference`). ``workdir`` None: the cache folder.

    >>> DeviceSpec(name="local").threads
    1
    """

    name: str
    transport: str = "local"
    threads: int = 1
    cores: tuple[int, ...] = ()
    runtime: str = "onnxruntime"
    optimization: str = "all"
    spinning: bool | None = None
    reference: str = "tiny"
    workdir: Path | None = None
    memory_limit_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise UsageError(f"device {self.name!r}: {self.threads} threads, at least 1 is needed")
        if any(core < 0 for core in self.cores) or len(set(self.cores)) != len(self.cores):
            raise UsageError(f"device {self.name!r}: cores {self.cores} must differ and be >= 0")
        if self.cores and len(self.cores) < self.threads:
            raise UsageError(
                f"device {self.name!r}: {self.threads} threads do not fit on cores {self.cores}"
            )
        if self.optimization not in ("all", "extended", "basic", "disabled"):
            raise UsageError(
                f"device {self.name!r}: graph optimization {self.optimization!r}; allowed: "
                "all, extended, basic, disabled"
            )

    @property
    def spins(self) -> bool:
        """Whether idle runtime threads busy-wait."""
        return self.threads > 1 if self.spinning is None else self.spinning


BUILT_IN = {"local": DeviceSpec(name="local")}


def load_device(name: str, inventory: Mapping[str, DeviceSpec] | None = None) -> DeviceSpec:
    """Find a device by name, in ``inventory`` first. Raises UsageError naming those that exist.

    >>> load_device("local").transport
    'local'
    """
    known = {**BUILT_IN, **(inventory or {})}
    if name not in known:
        raise UsageError(f"device {name!r} does not exist; there are: {', '.join(sorted(known))}")
    return known[name]


def default_workdir() -> Path:
    """``$XDG_CACHE_HOME/hilnas/agent``, by default below ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "hilnas" / "agent"
