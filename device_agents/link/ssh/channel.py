"""A process at the far end of an SSH channel: two threads drain it, every wait has an end."""

from __future__ import annotations

import contextlib
import re
import shlex
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import paramiko

from device_agents.board.frames import MAX_FRAME_BYTES
from device_agents.link.ssh.connection import Connection
from latency_tables.errors import LinkLostError

STDERR_KEPT = 64 * 1024
UNREAD_MAX = 32 * 1024 * 1024
CHUNK = 1 << 16
LINGER_S = 2.0
KILL_S = 3.0

_PID = re.compile(rb"^hilnas-pid:(\d+)\n", re.MULTILINE)

# Tells which process to end should it not end by itself, and where its output begins (login shells
# greet), then becomes the program.
_RUN = 'echo "hilnas-pid:$$" >&2; echo hilnas-start; exec "$@"'
STARTED = b"hilnas-start\n"

# children first; not every server gives a program a process group of its own
_KILL = (
    'k() { for s in /proc/[0-9]*/stat; do l=; read -r l 2>/dev/null <"$s"; r=${l##*) }; r=${r#* }; '
    '[ "${r%% *}" = "$1" ] && { p=${s#/proc/}; k "${p%/stat}"; }; done; kill -9 "$1"; }; k "$1"'
)


def command_line(words: Sequence[str]) -> str:
    """The command for the login shell that becomes the program ``words``; see _RUN."""
    return "exec " + shlex.join(["sh", "-c", _RUN, "sh", *words])


