"""A child process of the agent: one task, then the end.

It reads its task as one frame from stdin, reports each step as a frame, and dies with its parent.
The order of set-up matters: death signal, memory score, affinity, environment, then imports.

Kinds of tasks: ``round`` times a whole batch interleaved with the reference network, ``memory``
looks at the peak of one network, ``runtimes`` says which runtimes work. Any other kind is the name
of a module of this package with ``child(task, emit)``: it is called after the set-up, reports with
``emit(event, **data)`` and ends with the event ``done``. What it raises becomes ``fatal``.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import re
import signal
import sys
import traceback
from time import perf_counter_ns
from typing import Any, Callable, Dict, List, Set

from device_agents.board.frames import MAX_FRAME_BYTES, PROTOCOL_VERSION, decode, encode
from device_agents.board.loading import (
    classify,
    load,
    make_inputs,
    runtime_module,
    timed,
    use_site,
)
from device_agents.board.timing import measure_net

_PR_SET_PDEATHSIG = 1
BEAT_NS = 1_000_000_000
MAX_CORES = 4096

Json = Dict[str, Any]
Emit = Callable[..., None]


def main(protocol: Any) -> int:
    """Do the task on stdin; frames go to ``protocol``. Returns the exit status."""
    task = decode(sys.stdin.buffer.readline(MAX_FRAME_BYTES + 1))
    _die_with_parent(int(task["parent_pid"]))
    _volunteer_for_oom_kill()

    def emit(event: str, **data: Any) -> None:
        protocol.write(encode({"v": PROTOCOL_VERSION, "event": event, "data": data}))

    try:
        if task.get("cores"):
            os.sched_setaffinity(0, task["cores"])
    except OSError as error:
        emit("fatal", code="DEVICE", message="cores {}: {}".format(task["cores"], error))
        return 0
    os.environ["OMP_NUM_THREADS"] = str(task.get("threads") or 1)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's own workers only stand in the way
    use_site(task["workdir"])
    kind = _KINDS.get(task["kind"]) or _extension(task["kind"])
    kind(task, emit)
    return 0


def ready(task: Json, emit: Emit) -> Any:
    """Import the runtime of the task and tell "ready"; None after "fatal" where it is broken."""
    try:
        runtime = runtime_module(task["runtime"])
        described = runtime.describe()
    except Exception as error:  # a broken installation raises all sorts of things
        emit("fatal", code="BOOTSTRAP", message="{}: {}".format(task["runtime"], error)[:2000])
        return None
    emit("ready", runtime=described)
    return runtime


def _extension(name: str) -> Callable[[Json, Emit], None]:
    def run(task: Json, emit: Emit) -> None:
        try:
            if not re.match(r"[a-z][a-z_]{0,30}\Z", name):
                raise ImportError("{!r} is not the name of a task".format(name[:60]))
            module = importlib.import_module("device_agents.board." + name)
            if not hasattr(module, "child"):
                raise ImportError("{!r} is not the name of a task".format(name))
            module.child(task, emit)
        except Exception as error:  # an extension's bug must not look like a lost link
            traceback.print_exc()
            emit(
                "fatal", code="DEVICE", message="{}: {}".format(type(error).__name__, error)[:2000]
            )

    return run


def _runtimes(task: Json, emit: Emit) -> None:
    found: List[Json] = []
    for name in task["names"]:
        try:
            found.append(runtime_module(name).describe())
        except ImportError:
            continue
        except Exception as error:
            # a broken installation is worth telling: it is why the runtime is not offered
            broken = "{}: {}".format(type(error).__name__, error)[:200]
            found.append({"name": name, "broken": broken})
    emit("done", runtimes=found)


def _memory(task: Json, emit: Emit) -> None:
    from device_agents.board.memory import peak_memory

    runtime = ready(task, emit)
    if runtime is not None:
        emit("done", **peak_memory(runtime, task))


def _round(task: Json, emit: Emit) -> None:
    runtime = ready(task, emit)
    if runtime is None:
        return
    gc.collect()
    gc.freeze()  # what was imported is looked at no more: collecting after each net is quick
    try:
        _Round(runtime, task, emit).run()
        emit("done")
    except _ReferenceFailed as error:
        emit("fatal", code=error.code, message="the reference network: {}".format(error)[:2000])


_KINDS: Dict[str, Callable[[Json, Emit], None]] = {
    "runtimes": _runtimes,
    "memory": _memory,
    "round": _round,
}


class _ReferenceFailed(Exception):
    """The reference network does not run: the runtime is broken, or the disk is full."""

    def __init__(self, error: Exception) -> None:
        super().__init__("{}: {}".format(type(error).__name__, error))
        found = classify(error, "load")["code"]
        self.code = found if found == "DISK_FULL" else "BOOTSTRAP"


class _Round:
    def __init__(self, runtime: Any, task: Json, emit: Emit) -> None:
        self.runtime, self.task, self.emit = runtime, task, emit
        self.nets = {net["name"]: net for net in task["nets"]}
        self.beaten_ns = perf_counter_ns()

    def run(self) -> None:
        for name in self.task["order"]:
            self.emit("begin", name=name)
            if name is None:
                self.emit("reference", **self._reference())
            else:
                self.emit("net", name=name, **self._net(self.nets[name]))

    def _beat(self) -> None:
        """Between blocks, at most once a second: a slow network is not a hanging one."""
        if perf_counter_ns() - self.beaten_ns > BEAT_NS:
            self.emit("alive")
            self.beaten_ns = perf_counter_ns()

    def _reference(self) -> Json:
        """Loaded anew for each visit: a kept one would have spinning threads beside the nets."""
        net = dict(self.task["reference"], name="reference")
        try:
            session, load_ns = load(self.runtime, self.task, net)
            call = session.prepare(make_inputs(session, self.task, net))
            first_ns, _ = timed(call)
        except Exception as error:
            raise _ReferenceFailed(error) from error
        measured = measure_net(call, self.task["plan"], self._beat)
        del measured["samples_ns"]
        return dict(measured, load_ns=load_ns, first_ns=first_ns)

    def _net(self, net: Json) -> Json:
        phase = "load"
        try:
            session, load_ns = load(self.runtime, self.task, net)
            phase = "run"
            call = session.prepare(make_inputs(session, self.task, net))
            first_ns, outputs = timed(call)
            result = {"load_ns": load_ns, "first_ns": first_ns, "finite": _finite(outputs)}
            if net.get("golden"):
                result["golden"] = _golden(session, self.task, net, outputs)
            del outputs
            before, started = _threads(), perf_counter_ns()
            result.update(measure_net(call, self.task["plan"], self._beat))
            result.update(_thread_evidence(before, _threads(), set(self.task["cores"])))
            result["wall_ns"] = perf_counter_ns() - started
            if hasattr(session, "evidence"):
                result["runtime_evidence"] = session.evidence()
            return result
        except Exception as error:
            return {"error": classify(error, phase)}
        finally:
            session = call = None
            gc.collect()


def _golden(session: Any, task: Json, net: Json, outputs: List[Any]) -> Any:
    from device_agents.board.inputs import compare, load_golden

    named = dict(zip(session.output_names, outputs))  # noqa: B905  (3.7 has no strict)
    expected = load_golden(task["workdir"], net["golden"], "outputs")
    return compare(named, expected, net["golden"])


def _finite(outputs: List[Any]) -> bool:
    from device_agents.board.inputs import all_finite

    return all_finite(outputs)


def _threads() -> Json:
    """Allowed cores and involuntary switches of every thread, from /proc/self/task."""
    found = {}
    for tid in os.listdir("/proc/self/task"):
        try:
            with open("/proc/self/task/{}/status".format(tid)) as stream:
                text = stream.read()
        except OSError:
            continue  # ended meanwhile
        cores = re.search(r"^Cpus_allowed_list:\s*(\S+)", text, re.MULTILINE)
        switches = re.search(r"^nonvoluntary_ctxt_switches:\s*(\d+)", text, re.MULTILINE)
        found[tid] = (cores.group(1) if cores else "", int(switches.group(1)) if switches else 0)
    return found


def _thread_evidence(before: Json, after: Json, cores: Set[int]) -> Json:
    outside = sorted({mask for mask, _ in after.values() if not core_list(mask) <= cores})
    switches = sum(count - before.get(tid, ("", 0))[1] for tid, (_, count) in after.items())
    return {"n_threads": len(after), "masks_outside": outside, "involuntary_switches": switches}


def core_list(text: str) -> Set[int]:
    """The kernel's list of cores as a set. Raises ValueError for cores that no board has.

    >>> sorted(core_list("0-2,5"))
    [0, 1, 2, 5]
    """
    cores: Set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if not 0 <= low <= high < MAX_CORES:
            raise ValueError("{!r} is not a list of cores".format(text[:80]))
        cores.update(range(low, high + 1))
    return cores


def _die_with_parent(parent_pid: int) -> None:
    try:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (OSError, AttributeError):
        return  # not Linux: the agent kills the process group itself
    if os.getppid() != parent_pid:
        os._exit(1)  # the parent died before the signal was asked for


def _volunteer_for_oom_kill() -> None:
    try:
        with open("/proc/self/oom_score_adj", "w") as stream:
            stream.write("1000")
    except OSError:
        pass
