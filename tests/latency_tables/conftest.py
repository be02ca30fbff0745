"""Records and cost tables that the tests of tables, models and the oracle share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from latency_tables.arch import Arch, Decision
from latency_tables.cost_table import Column, CostTable, Factor
from latency_tables.keys import net_id
from latency_tables.records import DeviceFingerprint, Measurement, Statistics

RUNTIME = {
    "name": "onnxruntime",
    "version": "1.32.0",
    "provider": "CPUExecutionProvider",
    "graph_optimization": "all",
}
DEVICE = DeviceFingerprint(identity={"soc": "test", "cores": 2}, state={"load": 0.1})


def statistics(latency_ms: float = 5.0, noise: float = 0.01, **fields: Any) -> Statistics:
    """Statistics around a latency; three rounds that differ by ``noise``."""
    median = round(latency_ms * 1e6)
    spread = round(median * noise)
    values: dict[str, Any] = {
        "n_samples": 90,
        "n_rounds": 3,
        "median_ns": median,
        "min_ns": median - 2 * spread - median % 997,
        "p10_ns": median - spread,
        "mean_ns": median + spread // 3,
        "std_ns": spread,
        "mad_ns": spread,
        "p90_ns": median + spread,
        "p95_ns": None,
        "p99_ns": None,
        "ci_low_ns": median - spread,
        "ci_high_ns": median + spread,
        "round_medians_ns": (median - spread, median, median + spread),
        "first_ns": 2 * median,
        "load_ns": 10 * median,
        "warmup_runs": 12,
        "converged": True,
        "ratio_to_reference": 1.25,
    }
    return Statistics(**(values | fields))


def measurement(
    number: int = 0,
    latency_ms: float = 5.0,
    *,
    run: str = "run-1",
    space_id: str = "space",
    noise: float = 0.01,
    **fields: Any,
) -> Measurement:
    """A usable record of network ``number``."""
    record = Measurement(
        net_id=net_id(space_id, f"graph-{number}"),
        arch=Arch({"net": number}),
        space_id=space_id,
        onnx_sha256=f"{number:064x}",
        artefact_sha256=f"{number:064x}",
        runtime=RUNTIME,
        threads=2,
        cores=(0, 1),
        device_name="local",
        device_fp=DEVICE.fingerprint,
        statistics=statistics(latency_ms, noise),
        provenance={"session_id": run, "utc": f"2026-11-22T10:00:{number % 60:02d}+00:00"},
    )
    return replace(record, **fields)


def cost_table(n_blocks: int = 8, n_choices: int = 3, seed: int = 0) -> CostTable:
    """A chain of blocks with random costs, a stem, and a peak that does not add up."""
    rng = np.random.default_rng(seed)
    decisions = [
        Decision(label=f"b{i}", choices=tuple(f"c{j}" for j in range(n_choices)))
        for i in range(n_blocks)
    ]
    columns = [
        Column(name="macs", unit="MAC"),
        Column(name="activation_elements", unit="1"),
        Column(name="n_operators", unit="1"),
        Column(name="activation_peak_bytes", unit="byte", reduce="max"),
    ]
    factors = [Factor(name="stem", labels=(), values=np.array([3.0, 2.0, 1.0, 8.0]))]
    factors += [
        Factor(name=f"block{i}", labels=(d.label,), values=rng.uniform(1, 5, (n_choices, 4)))
        for i, d in enumerate(decisions)
    ]
    return CostTable(decisions, columns, factors)


@pytest.fixture(scope="session")
def make_measurement() -> Callable[..., Measurement]:
    return measurement


@pytest.fixture(scope="session")
def make_statistics() -> Callable[..., Statistics]:
    return statistics


@pytest.fixture(scope="session")
def make_cost_table() -> Callable[..., CostTable]:
    return cost_table


@pytest.fixture(scope="session")
def device() -> DeviceFingerprint:
    return DEVICE
