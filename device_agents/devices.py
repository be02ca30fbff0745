"""Which devices there are, and how networks run on them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from latency_tables.errors import UsageError

Power = Literal["observe", "direct", "sudo"]

CLUSTERS = ("big", "mid", "little")


@dataclass(frozen=True, slots=True, kw_only=True)
class SshAddress:
    """Where a board listens; ``host`` may be an alias of the user's ssh configuration.

    What is None comes from that configuration (``config``, by default ``~/.ssh/config``).
    ``known_hosts`` are files of trusted host keys beside the user's own; the first one takes keys
    that ``hilnas devices trust`` adds. No secrets: keys stay in their files and in the agent.
    """

    host: str
    port: int | None = None
    user: str | None = None
    key: Path | None = None
    config: Path | None = None
    known_hosts: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """A device and the settings that belong to every latency taken on it.

    ``transport`` is "local" (this machine) or "ssh" (then ``ssh`` says where). ``pin`` names a
    cluster of equal cores ("big", "mid", "little"), ``cores`` lists cores; both empty: the last
    ``threads`` cores that the agent may use (interrupts mostly arrive on the first one).
    ``spinning`` None: only for more than one thread. ``reference`` names the size of the reference
    network (:mod:`device_agents.measuring.reference`). ``provider`` "": the runtime's default;
    ``runtime_options`` are those of docs/runtimes.md.
    ``workdir`` is a folder on the device, None: below its cache folder. ``clocks`` are wished
    clocks, by cpufreq policy in kHz or by devfreq device in Hz; ``power`` says whether they may be
    set: "observe" never, "direct" as root, "sudo" by the helper of docs/boards.md.
    ``max_temperature_c`` is the heat above which no round starts. ``python`` is the interpreter
    that runs the agent. A device that is silent for ``deadline_s`` is lost.

    >>> DeviceSpec(name="local").threads
    1
    """

    name: str
    transport: str = "local"
    ssh: SshAddress | None = None
    tags: tuple[str, ...] = ()
    threads: int = 1
    pin: str = ""
    cores: tuple[int, ...] = ()
    runtime: str = "onnxruntime"
    provider: str = ""
    runtime_options: Mapping[str, Any] = field(default_factory=dict)
    optimization: str = "all"
    spinning: bool | None = None
    reference: str = "tiny"
    workdir: Path | None = None
    memory_limit_bytes: int | None = None
    clocks: Mapping[str, int] = field(default_factory=dict)
    power: Power = "observe"
    max_temperature_c: float | None = None
    python: str = "python3"
    deadline_s: float = 10.0

    def __post_init__(self) -> None:
        if (self.transport == "ssh") != (self.ssh is not None):
            raise UsageError(f"device {self.name!r}: an ssh device needs an address, no other does")
        if self.pin and (self.cores or self.pin not in CLUSTERS):
            raise UsageError(
                f"device {self.name!r}: pin {self.pin!r} with cores {self.cores}; allowed: a list "
                f"of cores, or one of {', '.join(CLUSTERS)}"
            )
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


def load_device(name: str) -> DeviceSpec:
    """A built-in device by name; boards are in :class:`device_agents.inventory.Inventory`.

    Raises UsageError naming those that exist.

    >>> load_device("local").transport
    'local'
    """
    if name not in BUILT_IN:
        known = ", ".join(sorted(BUILT_IN))
        raise UsageError(f"device {name!r} does not exist; there are: {known}")
    return BUILT_IN[name]


def default_workdir() -> Path:
    """``$XDG_CACHE_HOME/hilnas/agent``, by default below ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "hilnas" / "agent"
