"""Run one network on many inputs and keep its outputs: for parity and accuracy, never for times.

The inputs are a blob that holds one array (N, ...); row i is fed as a batch of one. The outputs go
into a blob of their own, which the host fetches.
"""

from __future__ import annotations

import hashlib
import os
from time import monotonic
from typing import Any, Callable, Dict

from device_agents.board.alone import run_alone

ALIVE_S = 1.0

Json = Dict[str, Any]


def operations(agent: Any) -> Dict[str, Callable[[Json], Json]]:
    """What the agent can be asked."""

    def infer(request: Json) -> Json:
        return run_alone(agent, request, "inference", inputs=str(request["inputs"]))

    return {"infer": infer}


def child(task: Json, emit: Callable[..., None]) -> None:
    """Run every row of the inputs through the first output of the network."""
    from device_agents.board.child import ready
    from device_agents.board.loading import classify, load

    runtime = ready(task, emit)
    if runtime is None:
        return
    phase = "load"
    try:
        session, _ = load(runtime, task, task["nets"][0])
        phase = "run"
        outputs = _run_all(session, _inputs(task), emit)
    except Exception as error:
        emit("done", error=classify(error, phase))
        return
    emit("done", outputs=_keep(task["workdir"], outputs), rows=len(outputs))


def _inputs(task: Json) -> Any:
    import numpy

    path = os.path.join(task["workdir"], "blobs", os.path.basename(task["inputs"]))
    return numpy.load(path, mmap_mode="r", allow_pickle=False)


def _run_all(session: Any, inputs: Any, emit: Callable[..., None]) -> Any:
    import numpy

    name = session.inputs[0][0]
    rows, told_s = [], monotonic()
    for index in range(len(inputs)):
        row = numpy.ascontiguousarray(inputs[index : index + 1])
        rows.append(numpy.array(session.prepare({name: row})()[0][0]))
        if monotonic() - told_s > ALIVE_S:
            emit("alive")
            told_s = monotonic()
    return numpy.stack(rows)


def _keep(workdir: str, outputs: Any) -> str:
    """Write the array as a blob, whole or not at all; gives its name."""
    import io

    import numpy

    buffer = io.BytesIO()
    numpy.save(buffer, outputs, allow_pickle=False)
    data = buffer.getvalue()
    name = hashlib.sha256(data).hexdigest()
    path = os.path.join(workdir, "blobs", name)
    partial = "{}.{}.part".format(path, os.getpid())
    with open(partial, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)
    return name
