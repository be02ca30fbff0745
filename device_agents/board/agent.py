"""The agent's parent process: one JSON line in, one or more out. Standard library only.

Four threads, because a board must neither stay busy for a host that is gone nor be given up by a
host that is there:

main      does what is asked, one request at a time (the death signal of a child follows the
          thread that started it, so that thread must live)
reader    answers ``ping`` at once, whatever the main thread does; ends everything when stdin does
beat      sends a heartbeat every 2 s while the main thread works; renews the lease, and stops the
          work when the lease was broken
watchdog  ends everything when the host says nothing for ``host_silence_s``: with the cable out no
          end of stdin ever comes. It never writes and takes no lock, so a full pipe cannot stop it

An idle host therefore pings, too (:mod:`device_agents.link.client` does): an agent lives exactly as
long as somebody speaks to it.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import os
import platform
import queue
import signal
import sys
import threading
import time
from typing import Any, Callable, Dict, List, NoReturn, Optional

from device_agents.board import extensions, housekeeping, workdir
from device_agents.board.alone import run_alone
from device_agents.board.clocks import restore
from device_agents.board.descendants import adopt_orphans
from device_agents.board.frames import (
    MAX_FRAME_BYTES,
    PROTOCOL_VERSION,
    FrameError,
    decode,
    encode,
    failure,
)
from device_agents.board.lease import Lease, LeaseChanged, Leased, LeaseLost, UnsafeFile
from device_agents.board.rounds import Round, RoundFailed
from device_agents.board.supervise import Stopped, Supervisor
from device_agents.board.system import Tree, boot_id, identify, snapshot

EXTENSIONS = ("clocks", "limits", "sensors", "profiling", "gate", "sustain", "inference")
"""Modules beside this one that add operations; see :mod:`device_agents.board.extensions`."""
READ_ONLY = ("snapshot", "clocks_journal")
"""Their operations that need no lease; all others disturb whoever measures."""

HEARTBEAT_S = 2.0
HOST_SILENCE_S = 120.0
"""Patience with a host that has not said in its ``hello`` how long it may be silent."""
END_S = 5.0
MAX_WAITING = 100
"""Requests that may wait; a host that sends more without reading answers is refused."""

Json = Dict[str, Any]


class Agent:
    """Serves one host over one pair of pipes."""

    def __init__(self, protocol: Any, archive: str, folder: str, tree: Tree) -> None:
        self.protocol, self.archive, self.workdir, self.tree = protocol, archive, folder, tree
        self.supervisor = Supervisor(archive, folder, tree, owns_orphans=adopt_orphans())
        self.lease = Lease(folder)
        self.requests: queue.Queue[Optional[Json]] = queue.Queue(MAX_WAITING)
        self.busy_with: Any = None
        self.allowed_cores = sorted(os.sched_getaffinity(0))
        self.host_silence_s = HOST_SILENCE_S
        self._heard_s = time.monotonic()
        self._writing = threading.Lock()
        self.operations: Dict[str, Callable[[Json], Json]] = {
            "hello": self.hello,
            "probe": self.probe,
            "measure": self._leased(self.measure),
            "peak_memory": self._leased(self.peak_memory),
            "lease_show": lambda request: self.lease.show(boot_id(self.tree)),
            "lease_break": self.lease_break,
            "reserve": self.reserve,
            "make_room": lambda request: housekeeping.make_room(folder, archive, request),
            "clean": self._leased(
                lambda request: housekeeping.clean(folder, archive, request["what"])
            ),
        }
        self.extensions = extensions.load(EXTENSIONS, self)
        for added in self.extensions.values():
            for name, operation in added.items():
                free = name in READ_ONLY
                self.operations.setdefault(name, operation if free else self._leased(operation))

    def serve(self) -> NoReturn:
        """Answer requests until ``bye`` or the end of stdin; ends the process."""
        for target in (self._read, self._beat, self._watch_host):
            threading.Thread(target=target, daemon=True).start()
        while True:
            request = self.requests.get()
            if request is None:
                self.end()
            self.busy_with = request.get("id")
            self.send(self._answer(request))
            self.busy_with = None

    def _answer(self, request: Json) -> Json:
        identity, name = request.get("id"), str(request.get("op"))[:60]
        operation = self.operations.get(name)
        try:
            if operation is None:
                raise FrameError("operation {!r} does not exist".format(name))
            frame = {
                "v": PROTOCOL_VERSION,
                "id": identity,
                "ok": True,
                "result": operation(request),
            }
            encode(frame)
            return frame
        except Leased as error:
            frame = failure(identity, "LEASED", "the board is leased")
            frame["error"]["holder"] = error.holder
            return frame
        except LeaseLost as error:
            return failure(identity, "LEASE_LOST", str(error))
        except LeaseChanged as error:
            return failure(identity, "LEASE_CHANGED", str(error), "host")
        except UnsafeFile as error:
            return failure(identity, "LEASE_FILE", str(error))
        except (RoundFailed, Stopped) as error:
            return failure(identity, error.code, str(error))
        except FrameError as error:
            return failure(identity, "PROTOCOL", str(error), "host")
        except (KeyError, TypeError, ValueError) as error:
            message = "request {!r}: {}: {}".format(name, type(error).__name__, error)
            return failure(identity, "PROTOCOL", message[:2000], "host")
        except OSError as error:
            code = "DISK_FULL" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "DEVICE"
            return failure(identity, code, "{}: {}".format(name, error))
        except Exception as error:  # a fault of ours is told and not a lost link
            message = "{!r} broke: {}: {}".format(name, type(error).__name__, error)
            return failure(identity, "DEVICE", message[:2000])

    def send(self, frame: Json) -> None:
        """Write one frame whole, from whichever thread; nobody to read it ends the agent."""
        line = memoryview(encode(frame))
        try:
            with self._writing:
                while line:  # an unbuffered pipe may take a part
                    line = line[self.protocol.write(line) :]
        except OSError:
            self.end()

    def event(self, name: str, data: Json) -> None:
        """Tell the host something before the answer."""
        self.send({"v": PROTOCOL_VERSION, "id": self.busy_with, "event": name, "data": data})

    # ---- threads ------------------------------------------------------------------------------

    def _read(self) -> None:
        while True:
            try:
                line = sys.stdin.buffer.readline(MAX_FRAME_BYTES + 1)
                if not line:
                    self.end()
                self._heard_s = time.monotonic()
                request = decode(line)
                if request.get("op") == "ping":
                    pong = {"v": PROTOCOL_VERSION, "id": request.get("id"), "ok": True}
                    self.send(dict(pong, result={}))
                elif request.get("op") == "bye":
                    if self.busy_with is not None:
                        self.end()
                    self.requests.put(None)
                else:
                    self.requests.put_nowait(request)
            except FrameError as error:
                self.send(failure(None, "PROTOCOL", str(error), "host"))
                self.end()
            except queue.Full:
                message = "more than {} requests wait".format(MAX_WAITING)
                self.send(failure(None, "PROTOCOL", message, "host"))
                self.end()
            except OSError:
                self.end()

    def _beat(self) -> None:
        pause = threading.Event()
        while not pause.wait(HEARTBEAT_S):
            if self.busy_with is not None:
                self.event("heartbeat", {})
            try:
                if self.lease.held:
                    self.lease.check()
                    self.lease.renew_when_due()
            except (LeaseLost, UnsafeFile) as error:
                self.supervisor.stop("LEASE_LOST", str(error))
                self.lease.release()
            except OSError:
                pass  # the disk is full or the guard is taken: the next beat tries again

    def _watch_host(self) -> None:
        pause = threading.Event()
        while not pause.wait(min(1.0, self.host_silence_s / 4) or 1.0):
            patience = self.host_silence_s
            if patience and time.monotonic() - self._heard_s > patience:
                self.end()

    def end(self) -> NoReturn:
        """Kill the child, give clocks back and leave at once; the kernel frees the lease."""
        hurry = threading.Timer(END_S, os._exit, (1,))  # a disk that hangs does not keep us
        hurry.daemon = True
        hurry.start()
        self.supervisor.kill()
        if self.lease.held:  # else the scratch is that of whoever holds it
            workdir.remove_scratch(self.workdir)
            with contextlib.suppress(Exception):  # else the next connection restores them
                restore(self.tree, self.workdir)
        os._exit(0)

    # ---- operations -------------------------------------------------------------------------

    def _leased(self, operation: Callable[[Json], Json]) -> Callable[[Json], Json]:
        """The operation, done only while the lease is ours; without one it is taken first."""

        def guarded(request: Json) -> Json:
            if self.lease.token:
                self.lease.check()
            else:
                self.lease.take("", boot_id(self.tree))
            return operation(request)

        return guarded

    def hello(self, request: Json) -> Json:
        """Say who answers, and unless ``take`` is false take the lease and tidy up."""
        boot = boot_id(self.tree)
        self.host_silence_s = _seconds(request.get("host_silence_s", self.host_silence_s))
        workdir.make(self.workdir)
        behind = housekeeping.left_behind(self.workdir, boot, self.lease)
        lease, orphans = None, []
        if request.get("take", True):
            lease = self.lease.take(
                str(request.get("owner", "")), boot, user=str(request.get("user", ""))
            )
            self.supervisor.resume()
            orphans = workdir.leftovers(self.workdir, self.archive)
            workdir.make(self.workdir)
            housekeeping.tidy(self.workdir, self.archive, request)
        with open(self.archive, "rb") as stream:
            sha = hashlib.sha256(stream.read()).hexdigest()
        return {
            "protocol_version": PROTOCOL_VERSION,
            "agent_sha256": sha,
            "boot_id": boot,
            "python": platform.python_version(),
            "workdir": self.workdir,
            "disk_free_bytes": workdir.free_bytes(self.workdir),
            "site": workdir.site(self.workdir),
            "extensions": sorted(self.extensions),
            "host_silence_s": self.host_silence_s,
            "lease": lease,
            "leftovers": orphans,
            "left_behind": behind,
            "clocks_journal": behind["clocks_journal"],
        }

    def lease_break(self, request: Json) -> Json:
        """Take lease or reservation from its holder, by token; needs no lease."""
        return self.lease.break_(
            str(request["token"]),
            boot_id(self.tree),
            owner=str(request.get("owner", "")),
            force=bool(request.get("force")),
        )

    def reserve(self, request: Json) -> Json:
        """Keep everybody but the owner out for some minutes; needs no lease."""
        return self.lease.reserve(
            str(request["owner"]),
            boot_id(self.tree),
            user=str(request.get("user", "")),
            minutes=_seconds(request["minutes"]),
            reason=str(request.get("reason", "")),
        )

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
        self.check_cores(request["cores"])
        result = Round(self.supervisor, request, self.event).run()
        return dict(
            result,
            memory_limit_bytes=self.supervisor.memory_limit_bytes,
            lease_token=self.lease.token,
        )

    def peak_memory(self, request: Json) -> Json:
        """Peak resident memory of one net in a child of its own."""
        return run_alone(self, request, "memory")

    def check_cores(self, cores: List[int]) -> None:
        """Refuse cores that do not exist here and move this process off the timed ones."""
        if not cores:
            raise ValueError("no cores given")
        present = set(range(os.cpu_count() or 1))
        if not set(cores) <= present:
            raise ValueError("cores {}, the board has {}".format(cores, sorted(present)))
        spare = os.sched_getaffinity(0) - set(cores)
        if spare:
            os.sched_setaffinity(0, spare)


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise ValueError("{!r} is not a duration".format(value))
    return float(value)


def main(protocol: Any, argv: List[str]) -> NoReturn:
    """Serve until the host says bye or vanishes."""
    parser = argparse.ArgumentParser(prog="agent")
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--root", default="/", help="root of the /proc and /sys tree to read")
    options = parser.parse_args(argv)
    workdir.make(options.workdir)
    archive = os.path.abspath(sys.argv[0])
    agent = Agent(protocol, archive, os.path.abspath(options.workdir), Tree(options.root))
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: agent.end())
    agent.serve()
