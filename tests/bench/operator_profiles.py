"""Do times of operators, from a few profiled networks, make the latency model better?

Run it with ``python -m tests.bench.operator_profiles [--space NAME] [--preset P] [--size PX]
[--runtime R] [--json]``. The device is this machine. Networks are measured in one session; those
that met the machine in another state are measured once more, as ``hilnas run`` does. Of the first
networks of a random order the model is fitted without times of operators, with them as one more
cost (``column``) and as a ``prior``, and asked about the others. ``macs`` and ``profiled`` are
straight lines through one cost.

What the measurements themselves are worth is printed first: no method can be more accurate than
the latencies that it is judged by.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agents.devices import load_device
from latency_tables import LatencyModel, TableStore
from latency_tables.arch import Arch
from latency_tables.cost_table import CostTable
from latency_tables.errors import MeasurementError
from latency_tables.operator_times import (
    NS_PER_MS,
    PROFILED_COLUMN,
    OperatorTimes,
    ProfiledNetwork,
    profiled_prior,
)
from latency_tables.records import Measurement
from pipeline.config import DeviceConfig
from pipeline.export.record import graph_of
from pipeline.run.devices import (
    RunDevice,
    closest_sessions,
    drifted_networks,
    measure_job,
    space_info,
)
from pipeline.run.operator_profiles import (
    N_PROFILED,
    OperatorProfile,
    choose_networks,
    profile_job,
    profiled_table,
)
from pipeline.spaces import load_space
from pipeline.spaces.base import Space, net_id

SIZES = (8, 12, 20, 40)
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Networks of one space, their latencies (N,) in ms, and their profiles as they are asked."""

    space: Space
    archs: tuple[Arch, ...]
    latency_ms: Array
    profile: Callable[[Arch], OperatorProfile]

    def profiled(self, chosen: Sequence[Arch]) -> tuple[CostTable, OperatorTimes]:
        """The cost table with the column that follows from some networks."""
        at = {arch: i for i, arch in enumerate(self.archs)}
        times = OperatorTimes.fit(
            ProfiledNetwork(
                graph=graph_of(self.space, arch),
                lines=self.profile(arch).lines,
                latency_ns=float(self.latency_ms[at[arch]]) * NS_PER_MS,
            )
            for arch in chosen
        )
        return profiled_table(self.space, self.space.cost_table(), times), times


def networks(space: Space, n: int) -> list[Arch]:
    """The cheapest and the dearest network, then random ones; no two isomorphic."""
    table, rng = space.cost_table(), np.random.default_rng(0)
    found = {net_id(space, a): a for a in (table.minimum("macs")[1], table.maximum("macs")[1])}
    while len(found) < n:
        arch = space.sample(rng)
        found.setdefault(net_id(space, arch), arch)
    return list(found.values())


def measure(device: RunDevice, archs: Sequence[Arch]) -> list[Measurement]:
    """One record per network, in their order."""
    device.measure(archs)
    again = set(drifted_networks(device.records(archs)))
    device.measure([arch for arch in archs if net_id(device.space, arch) in again])
    return closest_sessions(device.records(archs))


def line(cost: Array, latency_ms: Array, asked: Array) -> Array:
    """Predictions of the straight line with the least relative squares."""
    rows = np.stack([np.ones_like(cost), cost], axis=1) / latency_ms[:, None]
    offset, slope = np.linalg.lstsq(rows, np.ones_like(cost), rcond=None)[0]
    return np.asarray(offset + slope * asked)


def compare(data: Measured, *, n_test: int, n_orders: int) -> list[dict[str, Any]]:
    """A row of scores per number of networks and method, means over random orders."""
    plain = data.space.cost_table()
    genes, truth = plain.genes(data.archs), data.latency_ms
    rows = []
    for n in SIZES:
        errors: dict[str, list[Array]] = {}
        for order in range(n_orders):
            # the extremes are in every design of hilnas, so they are in every training set
            others = 2 + np.random.default_rng(order).permutation(len(truth) - 2)
            train, test = [0, 1, *others[: n - 2].tolist()], others[-n_test:]
            archs = [data.archs[i] for i in train]
            table, _ = data.profiled(choose_networks(plain, archs, N_PROFILED))
            macs, profiled = (table.column(c, genes) for c in ("macs", PROFILED_COLUMN))
            found = {
                "without": LatencyModel.fit(plain, archs, truth[train]).predict_ms(genes[test]),
                "column": LatencyModel.fit(table, archs, truth[train]).predict_ms(genes[test]),
                "prior": LatencyModel.fit(
                    plain, archs, truth[train], priors={"operators": profiled_prior(table)}
                ).predict_ms(genes[test]),
                "macs": line(macs[train], truth[train], macs[test]),
                "profiled": line(profiled[train], truth[train], profiled[test]),
            }
            for method, predicted in found.items():
                errors.setdefault(method, []).append(np.abs(predicted / truth[test] - 1.0))
        for method, each in errors.items():
            all_errors = np.concatenate(each)
            rows.append(
                {
                    "n": n,
                    "method": method,
                    "mape": float(all_errors.mean()),
                    "median_error": float(np.median(all_errors)),
                    "within_5": float((all_errors <= 0.05).mean()),
                    "within_10": float((all_errors <= 0.10).mean()),
                }
            )
    return rows


