"""Watch one child process: forward its frames, keep deadlines and a memory limit, say how it ended.

The memory limit is a watch on the resident set and not ``RLIMIT_AS``: runtimes reserve far more
address space than they use. Without a limit in the request it is a share of what is available when
the child starts, so that a board without swap kills a greedy network and not its own services.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from typing import Any, Callable, Dict, Optional

from device_agents.board.descendants import kill_tree
from device_agents.board.frames import MAX_FRAME_BYTES, FrameError, decode, encode
from device_agents.board.system import Tree, policies, resident_bytes

POLL_S = 0.2
STDERR_KEPT = 4000
MEMORY_SHARE = 0.8
LINGER_S = 1.0
"""How long the pipes of a child that ended are read on: something it started may hold them."""

Json = Dict[str, Any]


class Stopped(Exception):
    """The work was stopped from outside: its end says nothing about any network."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Ending:
    """How a child ended: ``clean`` or with a ``code`` and a ``message``."""

    def __init__(self) -> None:
        self.clean = False
        self.code = ""
        self.message = ""
        self.running = False  # a visit was in progress
        self.running_name: Optional[str] = None  # the reference has no name
        self.fatal: Optional[Json] = None
        self.cpu_s = 0.0
        self.clock_khz: Dict[str, Any] = {}


