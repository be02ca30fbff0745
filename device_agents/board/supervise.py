"""Watch one child process: forward its frames, keep deadlines and a memory limit, say how it ended.

The memory limit is a watch on the resident set and not ``RLIMIT_AS``: runtimes reserve far more
address space than they use.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from typing import Any, Callable, Dict, Optional

from device_agents.board.frames import MAX_FRAME_BYTES, FrameError, decode, encode
from device_agents.board.system import Tree, policies, resident_bytes

POLL_S = 0.2
STDERR_KEPT = 4000

Json = Dict[str, Any]


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
    """Starts children one at a time; :meth:`kill` may be called from another thread."""

    def __init__(self, archive: str, workdir: str, tree: Tree) -> None:
        self.archive, self.workdir, self.tree = archive, workdir, tree
        self._process: Optional[subprocess.Popen[bytes]] = None

    def kill(self) -> None:
        """Kill the running child and whatever it started."""
        process = self._process
        if process is not None and process.poll() is None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except (OSError, ProcessLookupError):
                process.kill()

    def run(
        self,
        task: Json,
        on_event: Callable[[str, Json], None],
        *,
        start_timeout_s: float,
        step_timeout_s: float,
        memory_limit_bytes: int = 0,
    ) -> Ending:
        """Run ``task`` in a fresh child. Never raises for what the child does."""
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
        before_s = _children_cpu_s()
        watch = _Watch(process, on_event, self.tree)
        try:
            watch.send(dict(task, v=1, parent_pid=os.getpid(), workdir=self.workdir))
            watch.loop(self.kill, start_timeout_s, step_timeout_s, memory_limit_bytes)
        finally:
            self.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._process = None
        watch.ending.cpu_s = _children_cpu_s() - before_s
        return watch.conclude(process.returncode)


class _Watch:
    def __init__(self, process: Any, on_event: Callable[[str, Json], None], tree: Tree) -> None:
        self.process, self.on_event, self.tree = process, on_event, tree
        self.ending = Ending()
        self.stderr = b""
        self.killed_for = ""
        self.done = False
        self._line = b""

    def send(self, task: Json) -> None:
        try:
            self.process.stdin.write(encode(task))
            self.process.stdin.close()
        except OSError:
            pass  # it died at once; its exit status tells why

    def loop(
        self, kill: Callable[[], None], start_s: float, step_s: float, memory_limit: int
    ) -> None:
        """Read until both pipes end; kill on a deadline, too much memory or a broken frame."""
        deadline = time.monotonic() + start_s
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            selector.register(self.process.stderr, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select(POLL_S):
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
                self._sample_clocks()
                if time.monotonic() > deadline:
                    self.killed_for = "RUN_TIMEOUT"
                elif memory_limit and resident_bytes(self.process.pid) > memory_limit:
                    self.killed_for = "OOM"

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

    def conclude(self, status: int) -> Ending:
        ending = self.ending
        tail = self.stderr.decode("utf-8", "replace").strip()[-600:]
        if self.killed_for == "RUN_TIMEOUT":
            ending.code, ending.message = "RUN_TIMEOUT", "gave no result in time and was killed"
        elif self.killed_for == "OOM":
            ending.code, ending.message = "OOM", "went over the memory limit and was killed"
        elif self.killed_for == "GARBAGE":
            ending.code, ending.message = "RUN_CRASHED", "wrote something that is no frame"
        elif self.done or ending.fatal:
            ending.clean = True
        elif status == -signal.SIGKILL:
            ending.code, ending.message = "OOM", "was killed by the system (SIGKILL: memory)"
        elif status < 0:
            ending.code = "RUN_CRASHED"
            ending.message = "died of {}".format(signal.Signals(-status).name)
        else:
            ending.code, ending.message = "RUN_CRASHED", "exited with status {}".format(status)
        if ending.code and tail:
            ending.message += "; it said: " + tail
        return ending


def _children_cpu_s() -> float:
    times = os.times()
    return times.children_user + times.children_system
