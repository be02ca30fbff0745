"""How fast a candidate becomes ONNX, beside both exporters of torch; how alike the nets run.

Run it with ``python -m tests.bench.graph [--json]``. All numbers come from one run on one thread.
The last part times the graph's net and the exported net in turns (pairs), so that a machine that
slows down slows both.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort
import torch

from latency_tables.onnx_writer import to_onnx
from pipeline.export.record import graph_of, graph_weights
from pipeline.spaces import load_space

BUDGET_MS, BUDGET_BYTES, BUDGET_RATIO = 20.0, 60_000, 30.0


def seconds(action: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def paired_latency_ms(first: bytes, second: bytes, shape: tuple[int, ...], pairs: int) -> Any:
    """Median latency of both, and median and interquartile range of the ratio of pairs."""
    sessions = []
    for model in (first, second):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        sessions.append(ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]))
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    feeds = [{s.get_inputs()[0].name: x} for s in sessions]
    for session, feed in zip(sessions, feeds, strict=True):
        for _ in range(10):
            session.run(None, feed)
    times: list[list[float]] = [[], []]
    for pair in range(pairs):
        for i in (0, 1) if pair % 2 else (1, 0):
            times[i].append(1e3 * seconds(lambda i=i: sessions[i].run(None, feeds[i])))
    ratios = np.array(times[0]) / np.array(times[1])
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return {
        "graph_ms": statistics.median(times[0]),
        "exported_ms": statistics.median(times[1]),
        "ratio": float(middle),
        "ratio_quartiles": [float(low), float(high)],
        "pairs": pairs,
    }


def measure(n_candidates: int = 200, exports: int = 3, pairs: int = 300) -> dict[str, Any]:
    """All numbers of this benchmark."""
    torch.set_num_threads(1)
    space = load_space("shufflenetv2", preset="paper", input_shape=(3, 224, 224), n_classes=1000)
    rng = np.random.default_rng(0)
    cold_s = seconds(lambda: to_onnx(graph_of(space, space.sample(rng))))
    table_s = seconds(space.cost_table)
    archs = [space.sample(rng) for _ in range(n_candidates)]
    for arch in archs:
        to_onnx(graph_of(space, arch))
    timings = [1e3 * seconds(lambda a=a: to_onnx(graph_of(space, a))) for a in archs]
    sizes = []
    for arch in archs:
        candidate = to_onnx(graph_of(space, arch))
        spec = json.dumps(candidate.weights_spec.to_dict(), separators=(",", ":"))
        sizes.append(len(candidate.model) + len(spec))

    x = torch.zeros(1, *space.input_shape)
    dynamo, legacy, latency = [], [], []
    for arch in archs[:exports]:
        network = space.network(arch).eval()
        programs: list[Any] = []

        def export_dynamo(network: Any = network, programs: list[Any] = programs) -> None:
            programs.append(torch.onnx.export(network, (x,), dynamo=True, verbose=False))

        def export_legacy(network: Any = network) -> None:
            torch.onnx.export(network, (x,), io.BytesIO(), dynamo=False, opset_version=17)

        dynamo.append(1e3 * seconds(export_dynamo))
        legacy.append(1e3 * seconds(export_legacy))
        graph = graph_of(space, arch)
        ours = to_onnx(graph, graph_weights(graph, network)).model
        theirs = programs[0].model_proto.SerializeToString()
        gc.collect()
        latency.append(paired_latency_ms(ours, theirs, tuple(x.shape), pairs))
    candidate_ms = statistics.median(timings)
    return {
        "candidate_ms": candidate_ms,
        "candidate_p99_ms": float(np.quantile(timings, 0.99)),
        "cold_s": cold_s,
        "cost_table_s": table_s,
        "bytes_sent_median": int(statistics.median(sizes)),
        "bytes_sent_max": max(sizes),
        "dynamo_ms": statistics.median(dynamo),
        "legacy_ms": statistics.median(legacy),
        "dynamo_ratio": statistics.median(dynamo) / candidate_ms,
        "legacy_ratio": statistics.median(legacy) / candidate_ms,
        "latency": latency,
        "n_candidates": n_candidates,
        "torch": torch.__version__,
        "onnxruntime": ort.__version__,
    }


def within_budget(result: dict[str, Any]) -> bool:
    """Whether the budgets of the design hold."""
    return bool(
        result["candidate_ms"] <= BUDGET_MS
        and result["bytes_sent_max"] <= BUDGET_BYTES
        and result["dynamo_ratio"] >= BUDGET_RATIO
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the numbers; exit 1 where a budget does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pairs", type=int, default=300, help="timed pairs per net")
    options = parser.parse_args(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = measure(pairs=options.pairs)
    result["within_budget"] = within_budget(result)
    if options.json:
        print(json.dumps(result))
    else:
        print("20-block ShuffleNetV2, 224 px, one thread")
        print(f"  candidate, warm     {result['candidate_ms']:9.2f} ms (p99 "
              f"{result['candidate_p99_ms']:.2f})   budget {BUDGET_MS:g}")  # fmt: skip
        print(f"  first candidate     {1e3 * result['cold_s']:9.0f} ms")
        print(f"  cost table          {1e3 * result['cost_table_s']:9.0f} ms")
        print(f"  bytes sent          {result['bytes_sent_median']:9d} (max "
              f"{result['bytes_sent_max']})   budget {BUDGET_BYTES}")  # fmt: skip
        print(f"  torch, dynamo=True  {result['dynamo_ms']:9.0f} ms   "
              f"{result['dynamo_ratio']:.0f} x   budget {BUDGET_RATIO:g} x")  # fmt: skip
        print(f"  torch, legacy       {result['legacy_ms']:9.0f} ms   "
              f"{result['legacy_ratio']:.0f} x")  # fmt: skip
        for pair in result["latency"]:
            low, high = pair["ratio_quartiles"]
            print(f"  latency graph / exported  {pair['graph_ms']:.2f} / {pair['exported_ms']:.2f}"
                  f" ms   ratio {pair['ratio']:.3f} [{low:.3f}, {high:.3f}]")  # fmt: skip
    return 0 if result["within_budget"] else 1


if __name__ == "__main__":
    sys.exit(main())
