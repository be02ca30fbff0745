"""Time to obtain an architecture at a cost: exact sampler against drawing until one fits.

Run it with ``python -m tests.bench.sampler [--json]``. Both use the same cost table and vectorised
look-ups, so the rival is as fast as it can be.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

import numpy as np

from latency_tables.cost_table import CostTable
from latency_tables.sampler import CostSampler, RejectionSampler, make_sampler
from pipeline.spaces import load_space

BUDGET_MS = 0.2
LEVELS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
N_EXACT, N_REJECTION, HALF_WIDTH = 1_000, 50, 0.0025
"""Draws, and the half width of a level as a fraction of its cost (±0.25 %)."""


def draw_ms(sampler: CostSampler, low: float, high: float, n: int) -> tuple[float, int]:
    """Median time per architecture over five calls, and how many draws violate the range."""
    times, violations = [], 0
    for repeat in range(5):
        rng = np.random.default_rng(repeat)
        start = time.perf_counter()
        genes = sampler.sample(rng, low, high, n)
        times.append(1e3 * (time.perf_counter() - start) / n)
        costs = sampler.table.column(sampler.column, genes)
        violations += int(((costs < low) | (costs > high)).sum())
    return statistics.median(times), violations


def measure(table: CostTable, column: str = "macs") -> dict[str, Any]:
    """Times per draw at several levels of one column."""
    start = time.perf_counter()
    exact = make_sampler(table, column)
    build_ms = 1e3 * (time.perf_counter() - start)
    rival = RejectionSampler(table, column)
    rows = []
    for level, cost in zip(LEVELS, exact.quantiles(LEVELS), strict=True):
        low, high = cost * (1 - HALF_WIDTH), cost * (1 + HALF_WIDTH)
        exact_ms, violations = draw_ms(exact, low, high, N_EXACT)
        rejection_ms, _ = draw_ms(rival, low, high, N_REJECTION)
        rows.append(
            {
                "level": level,
                "cost": float(cost),
                "probability": exact.probability(low, high),
                "exact_ms": exact_ms,
                "rejection_ms": rejection_ms,
                "ratio": rejection_ms / exact_ms,
                "violations": violations,
            }
        )
    return {
        "method": exact.method,
        "build_ms": build_ms,
        "rows": rows,
        "within_budget": all(r["exact_ms"] <= BUDGET_MS and not r["violations"] for r in rows),
    }


def main(arguments: list[str] | None = None) -> int:
    """Print the numbers; exit 1 where the budget does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    space = load_space("shufflenetv2", preset="paper", input_shape=(3, 224, 224), n_classes=1000)
    result = measure(space.cost_table())
    if options.json:
        print(json.dumps(result))
        return 0 if result["within_budget"] else 1
    print(f"4^20 ShuffleNetV2 genomes by MACs ±{100 * HALF_WIDTH:g} %, {result['method']},")
    print(f"table built in {result['build_ms']:.1f} ms, budget {BUDGET_MS} ms per draw")
    print("  quantile      MACs      share   exact ms  rejection ms   ratio  violations")
    for row in result["rows"]:
        print(f"  {row['level']:8.3f}  {row['cost'] / 1e6:7.1f} M  {row['probability']:8.5f}"
              f"  {row['exact_ms']:9.4f}  {row['rejection_ms']:12.4f}  {row['ratio']:6.1f}"
              f"  {row['violations']:10d}")  # fmt: skip
    return 0 if result["within_budget"] else 1


if __name__ == "__main__":
    sys.exit(main())
