"""Which ONNX files a runtime on this board takes, found by loading tiny ones in a child process.

No runtime says its limit. The host sends a ladder of models that differ in IR version or in opset;
each is loaded, and the highest that loads is the limit. A model that kills the child counts as one
that does not load, and the ladder goes on above it.
"""

from __future__ import annotations

import os
import re
from typing import Any, Callable, Dict, List, Optional

from device_agents.board.rounds import RoundFailed

START_TIMEOUT_S = 120.0
STEP_TIMEOUT_S = 30.0
MAX_MODELS = 200

Json = Dict[str, Any]


def operations(agent: Any) -> Dict[str, Callable[[Json], Json]]:
    """What this module adds to the agent."""
    return {"limits": lambda request: find(agent.supervisor, request)}


def find(supervisor: Any, request: Json) -> Json:
    """Highest ``ir`` and ``opset`` that load, None where none does; ``errors`` by model.

    A model of the ladder belongs to the limit that it names: {"ir", "opset", "blob", "of"}, where
    ``of`` is "ir" or "opset". Raises RoundFailed where the runtime itself is broken.
    """
    models = [_model(model) for model in request["models"][:MAX_MODELS]]
    outcome: Dict[int, Optional[str]] = {}
    while len(outcome) < len(models):
        left = [i for i in range(len(models)) if i not in outcome]
        tried = _child(supervisor, str(request["runtime"]), models, left, outcome)
        if tried is not None:
            outcome[tried] = "it killed the process that loaded it"
    loaded = [models[i] for i, error in outcome.items() if error is None]
    limits = {
        of: max([model[of] for model in loaded if model["of"] == of] or [0]) or None
        for of in ("ir", "opset")
    }
    errors = {
        "{} {}".format(models[i]["of"], models[i][models[i]["of"]]): error[:300]
        for i, error in sorted(outcome.items())
        if error is not None
    }
    return dict(limits, errors=errors)


def _child(
    supervisor: Any, runtime: str, models: List[Json], left: List[int], outcome: Dict[int, Any]
) -> Optional[int]:
    """Try what is left in one child; gives the model during which it died, None if it lived."""
    under_way: List[int] = []

    def on_event(event: str, data: Json) -> None:
        if event == "trying":
            under_way.append(int(data["index"]))
        elif event == "tried":
            outcome[int(data["index"])] = data["error"]

    ending = supervisor.run(
        {"kind": "limits", "runtime": runtime, "models": models, "left": left},
        on_event,
        start_timeout_s=START_TIMEOUT_S,
        step_timeout_s=STEP_TIMEOUT_S,
    )
    if ending.fatal:
        raise RoundFailed(ending.fatal["code"], ending.fatal["message"])
    dead = [index for index in under_way if index not in outcome]
    if dead:
        return dead[-1]
    if not ending.clean or any(index not in outcome for index in left):
        # it died outside of any model: trying again would go on for ever
        raise RoundFailed("BOOTSTRAP", "runtime {} {}".format(runtime, ending.message))
    return None


def child(task: Json, emit: Callable[..., None]) -> None:
    """Load the models that are left, one after the other, and say which did."""
    from device_agents.board.loading import runtime_module

    try:
        runtime = runtime_module(task["runtime"])
        runtime.describe()
    except Exception as error:  # a broken installation raises all sorts of things
        emit("fatal", code="BOOTSTRAP", message="{}: {}".format(task["runtime"], error)[:2000])
        return
    for index in task["left"]:
        emit("trying", index=index)
        path = os.path.join(task["workdir"], "blobs", task["models"][index]["blob"])
        problem = None
        try:
            runtime.Session(path, threads=1, spinning=False, optimization="disabled")
        except Exception as error:
            problem = "{}: {}".format(type(error).__name__, error)[:300]
        emit("tried", index=index, error=problem)
    emit("done")


def _model(model: Json) -> Json:
    """A model of a request, checked. Raises KeyError, ValueError."""
    ir, opset, blob = int(model["ir"]), int(model["opset"]), str(model["blob"])
    if not re.match(r"[0-9a-f]{64}\Z", blob) or not 0 < ir < 1000 or not 0 < opset < 1000:
        raise ValueError("model {!r} of the ladder is none".format(model))
    of = str(model.get("of", "opset"))
    if of not in ("ir", "opset"):
        raise ValueError("a model is for {!r}; allowed: ir, opset".format(of))
    return {"ir": ir, "opset": opset, "blob": blob, "of": of}
