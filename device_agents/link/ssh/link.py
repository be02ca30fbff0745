"""The bytes under an SSH connection: a socket that is told to notice a dead peer.

Our own sockets have TCP_NODELAY (paramiko never sets it: 1 MB/s and 48 ms a command without),
keep-alive and TCP_USER_TIMEOUT. :class:`Link` adds what a socket does not do: a write that makes no
progress fails. paramiko repeats such a write for ever.
"""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any

import paramiko

from latency_tables.errors import UnreachableError

if TYPE_CHECKING:
    from device_agents.link.ssh.config import Target


class Link:
    """A socket, or a channel through a jump host, whose writes fail after ``patience_s``."""

    def __init__(self, sock: Any, patience_s: float) -> None:
        self._sock, self._patience_s = sock, patience_s
        self._stuck_since: float | None = None

    def send(self, data: bytes) -> int:
        """Write some of ``data``. Raises TimeoutError, ConnectionError when stuck for too long."""
        try:
            count: int = self._sock.send(data)
        except TimeoutError:
            now = time.monotonic()
            if self._stuck_since is None:
                self._stuck_since = now
            if now - self._stuck_since > self._patience_s:
                raise ConnectionAbortedError("the peer takes no data") from None
            raise
        self._stuck_since = None
        return count

    def writable(self, timeout_s: float) -> bool:
        """Whether there is room for a write within ``timeout_s``; channels always say yes."""
        if not isinstance(self._sock, socket.socket):
            return True
        try:
            return bool(select.select([], [self._sock], [], max(0.0, timeout_s))[1])
        except (OSError, ValueError):
            return True  # it is closed: the write says so

    def recv(self, size: int) -> bytes:
        """Read some bytes."""
        data: bytes = self._sock.recv(size)
        return data

    def settimeout(self, timeout_s: float | None) -> None:
        """Limit each read and write."""
        self._sock.settimeout(timeout_s)

    def getpeername(self) -> Any:
        """Who is at the other end."""
        return self._sock.getpeername()

    def close(self) -> None:
        """Close; wakes who reads. A channel whose way is gone cannot say goodbye."""
        if isinstance(self._sock, socket.socket):
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._sock.close()

    @property
    def _closed(self) -> bool:  # paramiko looks at it
        return bool(getattr(self._sock, "_closed", False) or getattr(self._sock, "closed", False))


def dial(target: Target, deadline_s: float) -> socket.socket:
    """A TCP connection to ``target`` that fails within about ``deadline_s``.

    Raises UnreachableError.
    """
    timeout_s = target.connect_timeout_s or deadline_s
    try:
        sock = socket.create_connection((target.hostname, target.port), timeout_s)
    except socket.gaierror as error:
        raise UnreachableError(
            f"the name {target.hostname!r} of {target} cannot be resolved: {error.strerror}",
            hint="check the address in the inventory, or HostName in ~/.ssh/config",
        ) from None
    except TimeoutError:
        raise UnreachableError(
            f"{target} does not answer within {timeout_s:g} s",
            hint="check that the board is on and on this network",
        ) from None
    except OSError as error:
        raise UnreachableError(
            f"{target} cannot be reached: {error.strerror or error}",
            hint="check that its SSH server runs and listens on that port",
        ) from None
    notice_death(sock, deadline_s)
    return sock


def notice_death(sock: socket.socket, deadline_s: float) -> None:
    """Make the kernel give up after about ``deadline_s`` without a sign of life."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", max(1, round(deadline_s / 2))),
        ("TCP_KEEPINTVL", max(1, round(deadline_s / 6))),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", max(1000, round(deadline_s * 1000))),
    ):
        if hasattr(socket, name):  # not every system has them all
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def start_proxy(command: str) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Run the user's ProxyCommand with one end of a socket pair as its stdin and stdout.

    Raises UnreachableError.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            # the configuration that asks for it is the user's own: see config.py
            process = subprocess.Popen(
                f"exec {command}",
                shell=True,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise UnreachableError(f"ProxyCommand cannot be run: {error.strerror}") from None
    return ours, process
