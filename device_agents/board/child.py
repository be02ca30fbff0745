"""One round: a fresh process that times a whole batch interleaved with the reference network.

It reads its task as one frame from stdin, reports each step as a frame, and dies with its parent.
The order of set-up matters: death signal, memory score, affinity, environment, then imports.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import importlib
import os
import re
import shutil
import signal
import sys
import traceback
from time import perf_counter_ns
from typing import Any, Callable, Dict, List, Set

from device_agents.board.frames import MAX_FRAME_BYTES, PROTOCOL_VERSION, decode, encode
from device_agents.board.timing import measure_net

_PR_SET_PDEATHSIG = 1
BEAT_NS = 1_000_000_000
_NO_MEMORY = re.compile("bad.alloc|failed to allocate|out of memory|cannot allocate", re.IGNORECASE)
_UNSUPPORTED = re.compile(
    "unsupported model ir|opset|not implemented|not_implemented|no op registered|could not find an "
    "implementation",
    re.IGNORECASE,
)

Json = Dict[str, Any]
Emit = Callable[..., None]


def main(protocol: Any) -> int:
    """Do the task on stdin; frames go to ``protocol``. Returns the exit status."""
    task = decode(sys.stdin.buffer.readline(MAX_FRAME_BYTES + 1))
    _die_with_parent(int(task["parent_pid"]))
    _volunteer_for_oom_kill()

    def emit(event: str, **data: Any) -> None:
        protocol.write(encode({"v": PROTOCOL_VERSION, "event": event, "data": data}))

    if task["kind"] == "runtimes":
        emit("done", runtimes=_runtimes(task["names"]))
        return 0
    try:
        os.sched_setaffinity(0, task["cores"])
    except OSError as error:
        emit("fatal", code="DEVICE", message="cores {}: {}".format(task["cores"], error))
        return 0
    os.environ["OMP_NUM_THREADS"] = str(task["threads"])
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's own workers only stand in the way
    try:
        runtime = _runtime(task["runtime"])
        described = runtime.describe()
    except Exception as error:  # a broken installation raises all sorts of things
        emit("fatal", code="BOOTSTRAP", message="{}: {}".format(task["runtime"], error)[:2000])
        return 0
    emit("ready", runtime=described)
    if task["kind"] == "memory":
        emit("done", **_peak_memory(runtime, task))
        return 0
    try:
        _Round(runtime, task, emit).run()
        emit("done")
    except _ReferenceFailed as error:
        emit("fatal", code="BOOTSTRAP", message="the reference network: {}".format(error)[:2000])
    return 0


class _ReferenceFailed(Exception):
    pass


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
            session, load_ns = _load(self.runtime, self.task, net)
            call = session.prepare(_inputs(session, self.task, net))
            first_ns, _ = _timed(call)
        except Exception as error:
            raise _ReferenceFailed("{}: {}".format(type(error).__name__, error)) from error
        timed = measure_net(call, self.task["plan"], self._beat)
        del timed["samples_ns"]
        return dict(timed, load_ns=load_ns, first_ns=first_ns)

    def _net(self, net: Json) -> Json:
        phase = "load"
        try:
            session, load_ns = _load(self.runtime, self.task, net)
            phase = "run"
            feeds = _inputs(session, self.task, net)
            call = session.prepare(feeds)
            first_ns, outputs = _timed(call)
            result = {"load_ns": load_ns, "first_ns": first_ns, "finite": _finite(outputs)}
            if net.get("golden"):
                result["golden"] = _golden(session, self.task, net, outputs)
            del outputs
            before, started = _threads(), perf_counter_ns()
            result.update(measure_net(call, self.task["plan"], self._beat))
            result.update(_thread_evidence(before, _threads(), set(self.task["cores"])))
            result["wall_ns"] = perf_counter_ns() - started
            return result
        except Exception as error:
            return {"error": _classify(error, phase)}
        finally:
            session = call = None
            gc.collect()


def _load(runtime: Any, task: Json, net: Json) -> Any:
    """Load from a folder that is removed at once, before its pages are written back to disk."""
    from device_agents.board.inputs import lay_out

    folder = os.path.join(task["workdir"], "run", "{}-{}".format(os.getpid(), net["name"]))
    try:
        model = lay_out(task["workdir"], folder, net)
        start = perf_counter_ns()
        session = runtime.Session(
            model,
            threads=task["threads"],
            spinning=task["spinning"],
            optimization=task["optimization"],
        )
        return session, perf_counter_ns() - start
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _inputs(session: Any, task: Json, net: Json) -> Json:
    from device_agents.board.inputs import load_golden, random_inputs

    if net.get("golden"):
        return load_golden(task["workdir"], net["golden"], "inputs")
    return random_inputs(session.inputs, task["input_seed"], net.get("shapes") or {})


def _golden(session: Any, task: Json, net: Json, outputs: List[Any]) -> Any:
    from device_agents.board.inputs import compare, load_golden

    named = dict(zip(session.output_names, outputs))  # noqa: B905  (3.7 has no strict)
    expected = load_golden(task["workdir"], net["golden"], "outputs")
    return compare(named, expected, net["golden"])


def _finite(outputs: List[Any]) -> bool:
    from device_agents.board.inputs import all_finite

    return all_finite(outputs)


def _timed(call: Callable[[], Any]) -> Any:
    start = perf_counter_ns()
    outputs = call()
    return perf_counter_ns() - start, outputs


def _peak_memory(runtime: Any, task: Json) -> Json:
    """Growth of the resident set from the loaded runtime to the end of the first run."""
    net = task["nets"][0]
    from device_agents.board import inputs  # numpy belongs to the baseline

    del inputs
    gc.collect()
    baseline = _status_bytes("VmRSS")
    try:
        with open("/proc/self/clear_refs", "w") as stream:
            stream.write("5")  # start VmHWM afresh at the present resident set
        reset = True
    except OSError:
        reset = False
    try:
        session, _ = _load(runtime, task, net)
        session.prepare(_inputs(session, task, net))()
    except Exception as error:
        return {"error": _classify(error, "load")}
    peak = _status_bytes("VmHWM")
    return {"baseline_bytes": baseline, "peak_bytes": peak, "reset": reset}


def _status_bytes(field: str) -> int:
    with open("/proc/self/status") as stream:
        match = re.search(r"^{}:\s+(\d+) kB".format(field), stream.read(), re.MULTILINE)
    return int(match.group(1)) * 1024 if match else 0


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
    """The kernel's list of cores as a set.

    >>> sorted(core_list("0-2,5"))
    [0, 1, 2, 5]
    """
    cores: Set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return cores


def _classify(error: Exception, phase: str) -> Json:
    message = "{}: {}".format(type(error).__name__, error)[:2000]
    if isinstance(error, OSError):  # files are ours: a full disk is no fault of the network
        code = "DISK_FULL" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "DEVICE"
        return {"code": code, "message": message, "blames": "board"}
    if isinstance(error, MemoryError) or _NO_MEMORY.search(message):
        code = "OOM"
    elif type(error).__name__ == "UnsupportedInput":
        code = "UNSUPPORTED_MODEL"
    elif phase == "load":
        code = "UNSUPPORTED_MODEL" if _UNSUPPORTED.search(message) else "LOAD_FAILED"
    else:
        code = "RUN_CRASHED"
    return {"code": code, "message": message, "blames": "candidate"}


def _runtime(name: str) -> Any:
    if not re.match(r"[a-z][a-z0-9_]{0,40}\Z", name):
        raise ImportError("{!r} is not the name of a runtime".format(name[:60]))
    return importlib.import_module("device_agents.board.runtime_" + name)


def _runtimes(names: List[str]) -> List[Json]:
    found = []
    for name in names:
        try:
            found.append(_runtime(name).describe())
        except ImportError:
            continue
        except Exception:
            # a broken installation is worth telling: it is why the runtime is not offered
            found.append({"name": name, "broken": traceback.format_exc(limit=1)[-500:]})
    return found


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