class SshChannel:
    """A running process, started over ``connection``: its stdin, its lines and how it ended."""

    def __init__(self, connection: Connection, words: Sequence[str]) -> None:
        self._connection = connection
        self._channel = connection.open_channel()
        self._ready = threading.Condition()
        self._lines: deque[bytes] = deque()
        self._unread = 0
        self._ended = self._closing = False
        self._stderr = b""
        self._pid = 0
        try:
            with connection.bounded("starting a program"):
                self._channel.exec_command(command_line(words))
        except LinkLostError:
            connection.finish(self._channel)
            raise
        self._threads = [
            threading.Thread(target=target, daemon=True)
            for target in (self._drain_stdout, self._drain_stderr)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def ended(self) -> bool:
        """Whether the process is known to have ended."""
        found: bool = self._channel.status_event.is_set()
        return found

    def send(self, data: bytes, timeout_s: float) -> None:
        """Write all of it or raise LinkLostError; never waits longer than ``timeout_s``."""
        if self.ended:  # though the channel may still take data
            target = self._connection.target
            raise LinkLostError(f"the process on {target} is gone; {self.complaint()}")
        write(self._connection, self._channel, data, timeout_s, self.complaint)

    def receive(self, timeout_s: float) -> bytes | None:
        """One line, ``b""`` at the end, None when the time is over."""
        with self._ready:
            self._ready.wait_for(lambda: self._lines or self._ended, max(0.0, timeout_s))
            if self._lines:
                line = self._lines.popleft()
                self._unread -= len(line)
                self._ready.notify_all()
                return line
            return b"" if self._ended else None

    def complaint(self) -> str:
        """How the process ended and the end of its stderr."""
        ended = self._channel.status_event.wait(0.5)
        self._threads[1].join(0.5)
        status = self._channel.exit_status if ended else -1
        if status >= 0:
            end = f"it ended with status {status}"
        elif not self._connection.alive:
            end = "the connection is gone"
        else:
            end = "a signal ended it" if self._channel.closed else "it still runs"
        text = self._stderr.decode("utf-8", "replace").strip()[-600:]
        return f"{end}; it said: {text}" if text else end

    def kill(self, within_s: float | None = None) -> None:
        """Close stdin, which ends the agent and its children; then insist.

        A board that has not answered after ``within_s`` is asked for nothing more.
        """
        step_s = None if within_s is None else within_s / 3
        ended = self._channel.status_event
        with contextlib.suppress(paramiko.SSHException, OSError, EOFError, LinkLostError):
            if self._connection.alive and not self._channel.closed:
                with self._connection.bounded("ending a program", step_s):
                    self._channel.shutdown_write()
                if not ended.wait(LINGER_S if step_s is None else step_s) and self._pid:
                    kill_process(self._connection, self._pid, step_s)
        if within_s is not None and not ended.is_set():
            self._connection.close()  # whatever else is closed on a dead link would wait
        self._close()

    def _close(self) -> None:
        with self._ready:
            self._closing = True
            self._ready.notify_all()
        self._connection.finish(self._channel)
        for thread in self._threads:
            thread.join(1.0)

    def _drain_stdout(self) -> None:
        pending = bytearray()
        started = False
        for data in chunks(self._channel, self._channel.recv, lambda: self._closing):
            start = len(pending)  # no newline before it
            pending += data
            end = pending.rfind(b"\n", start) + 1
            if end:
                for line in bytes(pending[: end - 1]).split(b"\n"):
                    if started:
                        self._add(line + b"\n")
                    started = started or (line + b"\n").endswith(STARTED)
                del pending[:end]
            if len(pending) > MAX_FRAME_BYTES:
                break  # the client refuses it for its length
        if pending and started:
            self._add(bytes(pending))
        with self._ready:
            self._ended = True
            self._ready.notify_all()

    def _add(self, line: bytes) -> None:
        with self._ready:
            # who floods us is not read any further, and so the channel's window holds it back
            self._ready.wait_for(lambda: self._unread < UNREAD_MAX or self._closing)
            self._lines.append(line)
            self._unread += len(line)
            self._ready.notify_all()

    def _drain_stderr(self) -> None:
        for data in chunks(self._channel, self._channel.recv_stderr, lambda: self._closing):
            self._stderr = (self._stderr + data)[-STDERR_KEPT:]
            self._pid, self._stderr = taken_pid(self._pid, self._stderr)


def chunks(
    channel: paramiko.Channel, read: Callable[[int], bytes], closing: Callable[[], bool]
) -> Iterator[bytes]:
    """What arrives on one stream of ``channel`` until its end."""
    while True:
        try:
            data = read(CHUNK)
        except TimeoutError:
            if closing():
                return
            continue
        except (OSError, EOFError, paramiko.SSHException):
            return
        if not data:
            return
        yield data


def write(
    connection: Connection,
    channel: paramiko.Channel,
    data: bytes,
    timeout_s: float,
    complaint: Callable[[], str],
) -> None:
    """Write all of ``data``. Raises LinkLostError, also when ``timeout_s`` is over."""
    deadline = time.monotonic() + timeout_s
    left = memoryview(data)
    while left:
        patience = deadline - time.monotonic()
        if patience <= 0 or not connection.alive or not connection.writable(patience):
            reason = "reads nothing" if connection.alive else "is gone"
            raise LinkLostError(f"{connection.target} {reason} (waited {timeout_s:g} s)")
        try:
            channel.settimeout(patience)
            count = channel.send(bytes(left[:CHUNK]))
        except TimeoutError:
            continue
        except (OSError, EOFError, paramiko.SSHException):
            count = 0
        if count == 0:
            raise LinkLostError(f"the process on {connection.target} is gone; {complaint()}")
        left = left[count:]


def taken_pid(pid: int, stderr: bytes) -> tuple[int, bytes]:
    """Take the line that tells the process id out of ``stderr``, if it is there and not known.

    >>> taken_pid(0, b"hilnas-pid:42\\noops")
    (42, b'oops')
    """
    found = None if pid else _PID.search(stderr[:CHUNK])
    if found is None or len(found[1]) > 9:
        return pid, stderr
    return int(found[1]), stderr[: found.start()] + stderr[found.end() :]


def kill_process(connection: Connection, pid: int, within_s: float | None = None) -> None:
    """End a process on the board that we started, and its children.

    A board that takes longer than ``within_s`` for a step is given up: whoever waits for us has
    waited long enough. Raises LinkLostError.
    """
    within_s = min(connection.deadline_s, KILL_S) if within_s is None else within_s
    channel = connection.open_channel(within_s)
    try:
        with connection.bounded("ending a program", within_s):
            channel.exec_command(command_line(["sh", "-c", _KILL, "sh", str(pid)]))
        channel.status_event.wait(within_s)
    finally:
        connection.finish(channel)
