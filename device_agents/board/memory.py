"""Peak memory of one network, in a child of its own: never mixed with latency."""

from __future__ import annotations

import gc
import re
from typing import Any, Dict

from device_agents.board.loading import classify, load, make_inputs

Json = Dict[str, Any]


def peak_memory(runtime: Any, task: Json) -> Json:
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
    phase = "load"
    try:
        session, _ = load(runtime, task, net)
        phase = "run"
        session.prepare(make_inputs(session, task, net))()
    except Exception as error:
        return {"error": classify(error, phase)}
    peak = _status_bytes("VmHWM")
    return {"baseline_bytes": baseline, "peak_bytes": peak, "reset": reset}


def _status_bytes(field: str) -> int:
    with open("/proc/self/status") as stream:
        match = re.search(r"^{}:\s+(\d+) kB".format(field), stream.read(), re.MULTILINE)
    return int(match.group(1)) * 1024 if match else 0
