"""The transport to this very machine: a subprocess and a folder.

It is exclusive: what the host computes disturbs what the agent times. :class:`MachineLock` is the
lock that both take; code that computes holds it through ``DeviceMeasurer.exclusive()``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import selectors
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from device_agents.board.frames import MAX_FRAME_BYTES
from device_agents.link.transport import Completed
from latency_tables.errors import LinkLostError, ProtocolError, UnreachableError
from latency_tables.files import replacing, sha256_bytes, sha256_file

STDERR_KEPT = 64 * 1024
STDERR_SHOWN = 4000
LINGER_S = 2.0
LINES_KEPT = 1000
"""Lines that may wait to be received; an agent that says more waits, too."""


class LocalTransport:
    """Runs the agent as a subprocess of this process, below ``workdir``.

    >>> import tempfile
    >>> transport = LocalTransport(Path(tempfile.mkdtemp()))
    >>> transport.open()
    >>> transport.get(transport.put(b"model"), max_bytes=100)
    b'model'
    """

    exclusive = True

    def __init__(
        self, workdir: Path, *, python: str = sys.executable, arguments: Sequence[str] = ()
    ) -> None:
        self._folder, self.python, self.arguments = workdir, python, tuple(arguments)

    @property
    def workdir(self) -> str:
        """The work folder, absolute."""
        return str(self._folder.absolute())

    def open(self) -> None:
        """Make the work folder. Raises UnreachableError where that is impossible."""
        try:
            for folder in (self._folder, self._folder / "blobs"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UnreachableError(
                f"the work folder {self._folder} cannot be made: {error.strerror}",
                hint="set XDG_CACHE_HOME to a folder that can be written",
            ) from None
        if shutil.which(self.python) is None:
            raise UnreachableError(f"there is no Python at {self.python}")

    def put(self, source: bytes | Path) -> str:
        """Copy content to ``blobs/<sha256>`` unless it is there; give the name."""
        name = sha256_bytes(source) if isinstance(source, bytes) else sha256_file(source)
        target = self._blob(name)
        if target.exists():
            os.utime(target)  # the agent removes what was unused for longest
            return name
        with replacing(target) as partial:
            if isinstance(source, bytes):
                partial.write_bytes(source)
            else:
                shutil.copyfile(source, partial)
            if sha256_file(partial) != name:
                raise UnreachableError(f"{target} was damaged while it was written")
        return name

    def put_all(self, sources: Sequence[bytes | Path]) -> list[str]:
        """Copy each; there are no round trips to save."""
        return [self.put(source) for source in sources]

    def execute(
        self, command: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 30.0
    ) -> Completed:
        """Run a program. Raises LinkLostError where it takes too long, UnreachableError."""
        try:
            done = subprocess.run(
                list(command), input=stdin, capture_output=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise LinkLostError(f"{command[0]} did not end within {timeout_s:g} s") from None
        except OSError as error:
            raise UnreachableError(f"{command[0]} cannot be run: {error.strerror}") from None
        stderr = done.stderr.decode("utf-8", "replace")[-STDERR_SHOWN:]
        return Completed(status=done.returncode, stdout=done.stdout, stderr=stderr)

    def get(self, blob: str, max_bytes: int) -> bytes:
        """Read a blob. Raises ProtocolError where it is missing or too large."""
        try:
            with self._blob(blob).open("rb") as stream:
                data = stream.read(max_bytes + 1)
        except OSError as error:
            raise ProtocolError(f"blob {blob[:12]} cannot be read: {error.strerror}") from None
        if len(data) > max_bytes:
            raise ProtocolError(f"blob {blob[:12]} has more than the allowed {max_bytes} bytes")
        return data

    def run(self, agent: str, arguments: Sequence[str] = ()) -> ProcessChannel:
        """Start the agent. Raises UnreachableError."""
        command = [self.python, "-u", str(self._blob(agent)), "--workdir", self.workdir]
        try:
            return ProcessChannel([*command, *self.arguments, *arguments])
        except OSError as error:
            raise UnreachableError(f"the agent cannot be started: {error.strerror}") from None

    def close(self) -> None:
        """Nothing stays open between runs."""

    def _blob(self, name: str) -> Path:
        if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
            raise ProtocolError(f"{name[:80]!r} is not the name of a blob")
        return self._folder / "blobs" / name


class ProcessChannel:
    """Pipes to a local process; two threads drain them, so neither side can block the other."""

    def __init__(self, command: Sequence[str]) -> None:
        environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the host; the agent ends by its stdin
        )
        self._lines: queue.Queue[bytes] = queue.Queue(LINES_KEPT)
        self._closing = threading.Event()
        self._stderr = b""
        self._threads = [
            threading.Thread(target=target, daemon=True)
            for target in (self._drain_stdout, self._drain_stderr)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """Process id of the agent."""
        return self._process.pid

    def send(self, data: bytes, timeout_s: float) -> None:
        """Write all of it or raise LinkLostError; never waits longer than ``timeout_s``."""
        stream = self._process.stdin
        if stream is None or stream.closed:
            raise LinkLostError("the agent's stdin is closed")
        os.set_blocking(stream.fileno(), False)
        deadline = time.monotonic() + timeout_s
        left = memoryview(data)
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_WRITE)
            while left:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise LinkLostError(f"the agent reads nothing for {timeout_s:g} s")
                try:
                    left = left[os.write(stream.fileno(), left) :]
                except BlockingIOError:
                    continue
                except OSError:
                    raise LinkLostError(f"the agent is gone; {self.complaint()}") from None

    def receive(self, timeout_s: float) -> bytes | None:
        """One line, ``b""`` at the end, None when the time is over."""
        try:
            line = self._lines.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None
        if not line:
            self._keep(line)  # the end stays the end
        return line

    def complaint(self) -> str:
        """How the process ended and the end of its stderr."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)
        self._threads[1].join(0.5)
        status = self._process.returncode
        end = "it still runs" if status is None else f"it ended with status {status}"
        text = self._stderr.decode("utf-8", "replace").strip()[-600:]
        return f"{end}; it said: {text}" if text else end

    def kill(self, within_s: float | None = None) -> None:
        """Close stdin, which ends the agent and its children; then insist."""
        process = self._process
        self._closing.set()
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        try:
            process.wait(LINGER_S if within_s is None else within_s / 2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for thread in self._threads:
            thread.join(1.0)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()

    def _drain_stdout(self) -> None:
        stream = self._process.stdout
        assert stream is not None  # opened as a pipe above
        pending = b""
        with contextlib.suppress(OSError, ValueError):
            while data := os.read(stream.fileno(), 1 << 16):
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self._keep(line + b"\n")
                if len(pending) > MAX_FRAME_BYTES:
                    self._keep(pending)  # the client refuses it for its length
                    break
        if pending and len(pending) <= MAX_FRAME_BYTES:
            self._keep(pending)
        self._keep(b"")

    def _keep(self, line: bytes) -> None:
        """Queue a line once there is room, unless nobody will receive it any more."""
        while not self._closing.is_set():
            with contextlib.suppress(queue.Full):
                self._lines.put(line, timeout=0.2)
                return

    def _drain_stderr(self) -> None:
        stream = self._process.stderr
        assert stream is not None  # opened as a pipe above
        with contextlib.suppress(OSError, ValueError):
            while data := os.read(stream.fileno(), 1 << 16):
                self._stderr = (self._stderr + data)[-STDERR_KEPT:]


class MachineLock:
    """A lock between processes and threads of one machine, reentrant within a thread.

    >>> import tempfile
    >>> lock = MachineLock(Path(tempfile.mkdtemp()) / "compute.lock")
    >>> with lock, lock:
    ...     lock.held
    True
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._thread_lock = threading.RLock()
        self._depth = 0
        self._handle = -1

    @property
    def held(self) -> bool:
        """Whether this object holds the lock, in any thread."""
        return self._depth > 0

    def __enter__(self) -> MachineLock:
        self._thread_lock.acquire()
        if self._depth == 0:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._handle, fcntl.LOCK_EX)
        self._depth += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            os.close(self._handle)
        self._thread_lock.release()


@contextlib.contextmanager
def unlocked() -> Iterator[None]:
    """The lock of a device that does not share the host's cores: none."""
    yield
