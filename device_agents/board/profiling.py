"""Passes beside the latency, each in a child of its own: where the time of a network goes.

``inspect`` splits runs into phases where the runtime can tell them apart and compares the outputs
with the expected ones in detail. ``profile`` lists the operators. Neither gives a latency: both
slow the network down.
"""

from __future__ import annotations

from statistics import median
from time import perf_counter_ns
from typing import Any, Callable, Dict, List

from device_agents.board.alone import run_alone

MAX_OPERATORS = 300
"""Operators told one by one; the rest is summed up, so that an answer fits into a frame."""

_PHASE_RUNS = (10, 1000)
_PHASE_NS = 500_000_000

Json = Dict[str, Any]


def operations(agent: Any) -> Dict[str, Callable[[Json], Json]]:
    """What the agent can be asked."""

    return {
        "inspect": lambda request: run_alone(agent, request, "profiling", what="inspect"),
        "profile": lambda request: run_alone(agent, request, "profiling", what="profile"),
    }


def child(task: Json, emit: Callable[..., None]) -> None:
    """Do the pass that ``task["what"]`` names on the one network of the task."""
    from device_agents.board.child import ready
    from device_agents.board.loading import classify, laid_out, make_inputs, open_session

    runtime = ready(task, emit)
    if runtime is None:
        return
    net = task["nets"][0]
    phase = "load"
    try:
        with laid_out(task, net) as model:
            session, _ = open_session(runtime, task, model)
            phase = "run"
            feeds = make_inputs(session, task, net)
            emit(
                "done",
                **(_profile if task["what"] == "profile" else _inspect)(session, task, net, feeds),
            )
    except Exception as error:
        emit("done", error=classify(error, phase))


def _inspect(session: Any, task: Json, net: Json, feeds: Json) -> Json:
    found: Json = {"phases": None, "outputs": None}
    outputs = session.prepare(feeds)()
    if net.get("golden"):
        from device_agents.board.inputs import compare_each, load_golden

        named = dict(zip(session.output_names, outputs))  # noqa: B905  (3.7 has no strict)
        expected = load_golden(task["workdir"], net["golden"], "outputs")
        found["outputs"] = compare_each(named, expected, net["golden"])
    del outputs
    if hasattr(session, "phases"):
        found["phases"] = time_phases(session.phases(feeds))
    return found


def time_phases(steps: Any) -> List[Json]:
    """Run the steps again and again for half a second; count, median, min and max of each in ns."""
    times: List[List[int]] = [[] for _ in steps]
    least, most = _PHASE_RUNS
    for _ in range(3):
        for _, call in steps:
            call()
    end = perf_counter_ns() + _PHASE_NS
    runs = 0
    while runs < most and (runs < least or perf_counter_ns() < end):
        for kept, (_, call) in zip(times, steps):  # noqa: B905
            before = perf_counter_ns()
            result = call()
            kept.append(perf_counter_ns() - before)
            del result
        runs += 1
    return [
        {
            "name": name,
            "runs": runs,
            "median_ns": int(median(kept)),
            "min_ns": min(kept),
            "max_ns": max(kept),
        }
        for (name, _), kept in zip(steps, times)  # noqa: B905
    ]


def _profile(session: Any, task: Json, net: Json, feeds: Json) -> Json:
    if not hasattr(session, "profile"):
        return {"operators": None}
    return {"operators": summarise(session.profile(feeds))}


def summarise(calls: List[Json]) -> Json:
    """One row per operator and per type of operator from the calls of a profile, slowest first.

    >>> found = summarise([{"name": "a", "op": "Conv", "provider": "CPU", "ns": 3000}] * 2)
    >>> found["rows"][0]["calls"], found["rows"][0]["total_us"], found["rows"][0]["share"]
    (2, 6.0, 1.0)
    """
    rows: Dict[Any, List[int]] = {}
    types: Dict[Any, List[int]] = {}
    for call in calls:
        name, op, where = (str(call.get(k) or "")[:200] for k in ("name", "op", "provider"))
        rows.setdefault((name, op, where), []).append(int(call["ns"]))
        types.setdefault((op, where), []).append(int(call["ns"]))
    total_ns = sum(map(sum, rows.values()))
    operators = [
        dict(_row(times, total_ns), name=name, op=op, provider=where)
        for (name, op, where), times in _slowest(rows)
    ]
    return {
        "total_us": total_ns / 1000,
        "n_operators": len(operators),
        "rows": operators[:MAX_OPERATORS],
        "rest_us": sum(row["total_us"] for row in operators[MAX_OPERATORS:]),
        "by_type": [
            dict(_row(times, total_ns), op=op, provider=where)
            for (op, where), times in _slowest(types)[:MAX_OPERATORS]
        ],
    }


def _slowest(groups: Dict[Any, List[int]]) -> List[Any]:
    return sorted(groups.items(), key=lambda item: (-sum(item[1]), str(item[0])))


def _row(times: List[int], total_ns: int) -> Json:
    return {
        "calls": len(times),
        "total_us": sum(times) / 1000,
        "median_us": median(times) / 1000,
        "share": sum(times) / total_ns if total_ns else 0.0,
    }
