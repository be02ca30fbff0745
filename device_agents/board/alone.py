"""One network in a child of its own, for everything beside the rounds: memory, profile, outputs."""

from __future__ import annotations

from typing import Any, Callable, Dict

from device_agents.board.rounds import RoundFailed, child_task

Json = Dict[str, Any]


def _ignore(event: str, data: Json) -> None:
    pass


def run_alone(
    agent: Any,
    request: Json,
    kind: str,
    on_event: Callable[[str, Json], None] = _ignore,
    patience_s: float = 0.0,
    **settings: Any,
) -> Json:
    """What the child told with "done", or {"error": ...} where the network ended it.

    The task is of ``kind``, with ``settings`` beside those of the request. ``on_event`` hears the
    other events; ``patience_s`` is added to the time that one step may take. Raises RoundFailed
    where the runtime does not work, ValueError for cores that do not exist.
    """
    agent.check_cores(request["cores"])
    told: Json = {}

    def hear(event: str, data: Json) -> None:
        if event == "done":
            told.update(data)
        else:
            on_event(event, data)

    ending = agent.supervisor.run(
        dict(child_task(request, kind, request["nets"][:1]), **settings),
        hear,
        start_timeout_s=request["start_timeout_s"],
        step_timeout_s=request["net_timeout_s"] + patience_s,
        memory_limit_bytes=request.get("memory_limit_bytes") or 0,
    )
    if ending.fatal:
        raise RoundFailed(ending.fatal["code"], ending.fatal["message"])
    if not ending.clean:
        error = {"code": ending.code, "message": "it " + ending.message, "blames": "candidate"}
        return {"error": error}
    return told
