"""One network run for minutes, told period by period with clocks, heat and power: ``sustain``.

The child runs without pauses; this process looks at the board after each period. Where there is a
sensor, power is sampled all the time, because single readings say little.
"""

from __future__ import annotations

import importlib
import math
from statistics import median
from time import perf_counter_ns
from typing import Any, Callable, Dict, List

from device_agents.board.alone import run_alone
from device_agents.board.system import Tree, cooling_devices, policies, thermal_zones

MAX_SECONDS = 24 * 3600.0
MAX_PERIODS = 20_000
POWER_PERIOD_S = 0.05

Json = Dict[str, Any]


def operations(agent: Any) -> Dict[str, Callable[[Json], Json]]:
    """What this module adds to the agent."""
    return {"sustain": lambda request: sustain(agent, request)}


def sustain(agent: Any, request: Json) -> Json:
    """Run one network; an event ``period`` each ``period_s``, the power of the whole at the end.

    Raises ValueError for times that make no sense, RoundFailed where the runtime is missing.
    """
    seconds, period_s = float(request["seconds"]), float(request["period_s"])
    if not (0 < period_s <= seconds <= MAX_SECONDS and seconds / period_s <= MAX_PERIODS):
        raise ValueError(
            "{} s in periods of {} s; allowed: at most {} s and {} periods".format(
                seconds, period_s, MAX_SECONDS, MAX_PERIODS
            )
        )
    sampler = _sampler(agent.tree)

    def on_event(event: str, data: Json) -> None:
        if event == "running" and sampler is not None:
            sampler.start()
        elif event == "period":
            agent.event("period", dict(data, **state(agent.tree)))

    try:
        told = run_alone(
            agent,
            request,
            "sustain",
            on_event,
            patience_s=2 * period_s,
            seconds=seconds,
            period_s=period_s,
        )
    finally:
        sampled = sampler.stop() if sampler is not None else {}
    if "error" in told:
        return told
    return dict(told, energy=sampled.get("energy"))


def state(tree: Tree) -> Json:
    """Clocks, temperatures and cooling of this moment, by name."""
    return {
        "clock_khz": {p["name"]: p["cur_khz"] for p in policies(tree) if p["cur_khz"]},
        "temperature_mc": {
            str(zone["type"] or zone["name"]): zone["temperature_mc"]
            for zone in thermal_zones(tree)
            if zone["temperature_mc"] is not None
        },
        "cooling": {
            "{} ({})".format(device["type"], device["name"]): device["state"]
            for device in cooling_devices(tree)
            if device["state"]
        },
    }


def _sampler(tree: Tree) -> Any:
    """A sampler for a board that has a sensor of power or energy; None for the others."""
    try:
        module = importlib.import_module("device_agents.board.sensors")
    except ImportError:
        return None
    sampler = module.Sampler(tree, POWER_PERIOD_S)
    return sampler if sampler.sensors else None


def child(task: Json, emit: Callable[..., None]) -> None:
    """Load the network and run it until the time is over."""
    from device_agents.board.child import ready
    from device_agents.board.loading import classify, load, make_inputs
    from device_agents.board.timing import SHORT_CALL_NS, time_block, warm_up

    runtime = ready(task, emit)
    if runtime is None:
        return
    net = task["nets"][0]
    emit("begin", name=net["name"])
    phase = "load"
    try:
        session, load_ns = load(runtime, task, net)
        phase = "run"
        call = session.prepare(make_inputs(session, task, net))
        # heat and clocks as they are at the start are what the first period shows: no long warm-up
        warm = warm_up(call, min_runs=5, cap_ns=0, block_ns=0, tolerance=1.0)
        calls = max(1, math.ceil(SHORT_CALL_NS / max(1.0, float(warm["typical_ns"]))))
        period_ns = int(task["period_s"] * 1e9)
        emit("running")
        began_ns = perf_counter_ns()
        end_ns = began_ns + int(task["seconds"] * 1e9)
        n_runs = 0
        while perf_counter_ns() < end_ns:
            started_ns = perf_counter_ns()
            samples: List[int] = []
            while perf_counter_ns() - started_ns < period_ns:
                samples += time_block(call, min(period_ns, 1_000_000_000), 1, calls)
            n_runs += len(samples) * calls
            emit(
                "period",
                start_ns=started_ns - began_ns,
                end_ns=perf_counter_ns() - began_ns,
                median_ns=int(median(samples)),
                min_ns=min(samples),
                max_ns=max(samples),
                n_runs=len(samples) * calls,
            )
        wall_ns = perf_counter_ns() - began_ns
    except Exception as error:
        emit("done", error=classify(error, phase))
        return
    emit("done", load_ns=load_ns, n_runs=n_runs, wall_ns=wall_ns)
