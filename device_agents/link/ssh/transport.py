"""The transport to a board over SSH."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import paramiko

from device_agents.devices import SshAddress
from device_agents.link.client import clean_text
from device_agents.link.ssh.auth import Ask
from device_agents.link.ssh.channel import (
    STARTED,
    SshChannel,
    chunks,
    command_line,
    kill_process,
    taken_pid,
    write,
)
from device_agents.link.ssh.config import resolve
from device_agents.link.ssh.connection import Connection, connect
from device_agents.link.ssh.upload import Uploader
from device_agents.link.transport import Completed
from latency_tables.errors import LinkLostError, ProtocolError, UnreachableError, UploadError
from latency_tables.files import sha256_bytes

MAX_OUTPUT_BYTES = 16 << 20
STDERR_KEPT = 64 * 1024
STDERR_SHOWN = 4000
GREETING_BYTES = 1 << 16

# one line and no exclamation mark, for login shells of every kind; the folder is an argument
_WORKDIR = (
    "umask 077; w=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/hilnas/agent}; "
    'no() { echo; echo "hilnas-refused:$w $1"; exit 0; }; '
    'case $w in /*) ;; *) no "is not an absolute path";; esac; '
    '[ -L "$w" ] && no "is a symbolic link"; '
    'mkdir -p "$w/blobs" || no "cannot be made"; '
    '[ -O "$w" ] || no "belongs to somebody else"; '
    'm=$(ls -ld "$w"); case $m in drwx--[-S]---*) ;; *) no "may be entered by others ($m)";; esac; '
    'cd "$w" || no "cannot be entered"; echo; echo "hilnas-workdir:$(pwd -P)"'
)


class SshTransport:
    """Runs the agent on a board, over one connection that is open between open() and close().

    ``workdir`` None: ``$XDG_CACHE_HOME/hilnas/agent`` of the board's user. ``prompt`` asks for
    passphrases of key files; ``name`` is what the user calls the device. A board that is silent
    for ``deadline_s`` is lost.
    """

    exclusive = False

    def __init__(
        self,
        address: SshAddress,
        *,
        workdir: str | None = None,
        python: str = "python3",
        deadline_s: float = 10.0,
        prompt: Callable[[str], str] | None = None,
        name: str = "",
    ) -> None:
        self.address, self.python, self.deadline_s = address, python, deadline_s
        self.name = name or address.host
        self._wished, self._prompt = workdir, prompt
        self._workdir = ""
        self._connection: Connection | None = None
        self._uploader: Uploader | None = None
        self._channels: list[SshChannel] = []
        self._agents: set[str] = set()

    @property
    def workdir(self) -> str:
        """The work folder on the board, absolute. Raises LinkLostError before open()."""
        self._open_connection()
        return self._workdir

    def open(self) -> None:
        """Connect and make the work folder.

        Raises UnreachableError, HostKeyError, AuthError, UsageError.
        """
        self.close()
        prompt: Ask | None = self._prompt
        self._connection = connect(
            resolve(self.address), deadline_s=self.deadline_s, name=self.name, prompt=prompt
        )
        try:
            self._workdir = self._make_workdir()
        except LinkLostError as error:
            self.close()
            raise UnreachableError(error.message, hint=error.hint) from None
        except BaseException:
            self.close()
            raise

    def put(self, source: bytes | Path) -> str:
        """Make content present on the board; gives its SHA-256. Raises as put_all."""
        return self.put_all([source])[0]

    def put_all(self, sources: Sequence[bytes | Path]) -> list[str]:
        """Make many present in a few round trips; names in the order of ``sources``.

        Raises DeviceDiskFullError, UploadError, LinkLostError, BootstrapError without a Python.
        """
        if not sources:
            return []
        connection = self._open_connection()
        if self._uploader is None:
            self._uploader = Uploader(
                connection, workdir=self._workdir, python=self.python, name=self.name
            )
            self._uploader.keep |= self._agents
        try:
            return self._uploader.put_all(sources)
        except BaseException as error:
            if isinstance(error, LinkLostError) and not isinstance(error, UploadError):
                connection.close()  # nothing is to be awaited of a board that is silent
            # answers that are still on the way would be taken for those of the next call
            uploader, self._uploader = self._uploader, None
            uploader.close()
            raise

    def execute(
        self, command: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 30.0
    ) -> Completed:
        """Run a program to its end; its words reach it unchanged.

        Raises LinkLostError, also where it takes longer than ``timeout_s`` (it is killed then) or
        says more than 16 MiB.
        """
        return self._execute(command, stdin, timeout_s, MAX_OUTPUT_BYTES)

    def get(self, blob: str, max_bytes: int) -> bytes:
        """Content of a blob. Raises ProtocolError where it is missing, larger or damaged."""
        path = self._blob(blob)
        # at least 1 MB/s is expected of a link that is worth waiting for
        timeout_s = 3 * self.deadline_s + max_bytes / 1e6
        command = ["head", "-c", str(max_bytes + 1), path]
        done = self._execute(command, b"", timeout_s, max_bytes + 2)
        if done.status != 0:
            raise ProtocolError(f"blob {blob[:12]} cannot be read: {clean_text(done.stderr, 200)}")
        if len(done.stdout) > max_bytes:
            raise ProtocolError(f"blob {blob[:12]} has more than the allowed {max_bytes} bytes")
        if sha256_bytes(done.stdout) != blob:
            raise ProtocolError(f"blob {blob[:12]} is damaged on {self.name}")
        return done.stdout

    def run(self, agent: str, arguments: Sequence[str] = ()) -> SshChannel:
        """Start the agent in the work folder. Raises LinkLostError."""
        path, connection = self._blob(agent), self._open_connection()
        settings = ["ORT_DISABLE_TELEMETRY=1", "PYTHONDONTWRITEBYTECODE=1"]
        command = ["env", *settings, self.python, "-u", path, "--workdir", self._workdir]
        channel = SshChannel(connection, [*command, *arguments])
        self._channels.append(channel)
        self._agents.add(agent)
        if self._uploader is not None:
            self._uploader.keep.add(agent)
        return channel

    def close(self) -> None:
        """Disconnect; may be called twice."""
        uploader, self._uploader = self._uploader, None
        channels, self._channels = self._channels, []
        connection, self._connection = self._connection, None
        if uploader is not None:
            uploader.close()
        for channel in channels:
            channel.kill()
        if connection is not None:
            connection.close()

    def _open_connection(self) -> Connection:
        if self._connection is None:
            raise LinkLostError(f"the connection to {self.name} is not open")
        return self._connection

    def _blob(self, name: str) -> str:
        if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
            raise ProtocolError(f"{name[:80]!r} is not the name of a blob")
        return f"{self.workdir}/blobs/{name}"

    def _make_workdir(self) -> str:
        command = ["sh", "-c", _WORKDIR, "sh", self._wished or ""]
        done = self._execute(command, b"", 3 * self.deadline_s, 1 << 20)
        for line in done.stdout.decode("utf-8", "replace").splitlines():
            if line.startswith("hilnas-refused:"):
                raise UnreachableError(
                    f"the work folder on {self.name} is refused: "
                    + clean_text(line.partition(":")[2], 300),
                    hint="give the device a workdir that its user owns, with mode 0700",
                )
            if line.startswith("hilnas-workdir:/"):
                return line.partition(":")[2]
        said = clean_text(done.stderr or done.stdout.decode("utf-8", "replace"), 300)
        raise UnreachableError(
            f"{self.name} gives no shell to work with (status {done.status}): {said}"
        )

    def _execute(
        self, command: Sequence[str], stdin: bytes, timeout_s: float, max_bytes: int
    ) -> Completed:
        connection = self._open_connection()
        deadline = time.monotonic() + timeout_s
        channel = connection.open_channel()
        try:
            with connection.bounded("starting a program"):
                channel.exec_command(command_line(command))
            reading = _Reading(channel, max_bytes)
            try:
                if stdin:
                    write(connection, channel, stdin, timeout_s, lambda: "it ended early")
                channel.shutdown_write()
            except (LinkLostError, paramiko.SSHException, OSError, EOFError):
                # a program may end without reading its stdin: its status says more
                if not connection.alive or not channel.status_event.wait(self.deadline_s):
                    raise LinkLostError(f"{self.name} was lost while {command[0]} ran") from None
            return self._ending(connection, channel, reading, command[0], deadline, timeout_s)
        finally:
            connection.finish(channel)

    def _ending(
        self,
        connection: Connection,
        channel: paramiko.Channel,
        reading: _Reading,
        program: str,
        deadline: float,
        timeout_s: float,
    ) -> Completed:
        ended = reading.wait(deadline)
        if reading.too_much or not ended:
            if connection.alive and reading.pid:
                kill_process(connection, reading.pid)
            did = f"said more than {reading.max_bytes} bytes"
            if not reading.too_much:
                did = f"did not end within {timeout_s:g} s"
            raise LinkLostError(f"{program} on {self.name} {did}")
        if channel.exit_status < 0:
            how = "was killed" if connection.alive else "was cut off: the connection is gone"
            raise LinkLostError(f"{program} on {self.name} {how}")
        stderr = reading.stderr.decode("utf-8", "replace")[-STDERR_SHOWN:]
        return Completed(status=channel.exit_status, stdout=bytes(reading.stdout), stderr=stderr)


class _Reading:
    """Both output streams of a program, drained by two threads so that neither blocks it."""

    def __init__(self, channel: paramiko.Channel, max_bytes: int) -> None:
        self.channel, self.max_bytes = channel, max_bytes
        self.stdout = bytearray()
        self.stderr = b""
        self.pid = 0
        self.too_much = self._started = False
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._out, self._err)
        ]
        for thread in self._threads:
            thread.start()

    def wait(self, deadline: float) -> bool:
        """Whether everything ended before ``deadline``; True as well after too much output."""
        for thread in self._threads:
            while thread.is_alive() and not self.too_much:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                thread.join(min(left, 0.5))
        left = max(0.0, deadline - time.monotonic())
        return self.too_much or self.channel.status_event.wait(left)

    def _out(self) -> None:
        for data in chunks(self.channel, self.channel.recv, lambda: False):
            self.stdout += data
            if not self._started:
                start = self.stdout.find(STARTED) + len(STARTED)
                self._started = start >= len(STARTED)
                del self.stdout[: start if self._started else 0]
            if len(self.stdout) > self.max_bytes + (0 if self._started else GREETING_BYTES):
                self.too_much = True
                return

    def _err(self) -> None:
        for data in chunks(self.channel, self.channel.recv_stderr, lambda: False):
            self.stderr = (self.stderr + data)[-STDERR_KEPT:]
            self.pid, self.stderr = taken_pid(self.pid, self.stderr)
