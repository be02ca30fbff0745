"""Does ``hilnas measure`` say what a plain loop around onnxruntime says?

``python tests/bench/measure_versus_loop.py [--pairs 12] [--nets tiny,small,medium]``

Both are taken in pairs, in random order within a pair, on the same core with one thread: once a
fresh process that only loads the file, warms up and times ``session.run``, once a measurement by
the agent. The ratio of each pair cancels what the machine does slowly; printed is the median ratio
with its 95 % bootstrap interval, and the scatter of each side.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from device_agents.devices import DeviceSpec
from device_agents.files.measure_file import measure_file
from device_agents.measuring.measurer import DeviceMeasurer
from device_agents.measuring.profiles import load_profile
from device_agents.measuring.reference import SIZES, reference_model

LOOP = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[2])})
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
node = session.get_inputs()[0]
feeds = {node.name: numpy.random.default_rng(0).uniform(-1, 1, node.shape).astype("float32")}
end = time.perf_counter() + 0.3
while time.perf_counter() < end:
    session.run(None, feeds)
times, end = [], time.perf_counter() + float(sys.argv[3])
while time.perf_counter() < end or len(times) < 10:
    before = time.perf_counter_ns()
    session.run(None, feeds)
    times.append(time.perf_counter_ns() - before)
print(int(numpy.median(times)))
"""


def main() -> None:
    """Print one line per network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--nets", default=",".join(SIZES))
    options = parser.parse_args()
    core = max(os.sched_getaffinity(0))
    order = random.Random(1)
    # one round for each pair: the same amount of looking on both sides
    screening = load_profile("screening")
    one_round = replace(screening, min_rounds=1, max_rounds=1, retakes=0, gate_wait_s=0.0)
    print(f"core {core}, {options.pairs} pairs; ratio = hilnas measure / plain loop")
    for name in options.nets.split(","):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "net.onnx")
            path.write_bytes(reference_model(name))
            device = DeviceSpec(name="local", cores=(core,), workdir=Path(folder, "agent"))
            measurer = DeviceMeasurer(device, profile=one_round)
            loop, ours = [], []
            with measurer:
                for _ in range(options.pairs):
                    for side in order.sample(("loop", "ours"), 2):
                        if side == "loop":
                            loop.append(plain(path, core))
                        else:
                            ours.append(agent(path, device, measurer))
        print_line(name, np.array(loop), np.array(ours))


def plain(path: Path, core: int) -> int:
    """Median ns of the plain loop."""
    command = [sys.executable, "-c", LOOP, str(path), str(core), "0.4"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def agent(path: Path, device: DeviceSpec, measurer: DeviceMeasurer) -> int:
    """Median ns of the agent."""
    found = measure_file(path, device, measurer=measurer, check_outputs=False, phases=False)
    statistics = found.measurement.statistics
    if statistics is None:
        raise SystemExit(f"nothing was timed: {found.measurement.error}")
    return statistics.median_ns


def print_line(name: str, loop: np.ndarray, ours: np.ndarray) -> None:
    """Ratio with interval, and both sides in ms."""
    ratios, rng = ours / loop, np.random.default_rng(0)
    draws = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    print(
        f"{name:<8} ratio {np.median(ratios):.4f} (95 % {low:.4f} … {high:.4f})   "
        f"of minima {ours.min() / loop.min():.4f}   "
        f"hilnas {np.median(ours) / 1e6:.4f} ms ± {np.std(ours) / np.median(ours):.1%}   "
        f"loop {np.median(loop) / 1e6:.4f} ms ± {np.std(loop) / np.median(loop):.1%}",
        flush=True,
    )


if __name__ == "__main__":
    main()
