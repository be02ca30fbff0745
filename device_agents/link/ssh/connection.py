"""One verified, logged-in SSH connection, through as many jump hosts as the way has.

Every host on the way presents a key that is verified before anything is sent to it. Nothing is
forwarded but the way itself: no agent, no X11, no ports.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import paramiko

from device_agents.link.client import clean_text
from device_agents.link.ssh.auth import Ask, log_in
from device_agents.link.ssh.config import Target
from device_agents.link.ssh.known_hosts import HostKey, keys_in, make_host_key, verify
from device_agents.link.ssh.link import Link, dial, start_proxy
from latency_tables.errors import HilnasError, LinkLostError, UnreachableError


class Closable(Protocol):
    """What can be closed."""

    def close(self) -> object:
        """Close it."""
        ...


class Connection:
    """An open way: the transport of its last host, and everything below it to close."""

    def __init__(self, target: Target, deadline_s: float) -> None:
        self.target, self.deadline_s = target, deadline_s
        self.transports: list[paramiko.Transport] = []
        self.links: list[Link] = []
        self.process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def transport(self) -> paramiko.Transport:
        """The transport of the host itself."""
        return self.transports[-1]

    @property
    def alive(self) -> bool:
        """Whether nothing is known to have ended it."""
        return bool(self.transports) and self.transport.is_active()

    def writable(self, timeout_s: float) -> bool:
        """Whether the first socket of the way takes data within ``timeout_s``."""
        return self.links[0].writable(timeout_s)

    @contextlib.contextmanager
    def bounded(self, what: str, timeout_s: float | None = None) -> Iterator[None]:
        """Break the connection when the body takes longer: some paramiko calls wait for ever.

        Raises LinkLostError in place of the body's paramiko errors.
        """
        limit = self.deadline_s if timeout_s is None else timeout_s
        fired = threading.Event()

        def fire() -> None:
            fired.set()
            self.close()

        timer = threading.Timer(limit, fire)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (paramiko.SSHException, OSError, EOFError) as error:
            why = f"no answer within {limit:g} s" if fired.is_set() else _reason(error)
            raise LinkLostError(f"{self.target} was lost during {what}: {why}") from None
        finally:
            timer.cancel()
            timer.join(limit)

    def open_channel(self, timeout_s: float | None = None) -> paramiko.Channel:
        """A new session channel. Raises LinkLostError."""
        timeout_s = self.deadline_s if timeout_s is None else timeout_s
        with self.bounded("opening a channel", timeout_s + 1):
            if not self.alive:
                raise paramiko.SSHException("the connection is closed")
            try:
                return self.transport.open_session(timeout=timeout_s)
            except paramiko.ChannelException:
                raise  # the server answers: it has too many of them open
            except paramiko.SSHException:
                self.close()  # it is silent, and whatever else is asked would wait as long
                raise

    def finish(self, thing: Closable) -> None:
        """Close a channel or what lives in one, whatever state the connection is in."""
        with contextlib.suppress(LinkLostError), self.bounded("closing a channel"):
            thing.close()

    def close(self) -> None:
        """Close everything, innermost first; leaves no thread, socket or process."""
        with self._lock:
            transports, self.transports = self.transports, []
            links, self.links = self.links, []
            process, self.process = self.process, None
        # the own socket goes first: what a dead peer no longer takes must not hold up the rest
        for link in links[:1]:
            link.close()
        for transport in reversed(transports):
            transport.packetizer.complete_handshake()  # else its timer outlives a failed one
            transport.close()
        for link in reversed(links):
            link.close()
        for transport in reversed(transports):
            if transport is not threading.current_thread() and transport.is_alive():
                transport.join(2.0)
        if process is not None:
            process.kill()
            process.wait()


def connect(
    target: Target,
    *,
    deadline_s: float,
    name: str = "",
    prompt: Ask | None = None,
    password: Ask | None = None,
) -> Connection:
    """Connect, verify and log in at every host of the way to ``target``.

    ``name`` is what the user calls the device; ``password`` is for the last host only, ``prompt``
    asks for passphrases of key files. Raises UnreachableError, HostKeyError, AuthError.
    """
    connection = Connection(target, deadline_s)
    try:
        for hop in (*target.jumps, target):
            _enter(connection, hop, kinds=None)
            last = hop is target
            verify(hop, _presented(connection, hop), name=(name or hop.alias) if last else "")
            log_in(connection.transport, hop, prompt=prompt, password=password if last else None)
    except BaseException:
        connection.close()
        raise
    return connection


def presented_key(
    target: Target, *, deadline_s: float, kinds: Sequence[str] | None = None
) -> HostKey:
    """The host key that ``target`` presents, of one of ``kinds`` if given; it is not verified.

    Raises UnreachableError; HostKeyError and AuthError only for jump hosts.
    """
    connection = Connection(target, deadline_s)
    try:
        for hop in target.jumps:
            _enter(connection, hop, kinds=None)
            verify(hop, _presented(connection, hop), name="")
            log_in(connection.transport, hop)
        _enter(connection, target, kinds=kinds)
        return _presented(connection, target)
    finally:
        connection.close()


def _enter(connection: Connection, hop: Target, *, kinds: Sequence[str] | None) -> None:
    """Exchange keys with the next host of the way."""
    deadline_s = connection.deadline_s
    sock: socket.socket | paramiko.Channel
    if connection.transports:
        sock = _through(connection, hop)
    elif hop.proxy_command:
        sock, connection.process = start_proxy(hop.proxy_command)
    else:
        sock = dial(hop, deadline_s)
    link = Link(sock, deadline_s)
    connection.links.append(link)
    transport = paramiko.Transport(link)  # type: ignore[arg-type]  # a socket by what it can do
    connection.transports.append(transport)
    transport.banner_timeout = transport.handshake_timeout = deadline_s
    transport.channel_timeout = transport.clear_to_send_timeout = deadline_s
    transport.auth_timeout = max(30.0, deadline_s)  # slow boards, and agents that ask their user
    _prefer(transport, hop, kinds)
    with _translated(hop, connection, lambda: transport.remote_version):
        transport.start_client(timeout=2 * deadline_s)
        if not transport.initial_kex_done:  # start_client does not say that its time is over
            raise UnreachableError(f"{hop} does not finish the key exchange")


def _through(connection: Connection, hop: Target) -> paramiko.Channel:
    before = connection.transport
    try:
        with connection.bounded(f"the way to {hop}", connection.deadline_s + 1):
            return before.open_channel(
                "direct-tcpip",
                (hop.hostname, hop.port),
                ("127.0.0.1", 0),
                timeout=connection.deadline_s,
            )
    except LinkLostError as error:
        raise UnreachableError(f"the jump host cannot reach {hop}: {error.message}") from None


def _prefer(transport: paramiko.Transport, hop: Target, kinds: Sequence[str] | None) -> None:
    """Ask for a host key of a kind that is known, or of ``kinds`` and nothing else."""
    options = transport.get_security_options()
    # paramiko before 4 and 5 still offers what rests on SHA-1, and DSA
    options.kex = tuple(name for name in options.kex if not name.endswith("-sha1"))
    options.key_types = tuple(n for n in options.key_types if n not in ("ssh-rsa", "ssh-dss"))
    wanted = kinds
    if wanted is None:
        wanted = [key.kind for key in keys_in(hop.known_hosts, hop.lookup_name)[0]]
    names = [
        name
        for kind in wanted
        for name in (("rsa-sha2-512", "rsa-sha2-256") if kind == "ssh-rsa" else (kind,))
        if name in options.key_types
    ]
    rest = [] if kinds is not None else [name for name in options.key_types if name not in names]
    options.key_types = tuple(dict.fromkeys([*names, *rest]))


def _presented(connection: Connection, hop: Target) -> HostKey:
    key = connection.transport.get_remote_server_key()
    return make_host_key(hop.lookup_name, key.get_name(), key.asbytes())


@contextlib.contextmanager
def _translated(hop: Target, connection: Connection, version: Callable[[], str]) -> Iterator[None]:
    started = time.monotonic()
    try:
        yield
    except HilnasError:
        raise
    except paramiko.ssh_exception.IncompatiblePeer as error:
        raise UnreachableError(
            f"{hop} ({clean_text(version(), 80)}) and this machine have no algorithm in common: "
            f"{clean_text(error, 200)}; servers of before 2014 offer only ones known as unsafe",
            hint="update the SSH server of the board (Dropbear 2018.76 or OpenSSH 6.5 and newer)",
        ) from None
    except (paramiko.SSHException, OSError, EOFError) as error:
        took = time.monotonic() - started
        what = "breaks the key exchange off" if version() else "does not answer like an SSH server"
        if connection.process is not None and connection.process.poll() not in (None, 0):
            what = f"is not reached: ProxyCommand ended with {connection.process.returncode}"
        raise UnreachableError(
            f"{hop} {what} (after {took:.1f} s): {_reason(error)}",
            hint="check the port, and that the board is not starting or out of connections",
        ) from None


def _reason(error: BaseException) -> str:
    return clean_text(str(error) or type(error).__name__, 200)
