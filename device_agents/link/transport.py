"""How the host reaches a board: a few verbs, and a channel to a running agent.

A transport moves bytes and starts one process. It knows nothing of frames or measuring, so a local
subprocess and a remote shell are interchangeable, and a test can put a fault between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """How a command on the device ended; ``stderr`` is for messages, cut to its end."""

    status: int
    stdout: bytes
    stderr: str


class Channel(Protocol):
    """A running process on the device: its stdin, stdout and stderr."""

    def send(self, data: bytes, timeout_s: float) -> None:
        """Write all of ``data`` to its stdin. Raises LinkLostError."""
        ...

    def receive(self, timeout_s: float) -> bytes | None:
        """One line of its stdout; ``b""`` after the end, None when ``timeout_s`` passed."""
        ...

    def complaint(self) -> str:
        """The last of what it wrote to stderr, and how it ended if it did."""
        ...

    def kill(self, within_s: float | None = None) -> None:
        """End it now; does not raise where it already ended.

        ``within_s`` bounds it where nothing is to be awaited of the device any more: the way to a
        device that does not answer until then is closed.
        """
        ...


class Transport(Protocol):
    """A way to a device."""

    exclusive: bool
    """Whether host and device are one machine, so that host work disturbs measurements."""

    @property
    def workdir(self) -> str:
        """Absolute path of the work folder on the device, known while it is open."""
        ...

    def open(self) -> None:
        """Connect. Raises UnreachableError."""
        ...

    def put(self, source: bytes | Path) -> str:
        """Make content present on the device; gives its SHA-256. Skipped where it is present."""
        ...

    def put_all(self, sources: Sequence[bytes | Path]) -> list[str]:
        """The same for many at once, with few round trips; names in the order of ``sources``."""
        ...

    def execute(
        self, command: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 30.0
    ) -> Completed:
        """Run a program to its end; its words reach it unchanged, whatever they hold.

        For setting a board up; measuring goes through the agent. Raises LinkLostError, also where
        it takes longer than ``timeout_s`` (it is killed then) or says more than 16 MiB.
        """
        ...

    def get(self, blob: str, max_bytes: int) -> bytes:
        """Content of a blob. Raises ProtocolError where it is missing or larger."""
        ...

    def run(self, agent: str, arguments: Sequence[str] = ()) -> Channel:
        """Start the agent, a blob that was put before, in the device's work folder."""
        ...

    def close(self) -> None:
        """Disconnect; may be called twice."""
        ...
