"""The agent's parent process: one JSON line in, one or more out. Standard library only.

The main thread does what is asked, one request at a time (the death signal of a child follows the
thread that started it, so that thread must live). A reader thread answers ``ping`` at once and
ends everything when stdin does: a dropped link must not leave a board busy.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import platform
import queue
import shutil
import signal
import sys
import threading
from typing import Any, Callable, Dict, List, Optional

from device_agents.board.frames import (
    MAX_FRAME_BYTES,
    PROTOCOL_VERSION,
    FrameError,
    decode,
    encode,
    failure,
)
from device_agents.board.lease import Lease, Leased
from device_agents.board.rounds import Round, RoundFailed, child_task
from device_agents.board.supervise import Supervisor
from device_agents.board.system import Tree, boot_id, identify, snapshot
from device_agents.board.workdir import leftovers, make, trim

HEARTBEAT_S = 2.0
QUOTA_BYTES = 1 << 30

Json = Dict[str, Any]


class Agent:
    """Serves one host over one pair of pipes."""

    def __init__(self, protocol: Any, archive: str, workdir: str, tree: Tree) -> None:
        self.protocol, self.archive, self.workdir, self.tree = protocol, archive, workdir, tree
        self.supervisor = Supervisor(archive, workdir, tree)
        self.lease = Lease(os.path.join(workdir, "lease"))
        self.requests: queue.Queue[Optional[Json]] = queue.Queue()
        self.busy_with: Any = None
        self.allowed_cores = sorted(os.sched_getaffinity(0))
        self._writing = threading.Lock()
        self.operations: Dict[str, Callable[[Json], Json]] = {
            "hello": self.hello,
            "probe": self.probe,
            "measure": self.measure,
            "peak_memory": self.peak_memory,
        }

    def serve(self) -> int:
        """Answer requests until ``bye`` or the end of stdin."""
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()
        while True:
            request = self.requests.get()
            if request is None:
                return 0
            self.busy_with = request.get("id")
            self._answer(request)
            self.busy_with = None

    def _answer(self, request: Json) -> None:
        identity, name = request.get("id"), str(request.get("op"))
        operation = self.operations.get(name)
        try:
            if operation is None:
                raise FrameError("operation {!r} does not exist".format(name[:60]))
            result = operation(request)
            self.send({"v": PROTOCOL_VERSION, "id": identity, "ok": True, "result": result})
        except Leased as error:
            frame = failure(identity, "LEASED", "the board is leased")
            frame["error"]["holder"] = error.holder
            self.send(frame)
        except RoundFailed as error:
            self.send(failure(identity, error.code, str(error)))
        except FrameError as error:
            self.send(failure(identity, "PROTOCOL", str(error), "host"))
        except (KeyError, TypeError, ValueError) as error:
            message = "request {!r}: {}: {}".format(name[:60], type(error).__name__, error)
            self.send(failure(identity, "PROTOCOL", message, "host"))
        except OSError as error:
            code = "DISK_FULL" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "DEVICE"
            self.send(failure(identity, code, "{}: {}".format(name[:60], error)))

    def send(self, frame: Json) -> None:
        """Write one frame whole, from whichever thread."""
        line = memoryview(encode(frame))
        with self._writing:
            while line:  # an unbuffered pipe may take a part
                line = line[self.protocol.write(line) :]

    def event(self, name: str, data: Json) -> None:
        """Tell the host something before the answer."""
        self.send({"v": PROTOCOL_VERSION, "id": self.busy_with, "event": name, "data": data})

    def _read(self) -> None:
        while True:
            try:
                line = sys.stdin.buffer.readline(MAX_FRAME_BYTES + 1)
                if not line:
                    self.end()
                request = decode(line)
                if request.get("op") == "ping":
                    pong = {"v": PROTOCOL_VERSION, "id": request.get("id"), "ok": True}
                    self.send(dict(pong, result={}))
                elif request.get("op") == "bye":
                    if self.busy_with is not None:
                        self.end()
                    self.requests.put(None)
                else:
                    self.requests.put(request)
            except FrameError as error:
                self.send(failure(None, "PROTOCOL", str(error), "host"))
                self.end()
            except OSError:
                self.end()

    def _beat(self) -> None:
        pause = threading.Event()
        while not pause.wait(HEARTBEAT_S):
            if self.busy_with is not None:
                try:
                    self.event("heartbeat", {})
                except OSError:
                    self.end()

    def end(self) -> None:
        """Kill the child and leave at once; the kernel frees the lease."""
        self.supervisor.kill()
        shutil.rmtree(os.path.join(self.workdir, "run"), ignore_errors=True)
        os._exit(0)

    # ---- operations -------------------------------------------------------------------------

    def hello(self, request: Json) -> Json:
        """Take the lease and say who answers."""
        lease = self.lease.take(str(request.get("owner", "")), boot_id(self.tree))
        old = leftovers(self.workdir, self.archive)
        make(self.workdir)
        trim(self.workdir, QUOTA_BYTES, keep=self.archive)
        with open(self.archive, "rb") as stream:
            sha = hashlib.sha256(stream.read()).hexdigest()
        return {
            "protocol_version": PROTOCOL_VERSION,
            "agent_sha256": sha,
            "boot_id": boot_id(self.tree),
            "python": platform.python_version(),
            "lease": lease,
            "leftovers": old,
        }

    def probe(self, request: Json) -> Json:
        """Describe the board; runtimes are imported in a child."""
        found: Json = {}
        names = [str(name) for name in request.get("runtimes", ["onnxruntime"])]
        ending = self.supervisor.run(
            {"kind": "runtimes", "names": names},
            lambda event, data: found.update(data),
            start_timeout_s=60,
            step_timeout_s=60,
        )
        runtimes = found.get("runtimes", [])
        problem = "" if ending.clean else ending.message
        return dict(
            identify(self.tree),
            allowed_cores=self.allowed_cores,
            runtimes=runtimes,
            runtimes_problem=problem,
            now=snapshot(self.tree),
        )

    def measure(self, request: Json) -> Json:
        """One round of a batch; each net is told as an event, evidence in the answer."""
        self._check_cores(request["cores"])
        return Round(self.supervisor, request, self.event).run()

    def peak_memory(self, request: Json) -> Json:
        """Peak resident memory of one net in a child of its own."""
        self._check_cores(request["cores"])
        found: Json = {}
        ending = self.supervisor.run(
            child_task(request, "memory", request["nets"][:1]),
            lambda event, data: found.update(data) if event == "done" else None,
            start_timeout_s=request["start_timeout_s"],
            step_timeout_s=request["net_timeout_s"],
            memory_limit_bytes=request.get("memory_limit_bytes") or 0,
        )
        if ending.fatal:
            raise RoundFailed(ending.fatal["code"], ending.fatal["message"])
        if not ending.clean:
            error = {"code": ending.code, "message": "it " + ending.message, "blames": "candidate"}
            return {"error": error}
        return found

    def _check_cores(self, cores: List[int]) -> None:
        """Refuse cores that do not exist here and move this process off the timed ones."""
        if not cores:
            raise ValueError("no cores given")
        present = set(range(os.cpu_count() or 1))
        if not set(cores) <= present:
            raise ValueError("cores {}, the board has {}".format(cores, sorted(present)))
        spare = os.sched_getaffinity(0) - set(cores)
        if spare:
            os.sched_setaffinity(0, spare)


def main(protocol: Any, argv: List[str]) -> int:
    """Serve until the host says bye or vanishes."""
    parser = argparse.ArgumentParser(prog="agent")
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--root", default="/", help="root of the /proc and /sys tree to read")
    options = parser.parse_args(argv)
    make(options.workdir)
    archive = os.path.abspath(sys.argv[0])
    agent = Agent(protocol, archive, os.path.abspath(options.workdir), Tree(options.root))
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: agent.end())
    return agent.serve()
