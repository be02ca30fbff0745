"""What measuring costs beside measuring: wall time over the time spent in networks.

Run it with ``python -m tests.bench.measuring_overhead [--device NAME] [--nets 50] [--json]``. The
numerator is the wall time of ``DeviceMeasurer.measure`` on an open session, the denominator the
warm-up and timed runs of all networks, the reference included. Networks are small chains of
convolutions whose weights are synthesised on the device, as those of a search are.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from device_agents.devices import DeviceSpec, load_device
from device_agents.measuring.measurer import DeviceMeasurer
from device_agents.measuring.profiles import load_profile
from latency_tables.onnx_writer import to_onnx
from latency_tables.oracle import MeasureJob
from latency_tables.records import Measurement
from pipeline.export.record import graph_of
from pipeline.spaces import load_space

BUDGET = 1.15


def make_jobs(n_nets: int) -> list[MeasureJob]:
    """Different subnets of the tiny ShuffleNetV2 space without their weights."""
    space = load_space("shufflenetv2", preset="tiny", input_shape=(1, 28, 28), n_classes=10)
    table = space.cost_table()
    sizes = [len(d.choices) for d in space.decisions]
    if n_nets > prod(sizes):
        raise SystemExit(f"{n_nets} networks of a space that has {prod(sizes)}")
    rng, drawn = Random(0), dict[tuple[int, ...], None]()
    while len(drawn) < n_nets:  # equal ones would be one file on the device
        drawn[tuple(rng.randrange(n) for n in sizes)] = None
    jobs = []
    for index, genes in enumerate(drawn):
        arch = table.arch(list(genes))
        candidate = to_onnx(graph_of(space, arch))
        jobs.append(
            MeasureJob(
                net_id=f"{index:064x}", arch=arch, onnx=candidate.model,
                weights=candidate.weights_spec, space_id=space.space_id,
            )
        )  # fmt: skip
    return jobs


def measure(device: DeviceSpec, jobs: list[MeasureJob], profile: str) -> dict[str, Any]:
    """Wall, busy and their ratio, and where the host saw the wall time go."""
    # waiting for a quiet machine is no cost of ours
    measurer = DeviceMeasurer(device, profile=replace(load_profile(profile), gate_wait_s=0.0))
    spent: dict[str, float] = defaultdict(float)
    sent = sum(len(job.onnx) for job in jobs)
    with measurer:
        measurer.cores()
        session = measurer.session
        began = time.perf_counter()
        measurer.probe()  # a process that imports the runtime and ends, as that of a round starts
        start_s = time.perf_counter() - began
        session.request = _clocked(session.request, spent)  # type: ignore[method-assign]
        put_all = session.transport.put_all
        session.transport.put_all = _clocked(put_all, spent, "put")  # type: ignore[method-assign]
        began = time.perf_counter()
        records = measurer.measure(jobs)
        wall_s = time.perf_counter() - began
    failed = [record.error for record in records if record.error]
    return {
        "device": device.name,
        "profile": profile,
        "nets": len(jobs),
        "failed": failed,
        "wall_s": wall_s,
        "busy_s": measurer.busy_s,
        "ratio": wall_s / measurer.busy_s,
        "model_bytes": sent,
        "process_start_s": start_s,
        "load_ms": load_ms(records),
        "spent_s": {**spent, "host": wall_s - sum(spent.values())},
    }


def load_ms(records: list[Measurement]) -> float:
    """Typical time of loading a candidate, which happens once per round."""
    loads = [record.statistics.load_ns for record in records if record.statistics is not None]
    return median(loads) / 1e6 if loads else 0.0


def _clocked(
    function: Callable[..., Any], spent: dict[str, float], name: str = ""
) -> Callable[..., Any]:
    def run(*args: Any, **keywords: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **keywords)
        finally:
            spent[name or args[0]] += time.perf_counter() - began

    return run


def main() -> int:
    """Print the ratio; status 1 where it is over the budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="local")
    parser.add_argument("--nets", type=int, default=50)
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        device = load_device(options.device)
        if device.transport == "local":
            device = replace(device, workdir=Path(folder))
        found = measure(device, make_jobs(options.nets), options.profile)
    if options.json:
        print(json.dumps(found))
    else:
        print(f"{found['nets']} networks on {found['device']}, profile {found['profile']}")
        print(f"wall {found['wall_s']:.2f} s, warm-up and timed runs {found['busy_s']:.2f} s")
        print(f"ratio {found['ratio']:.3f} (budget {BUDGET})")
        parts = ", ".join(f"{name} {s:.2f} s" for name, s in found["spent_s"].items())
        print(f"wall by what the host waited for: {parts}")
        print(
            f"a process that imports the runtime {found['process_start_s']:.2f} s per round, "
            f"loading a network {found['load_ms']:.1f} ms per visit"
        )
        print(f"{found['model_bytes'] / found['nets'] / 1e3:.1f} kB of model sent per network")
    return 0 if found["ratio"] <= BUDGET else 1


if __name__ == "__main__":
    sys.exit(main())