def main() -> None:
    """Print what was measured on which machine, and the scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="nasbench_macro")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--measuring", default="screening")
    parser.add_argument("--networks", type=int, default=100)
    parser.add_argument("--orders", type=int, default=6)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    n_test = given.networks - max(SIZES)
    if n_test < 10:
        parser.error(f"--networks {given.networks}: at least {max(SIZES) + 10}")
    space = load_space(
        given.space, preset=given.preset, input_shape=(3, given.size, given.size), n_classes=10
    )
    with tempfile.TemporaryDirectory() as folder, TableStore(Path(folder, "t.sqlite")) as store:
        store.add_space(space_info(space))
        spec = replace(load_device("local"), workdir=Path(folder, "agent"), runtime=given.runtime)
        config = DeviceConfig(name="local", measuring=given.measuring)
        device = RunDevice(config, spec, space=space, store=store, seed=0)
        archs = networks(space, given.networks)
        began = time.perf_counter()
        records = measure(device, archs)
        measure_s = time.perf_counter() - began
        known: dict[Arch, OperatorProfile] = {}

        def profile(arch: Arch) -> OperatorProfile:
            if arch not in known:
                said = profile_job(device.measurer, measure_job(space, arch))
                if isinstance(said, str):
                    raise MeasurementError("NO_PROFILE", said)
                known[arch] = said
            return known[arch]

        data = Measured(
            space=space,
            archs=tuple(archs),
            latency_ms=np.array([m.latency_ms for m in records]),
            profile=profile,
        )
        with device.measurer.connected():
            began = time.perf_counter()
            _, times = data.profiled(choose_networks(space.cost_table(), archs, N_PROFILED))
            profile_s = time.perf_counter() - began
            rows = compare(data, n_test=n_test, n_orders=given.orders)
        about = describe(device, space, records)
        device.close()
    about |= {"measure_s": measure_s, "profile_s": profile_s}
    about |= {f"profile: {name}": value for name, value in asdict(times.report).items()}
    about["profile: unmatched"] = len(times.report.unmatched)
    show(about, rows, as_json=given.json)


def describe(device: RunDevice, space: Space, records: Sequence[Measurement]) -> dict[str, Any]:
    """The machine, the runtime, and how exact the latencies are."""
    identity = device.measurer.fingerprint().identity
    half = [(m.statistics.ci_high_ns - m.statistics.ci_low_ns) / m.statistics.median_ns / 2
            for m in records if m.statistics is not None]  # fmt: skip
    return {
        "machine": platform.machine(),
        "processor": f"{identity.get('soc')}, {identity.get('cpu_count')} cores",
        "load": os.getloadavg()[1],
        "runtime": " ".join(str(device.deployment.runtime[k]) for k in ("name", "version")),
        "threads": device.deployment.threads,
        "space": f"{space.name}/{space.preset} {space.input_shape}",
        "n_networks": len(records),
        "fastest_ms": min(m.latency_ms for m in records),
        "slowest_ms": max(m.latency_ms for m in records),
        "half_interval (median)": statistics.median(half),
    }


def show(about: dict[str, Any], rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print the figures."""
    if as_json:
        print(json.dumps({"about": about, "rows": rows}, indent=2))
        return
    for name, value in about.items():
        print(f"{name:<26} {value:.3g}" if isinstance(value, float) else f"{name:<26} {value}")
    print(f"{'N':>4} {'method':<10} {'MAPE':>7} {'median':>7} {'±5 %':>7} {'±10 %':>7}")
    for row in rows:
        scores = (row[k] for k in ("mape", "median_error", "within_5", "within_10"))
        print(f"{row['n']:>4} {row['method']:<10} " + " ".join(f"{s:>7.1%}" for s in scores))


if __name__ == "__main__":
    main()