class Supervisor:
    """Starts children one at a time; :meth:`kill` and :meth:`stop` work from any thread.

    ``owns_orphans`` says that this process adopts orphans and has no other children.
    """

    def __init__(
        self, archive: str, workdir: str, tree: Tree, *, owns_orphans: bool = False
    ) -> None:
        self.archive, self.workdir, self.tree = archive, workdir, tree
        self.owns_orphans = owns_orphans
        self.memory_limit_bytes = 0
        """The limit of the last child, 0 for none."""
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._stopped: Optional[Stopped] = None

    def kill(self) -> None:
        """Kill the running child and whatever it started."""
        process = self._process
        if process is not None:
            kill_tree(process.pid, orphans_too=self.owns_orphans)

    def stop(self, code: str, message: str) -> None:
        """End the running child; this and every later :meth:`run` raise Stopped."""
        self._stopped = Stopped(code, message)
        self.kill()

    def resume(self) -> None:
        """Allow children again after a stop."""
        self._stopped = None

    def run(
        self,
        task: Json,
        on_event: Callable[[str, Json], None],
        *,
        start_timeout_s: float,
        step_timeout_s: float,
        memory_limit_bytes: int = 0,
    ) -> Ending:
        """Run ``task`` in a fresh child. Raises nothing for what the child does, only Stopped."""
        self._check_stopped()
        limit = memory_limit_bytes or default_memory_limit()
        self.memory_limit_bytes = limit
        before_s, oom_kills = _children_cpu_s(), _oom_kills(self.tree)
        environment = dict(os.environ, ORT_DISABLE_TELEMETRY="1", PYTHONDONTWRITEBYTECODE="1")
        process = subprocess.Popen(
            [sys.executable, "-u", self.archive, "--child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        self._process = process
        watch = _Watch(process, on_event, self.tree)
        try:
            self._check_stopped()  # a stop between the check above and the start saw no process
            watch.begin(dict(task, v=1, parent_pid=os.getpid(), workdir=self.workdir))
            watch.loop(self.kill, start_timeout_s, step_timeout_s, limit)
        finally:
            self.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._process = None
        self._check_stopped()
        watch.ending.cpu_s = _children_cpu_s() - before_s
        now = _oom_kills(self.tree)
        meanwhile = None if now is None or oom_kills is None else now - oom_kills
        return watch.conclude(process.returncode, meanwhile, limit)

    def _check_stopped(self) -> None:
        if self._stopped is not None:
            raise self._stopped


class _Watch:
    def __init__(self, process: Any, on_event: Callable[[str, Json], None], tree: Tree) -> None:
        self.process, self.on_event, self.tree = process, on_event, tree
        self.ending = Ending()
        self.stderr = b""
        self.killed_for = ""
        self.done = False
        self._line = b""
        self._task = memoryview(b"")
        self._look_again = 0.0

    def begin(self, task: Json) -> None:
        self._task = memoryview(encode(task))
        os.set_blocking(self.process.stdin.fileno(), False)

    def loop(
        self, kill: Callable[[], None], start_s: float, step_s: float, memory_limit: int
    ) -> None:
        """Read until both pipes end; kill on a deadline, too much memory or a broken frame."""
        deadline = time.monotonic() + start_s
        ended_at = None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdin, selectors.EVENT_WRITE)
            readers = (self.process.stdout, self.process.stderr)
            for reader in readers:
                selector.register(reader, selectors.EVENT_READ)
            while any(key.fileobj in readers for key in selector.get_map().values()):
                for key, _ in selector.select(POLL_S):
                    if key.fileobj is self.process.stdin:
                        self._feed(selector)
                        continue
                    data = os.read(key.fd, 1 << 16)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is self.process.stderr:
                        self.stderr = (self.stderr + data)[-STDERR_KEPT:]
                    elif self._take(data):
                        deadline = time.monotonic() + step_s
                if self.killed_for:
                    kill()
                    return
                now = time.monotonic()
                if now >= self._look_again:
                    self._look_again = now + POLL_S
                    self._sample_clocks()
                    if ended_at is None and _has_ended(self.process.pid):
                        ended_at = now
                    if memory_limit and resident_bytes(self.process.pid) > memory_limit:
                        self.killed_for = "OOM"
                if ended_at is not None and now > ended_at + LINGER_S:
                    return  # what holds its pipes is killed by the caller
                if now > deadline:
                    self.killed_for = "RUN_TIMEOUT"

    def _feed(self, selector: Any) -> None:
        """Write what fits of the task; a child that died at once has a status that tells why."""
        try:
            written = os.write(self.process.stdin.fileno(), self._task)
        except BlockingIOError:
            return
        except OSError:
            written = len(self._task)
        self._task = self._task[written:]
        if not self._task:
            selector.unregister(self.process.stdin)
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def _take(self, data: bytes) -> bool:
        """Handle complete lines; whether there was one."""
        lines = (self._line + data).split(b"\n")
        self._line = lines.pop()
        if len(self._line) > MAX_FRAME_BYTES:
            self.killed_for = "GARBAGE"
        for line in lines:
            try:
                frame = decode(line + b"\n")
                self._event(str(frame["event"]), frame["data"])
            except (FrameError, KeyError, TypeError):
                self.killed_for = "GARBAGE"
                return False
        return bool(lines)

    def _event(self, event: str, data: Json) -> None:
        if event == "begin":
            self.ending.running, self.ending.running_name = True, data["name"]
            return
        if event in ("net", "reference"):
            self.ending.running, self.ending.running_name = False, None
        elif event == "fatal":
            self.ending.fatal = data
        elif event == "done":
            self.done = True
        self.on_event(event, data)

    def _sample_clocks(self) -> None:
        for policy in policies(self.tree):
            clock = policy["cur_khz"]
            if clock is not None:
                low, high = self.ending.clock_khz.get(policy["name"], (clock, clock))
                self.ending.clock_khz[policy["name"]] = (min(low, clock), max(high, clock))

    def conclude(self, status: int, oom_kills: Optional[int], limit: int) -> Ending:
        ending = self.ending
        tail = self.stderr.decode("utf-8", "replace").strip()[-600:]
        if self.killed_for == "RUN_TIMEOUT":
            ending.code, ending.message = "RUN_TIMEOUT", "gave no result in time and was killed"
        elif self.killed_for == "OOM":
            ending.code = "OOM"
            ending.message = "went over the memory limit of {} MiB and was killed".format(
                limit >> 20
            )
        elif self.killed_for == "GARBAGE":
            ending.code, ending.message = "RUN_CRASHED", "wrote something that is no frame"
        elif self.done or ending.fatal:
            ending.clean = True
        elif status == -signal.SIGKILL:
            ending.code, ending.message = "OOM", _who_killed(oom_kills)
        elif status < 0:
            ending.code, ending.message = "RUN_CRASHED", "died of {}".format(signal_name(-status))
        else:
            ending.code, ending.message = "RUN_CRASHED", "exited with status {}".format(status)
        if ending.code and tail:
            ending.message += "; it said: " + tail
        return ending


def default_memory_limit() -> int:
    """A share of the memory that is available now, in bytes; 0 where the kernel does not tell.

    Read from the real kernel, whatever tree the agent describes: the child is real, too.
    """
    found = re.search(r"^MemAvailable:\s*(\d+) kB", Tree("/").text("/proc/meminfo") or "", re.M)
    return int(int(found.group(1)) * 1024 * MEMORY_SHARE) if found else 0


def signal_name(number: int) -> str:
    """Name of a signal, also of one that Python has no name for.

    >>> signal_name(11), signal_name(40)
    ('SIGSEGV', 'signal 40')
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return "signal {}".format(number)


def _who_killed(oom_kills: Optional[int]) -> str:
    if oom_kills is None:
        return "was killed by the system (SIGKILL: memory)"
    if oom_kills > 0:
        return "was killed by the kernel, which had no memory left"
    return (
        "was killed (SIGKILL); the kernel counts no lack of memory, so a memory daemon or "
        "somebody did it"
    )


def _oom_kills(tree: Tree) -> Optional[int]:
    """How many processes the kernel killed for memory so far; None where it does not count."""
    found = re.search(r"^oom_kill (\d+)$", tree.text("/proc/vmstat") or "", re.M)
    return int(found.group(1)) if found else None


def _has_ended(pid: int) -> bool:
    """Whether a child of ours is a zombie; it is not reaped, so that its number stays taken."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except OSError:
        return True


def _children_cpu_s() -> float:
    times = os.times()
    return times.children_user + times.children_system
