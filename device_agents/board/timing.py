"""The timed loop: warm-up until steady, then blocks of iterations. Standard library only.

A sample is the duration of one call, or the mean of ``calls_per_sample`` calls for a network
faster than 100 µs, where reading the clock would weigh in. Only ``perf_counter_ns`` is used.
"""

from __future__ import annotations

import gc
from statistics import mean, median, pstdev
from time import perf_counter_ns
from typing import Any, Callable, Dict, List, Sequence

SHORT_CALL_NS = 100_000
MAX_SAMPLES_PER_BLOCK = 100_000
WARM_WINDOW = 5

Call = Callable[[], Any]


def measure_net(
    call: Call, plan: Dict[str, Any], between: Callable[[], None] = lambda: None
) -> Dict[str, Any]:
    """Warm up, then time the blocks that ``plan`` (a profile's settings) asks for.

    ``between`` is called before each block, outside of what is timed. ``busy_ns`` of the answer is
    the time from the first warm-up run to the end of the last block.
    """
    started_ns = perf_counter_ns()
    warm = warm_up(
        call,
        min_runs=plan["warmup_min_runs"],
        cap_ns=plan["warmup_cap_ns"],
        block_ns=plan["warmup_block_ns"],
        tolerance=plan["warmup_tolerance"],
    )
    typical_ns = max(1, int(warm["typical_ns"]))
    calls = 1 if typical_ns >= SHORT_CALL_NS else -(-SHORT_CALL_NS // typical_ns)
    counts = plan.get("block_runs")
    calls = 1 if counts else calls
    blocks: List[List[int]] = []
    for index in range(plan["blocks"]):
        between()
        if counts:
            blocks.append(time_block(call, 0, counts[index], 1))
        else:
            blocks.append(time_block(call, plan["min_block_ns"], plan["min_iterations"], calls))
    ended_ns = perf_counter_ns()
    return {
        "warmup_runs": warm["runs"],
        "steady": warm["steady"],
        "calls_per_sample": calls,
        "block_medians_ns": [int(median(block)) for block in blocks],
        "block_counts": [len(block) for block in blocks],
        "samples_ns": thin(blocks, plan["max_samples"]),
        "min_ns": min(min(block) for block in blocks),
        "busy_ns": max(1, ended_ns - started_ns),
    }


def warm_up(
    call: Call, *, min_runs: int, cap_ns: int, block_ns: int, tolerance: float
) -> Dict[str, Any]:
    """Run until the last five short blocks agree and do not slope, or until ``cap_ns``.

    A ``cap_ns`` of 0 means exactly ``min_runs`` runs.
    """
    runs = 0
    medians: List[float] = []
    samples: List[int] = []
    start = perf_counter_ns()
    while runs < min_runs:
        before = perf_counter_ns()
        call()
        samples.append(perf_counter_ns() - before)
        runs += 1
    steady = False
    while not steady and perf_counter_ns() - start < cap_ns:
        samples = time_block(call, block_ns, 1, 1)
        runs += len(samples)
        medians.append(median(samples))
        steady = is_steady(medians[-WARM_WINDOW:], tolerance)
    typical = median(samples) if samples else 0
    return {"runs": runs, "steady": steady, "typical_ns": typical}


def is_steady(medians: Sequence[float], tolerance: float) -> bool:
    """Whether block medians scatter less than ``tolerance`` and their ends agree as well.

    >>> is_steady([100, 101, 100, 99, 100], 0.02), is_steady([110, 107, 104, 102, 100], 0.05)
    (True, False)
    """
    if len(medians) < WARM_WINDOW:
        return False
    middle = mean(medians)
    slope = abs(mean(medians[-2:]) - mean(medians[:2]))
    return pstdev(medians) < tolerance * middle and slope < tolerance * middle


def time_block(call: Call, min_ns: int, min_samples: int, calls: int) -> List[int]:
    """Durations in ns of at least ``min_samples`` samples that together last ``min_ns``."""
    samples: List[int] = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = perf_counter_ns() + min_ns
        while len(samples) < MAX_SAMPLES_PER_BLOCK:
            before = perf_counter_ns()
            for _ in range(calls):
                call()
            after = perf_counter_ns()
            samples.append((after - before) // calls)
            if after >= end and len(samples) >= min_samples:
                break
    finally:
        if collecting:
            gc.enable()
    return samples


def thin(blocks: Sequence[Sequence[int]], limit: int) -> List[List[int]]:
    """Every k-th sample of each block, so that all blocks together hold at most ``limit``.

    An even stride keeps order (for autocorrelation) and percentiles.

    >>> thin([[1, 2, 3, 4], [5, 6]], 3)
    [[1, 3], [5]]
    """
    total = sum(len(block) for block in blocks)
    stride = max(1, -(-total // max(1, limit)))
    kept = [list(block[::stride]) for block in blocks]
    while sum(len(block) for block in kept) > limit:
        stride += 1
        kept = [list(block[::stride]) for block in blocks]
        if all(len(block) <= 1 for block in kept):
            break
    return kept
