"""One session with a device: connect, lease, check the agent, send files, run rounds.

A lost link is mended a bounded number of times; whoever calls repeats the round that was lost.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from device_agents.board.frames import PROTOCOL_VERSION
from device_agents.client import AgentClient, Event, clean_text
from device_agents.transport import Transport
from device_agents.zipapp import agent_archive
from latency_tables.errors import DeviceError, LeasedError, LinkLostError, ProtocolError

Sleep = Callable[[float], None]
T = TypeVar("T")

CONNECT_S = 30.0
PROBE_S = 90.0
LEASE_POLL_S = 0.25


class Session:
    """An agent that answers and holds the lease of its device.

    ``lease_wait_s`` is how long to wait for another holder. ``archive`` is the agent to run, by
    default the shipped one.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        owner: str = "",
        lease_wait_s: float = 20.0,
        archive: bytes | None = None,
        silence_s: float = 15.0,
        sleep: Sleep = time.sleep,
    ) -> None:
        self.transport = transport
        self.owner = owner or f"hilnas process {os.getpid()}"
        self.lease_wait_s, self.silence_s, self._sleep = lease_wait_s, silence_s, sleep
        self.archive = agent_archive() if archive is None else archive
        self.agent_sha256 = ""
        self.boot_id = ""
        self.leftovers: tuple[str, ...] = ()
        self._client: AgentClient | None = None

    def __enter__(self) -> Session:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """Whether an agent was started and not closed."""
        return self._client is not None

    def open(self) -> None:
        """Start the agent and take the lease.

        Raises UnreachableError, LeasedError after ``lease_wait_s``, LinkLostError, ProtocolError.
        """
        self.close()
        self.transport.open()
        self.agent_sha256 = self.transport.put(self.archive)
        deadline = time.monotonic() + self.lease_wait_s
        while True:
            client = AgentClient(self.transport.run(self.agent_sha256), silence_s=self.silence_s)
            try:
                hello = client.request("hello", {"owner": self.owner}, timeout_s=CONNECT_S)
                self._check(hello)
            except LeasedError:
                client.close()
                if time.monotonic() >= deadline:
                    raise
                self._sleep(LEASE_POLL_S)
            except BaseException:
                client.close()
                raise
            else:
                self._client = client
                return

    def close(self) -> None:
        """End the agent, which frees the lease; may be called twice."""
        if self._client is not None:
            self._client.close()
            self._client = None
            self.transport.close()

    def put(self, source: bytes | Path) -> str:
        """Make a file present on the device; gives its name there."""
        return self.transport.put(source)

    def probe(self, runtimes: Sequence[str]) -> dict[str, Any]:
        """Ask what the board is. Raises DeviceError."""
        return self.request("probe", {"runtimes": list(runtimes)}, timeout_s=PROBE_S)

    def request(
        self,
        operation: str,
        parameters: Mapping[str, Any],
        *,
        timeout_s: float,
        on_event: Event | None = None,
    ) -> dict[str, Any]:
        """One request. After a LinkLostError or a ProtocolError the session is closed."""
        if self._client is None:
            raise LinkLostError("the session with the agent is not open")
        try:
            if on_event is None:
                return self._client.request(operation, parameters, timeout_s=timeout_s)
            return self._client.request(
                operation, parameters, timeout_s=timeout_s, on_event=on_event
            )
        except (LinkLostError, ProtocolError, KeyboardInterrupt):
            self.close()
            raise

    def _check(self, hello: dict[str, Any]) -> None:
        if hello.get("protocol_version") != PROTOCOL_VERSION:
            raise ProtocolError(f"the agent speaks protocol {hello.get('protocol_version')!r}")
        if hello.get("agent_sha256") != self.agent_sha256:
            raise ProtocolError("the agent that answers is not the one that was sent")
        self.boot_id = clean_text(hello.get("boot_id", ""), 64)
        leftovers = hello.get("leftovers")
        self.leftovers = tuple(
            clean_text(item, 200) for item in (leftovers if isinstance(leftovers, list) else ())
        )[:20]


def with_retries(
    action: Callable[[], T],
    *,
    attempts: int,
    on_retry: Callable[[DeviceError], None],
    sleep: Sleep = time.sleep,
) -> T:
    """Do ``action``, again after a retryable DeviceError, with growing pauses.

    Raises what the last attempt raised.
    """
    for attempt in range(attempts):
        try:
            return action()
        except DeviceError as error:
            if not error.retryable or isinstance(error, LeasedError) or attempt == attempts - 1:
                raise
            on_retry(error)
            sleep(0.5 * 2**attempt)
    raise AssertionError("attempts is at least 1")
