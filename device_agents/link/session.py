"""One session with a device: connect, lease, check the agent, send files, run rounds.

A lost link is mended a bounded number of times; whoever calls repeats the round that was lost.
An open session that is not asked for anything pings in the background: it keeps the lease, and an
agent that hears nothing from its host ends itself.
"""

from __future__ import annotations

import os
import pwd
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from device_agents.board.frames import PROTOCOL_VERSION
from device_agents.link.client import AgentClient, Event, clean_text
from device_agents.link.transport import Transport
from device_agents.link.zipapp import agent_archive
from latency_tables.errors import (
    DeviceError,
    LeasedError,
    LinkLostError,
    ProtocolError,
    UnreachableError,
)

Sleep = Callable[[float], None]
T = TypeVar("T")

CONNECT_S = 30.0
PROBE_S = 90.0
LEASE_POLL_S = 0.25
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 15.0
HOST_SILENCE_S = 30.0
"""An agent that hears nothing for so long ends itself and its children."""


def default_user() -> str:
    """Who this is to others on the board, as ``user@host``."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"


class Session:
    """An agent that answers and holds the lease of its device.

    ``owner`` and ``user`` say to others who holds it; a reservation of either does not keep this
    session out. ``lease_wait_s`` is how long to wait for another holder; with ``take`` false the
    lease is left alone. A device that shows no sign of life for ``deadline_s`` is lost, an agent
    whose host shows none for ``host_silence_s`` ends itself. ``archive`` is the agent to run, by
    default the shipped one. ``silence_s`` is an older name of ``deadline_s``.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        owner: str = "",
        user: str | None = None,
        take: bool = True,
        lease_wait_s: float = 20.0,
        archive: bytes | None = None,
        deadline_s: float = 10.0,
        host_silence_s: float = HOST_SILENCE_S,
        silence_s: float | None = None,
        sleep: Sleep = time.sleep,
    ) -> None:
        self.transport = transport
        self.owner = owner or f"hilnas process {os.getpid()}"
        self.user = default_user() if user is None else user
        self.take, self.lease_wait_s, self._sleep = take, lease_wait_s, sleep
        self.deadline_s = deadline_s if silence_s is None else silence_s
        self.host_silence_s = host_silence_s
        self.archive = agent_archive() if archive is None else archive
        self.agent_sha256 = ""
        self.boot_id = ""
        self.lease_token = ""
        """Names this holding of the lease; what is measured under it can be told apart."""
        self.leftovers: tuple[str, ...] = ()
        """Processes of earlier sessions that still run on the device."""
        self.hello: dict[str, Any] = {}
        """What the agent said when it started; untrusted but for what has an attribute here."""
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
        client = AgentClient(self.transport.run(self.agent_sha256), deadline_s=self.deadline_s)
        try:
            self._check(self._take(client))
        except BaseException:
            client.close()
            raise
        client.keep_alive()
        self._client = client

    def _take(self, client: AgentClient) -> dict[str, Any]:
        asked = {
            "owner": self.owner,
            "user": self.user,
            "take": self.take,
            "host_silence_s": self.host_silence_s,
        }
        deadline = time.monotonic() + self.lease_wait_s
        while True:
            try:
                return client.request("hello", asked, timeout_s=CONNECT_S)
            except LeasedError:
                if time.monotonic() >= deadline:
                    raise
                self._sleep(LEASE_POLL_S)

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
        """One request. After a lost link or lease, or a ProtocolError, the session is closed."""
        if self._client is None:
            raise LinkLostError("the session with the agent is not open")
        try:
            if on_event is None:
                return self._client.request(operation, parameters, timeout_s=timeout_s)
            return self._client.request(
                operation, parameters, timeout_s=timeout_s, on_event=on_event
            )
        except (LinkLostError, LeasedError, ProtocolError, KeyboardInterrupt):
            self.close()
            raise

    def _check(self, hello: dict[str, Any]) -> None:
        if hello.get("protocol_version") != PROTOCOL_VERSION:
            raise ProtocolError(f"the agent speaks protocol {hello.get('protocol_version')!r}")
        if hello.get("agent_sha256") != self.agent_sha256:
            raise ProtocolError("the agent that answers is not the one that was sent")
        self.hello = hello
        self.boot_id = clean_text(hello.get("boot_id", ""), 64)
        lease = hello.get("lease")
        self.lease_token = clean_text(lease.get("token"), 60) if isinstance(lease, dict) else ""
        leftovers = hello.get("leftovers")
        self.leftovers = tuple(
            _leftover(item) for item in (leftovers if isinstance(leftovers, list) else ())[:20]
        )


def _leftover(item: Any) -> str:
    if not isinstance(item, dict):
        return clean_text(item, 200)
    return f"{clean_text(item.get('what'), 100)} (process {clean_text(item.get('pid'), 20)})"


def with_retries(
    action: Callable[[], T],
    *,
    attempts: int,
    on_retry: Callable[[DeviceError], None],
    sleep: Sleep = time.sleep,
    away_s: float = 0.0,
) -> T:
    """Do ``action``, again after a retryable DeviceError, with growing pauses.

    A device that cannot be reached at all is waited for, up to ``away_s`` in all, before that
    counts as an attempt: boards take a minute to boot. Raises what the last attempt raised.
    """
    failures, waited_s, pause_s = 0, 0.0, FIRST_PAUSE_S
    while True:
        try:
            return action()
        except DeviceError as error:
            if not error.retryable or isinstance(error, LeasedError):
                raise
            if not isinstance(error, UnreachableError) or waited_s >= away_s:
                failures += 1
            if failures >= attempts:
                raise
            on_retry(error)
            sleep(pause_s)
            waited_s += pause_s
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
