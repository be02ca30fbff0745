"""What every child process needs: its runtime, a loaded network, inputs, and names for failures.

The site folder that ``hilnas devices bootstrap`` filled comes first on ``sys.path``, so that its
runtime wins over whatever the board's own Python has.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import re
import shutil
import sys
from time import perf_counter_ns
from typing import Any, Dict, Iterator, Tuple

_NO_MEMORY = re.compile("bad.alloc|failed to allocate|out of memory|cannot allocate", re.IGNORECASE)
_UNSUPPORTED = re.compile(
    "unsupported model ir|opset|not implemented|not_implemented|no op registered|could not find an "
    "implementation|is not a registered function",
    re.IGNORECASE,
)
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")

Json = Dict[str, Any]


def use_site(workdir: str) -> str:
    """Put ``<workdir>/site/<current>`` first on ``sys.path``; give it, "" where there is none."""
    try:
        with open(os.path.join(workdir, "site", "current")) as stream:
            name = stream.read(200).strip()
    except (OSError, ValueError):
        return ""
    folder = os.path.join(workdir, "site", name)
    if not _SITE.match(name) or not os.path.isdir(folder):
        return ""
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return folder


def runtime_module(name: str) -> Any:
    """The fragment of a runtime. Raises ImportError where there is none of that name."""
    if not re.match(r"[a-z][a-z0-9_]{0,40}\Z", name):
        raise ImportError("{!r} is not the name of a runtime".format(name[:60]))
    return importlib.import_module("device_agents.board.runtime_" + name)


def load(runtime: Any, task: Json, net: Json) -> Tuple[Any, int]:
    """A session and the ns that loading took.

    The files are removed at once, before their pages are written back to disk.
    """
    with laid_out(task, net) as model:
        return open_session(runtime, task, model)


@contextlib.contextmanager
def laid_out(task: Json, net: Json) -> Iterator[str]:
    """The model's path in a private folder with its external data, removed at the end."""
    from device_agents.board.inputs import lay_out

    folder = os.path.join(task["workdir"], "run", "{}-{}".format(os.getpid(), net["name"]))
    try:
        yield lay_out(task["workdir"], folder, net)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def open_session(runtime: Any, task: Json, model: str) -> Tuple[Any, int]:
    """Load ``model`` with the settings of the task; a session and the ns it took."""
    chosen = {}
    if task.get("provider"):
        chosen["provider"] = task["provider"]
    if task.get("runtime_options"):
        chosen["options"] = task["runtime_options"]
    start = perf_counter_ns()
    session = runtime.Session(
        model,
        threads=task["threads"],
        spinning=task["spinning"],
        optimization=task["optimization"],
        **chosen,
    )
    return session, perf_counter_ns() - start


def make_inputs(session: Any, task: Json, net: Json) -> Json:
    """The inputs that were sent with the net, else seeded ones of the session's shapes."""
    from device_agents.board.inputs import load_golden, random_inputs

    if net.get("golden"):
        return load_golden(task["workdir"], net["golden"], "inputs")
    return random_inputs(session.inputs, task["input_seed"], net.get("shapes") or {})


def timed(call: Any) -> Tuple[int, Any]:
    """Duration in ns of one call, and what it gave."""
    start = perf_counter_ns()
    outputs = call()
    return perf_counter_ns() - start, outputs


def classify(error: Exception, phase: str) -> Json:
    """Code, message and who is to blame; ``phase`` is "load" or "run"."""
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
