"""How fast the latency model is chosen, solved and asked, and how good it is beside rivals.

Run it with ``python -m tests.bench.latency_model [--json]``. Latencies are synthetic (additive
with interactions and 2 % noise) on the ShuffleNetV2 space: this times the code and checks the
arithmetic; accuracy on real boards is a matter of real tables.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from latency_tables.predictor import LatencyModel
from pipeline.spaces import load_space

N_TRAIN, N_TEST, N_PREDICT = 500, 2_000, 100_000
BUDGET_CHOOSE_S, BUDGET_REFIT_S, BUDGET_ARCHS_PER_S = 30.0, 1.0, 50_000


def within(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Share within 10 %."""
    return float((np.abs(predicted / truth - 1) <= 0.1).mean())


def measure() -> dict[str, Any]:
    """Times and shares within 10 % of held-out networks."""
    space = load_space("shufflenetv2", preset="paper", input_shape=(3, 224, 224), n_classes=1000)
    table = space.cost_table()
    rng = np.random.default_rng(0)
    sizes = [len(d.choices) for d in space.decisions]
    genes = rng.integers(0, sizes, size=(N_TRAIN + N_TEST, len(sizes)))
    entry = rng.uniform(0.5, 2.0, size=(len(sizes), max(sizes)))
    truth = 5 + entry[np.arange(len(sizes)), genes].sum(axis=1)
    truth *= 1 + 0.05 * (genes[:, 0] == genes[:, 1])
    seen = truth * np.exp(rng.normal(0, 0.02, len(truth)))
    train, test = slice(0, N_TRAIN), slice(N_TRAIN, None)
    archs = [table.arch(g) for g in genes[train]]
    began = time.perf_counter()
    model = LatencyModel.fit(table, archs, seen[train])
    choose_s = time.perf_counter() - began
    began = time.perf_counter()
    model.refit(archs, seen[train])
    refit_s = time.perf_counter() - began
    many = rng.integers(0, sizes, size=(N_PREDICT, len(sizes)))
    began = time.perf_counter()
    model.predict_all(many)
    per_s = N_PREDICT / (time.perf_counter() - began)
    found = {
        "forms": dict(model.diagnostics.forms),
        "choose_500_s": choose_s,
        "refit_500_s": refit_s,
        "intervals_per_s": per_s,
        "within_budget": choose_s <= BUDGET_CHOOSE_S
        and refit_s <= BUDGET_REFIT_S
        and per_s >= BUDGET_ARCHS_PER_S,
    }
    one_hot = np.concatenate([np.eye(s)[genes[:, i]] for i, s in enumerate(sizes)], axis=1)
    macs = table.column("macs", genes)
    for n in (20, 50, N_TRAIN):
        few = LatencyModel.fit(table, archs[:n], seen[:n])
        boosted = HistGradientBoostingRegressor(random_state=0, min_samples_leaf=5)
        boosted.fit(one_hot[:n], seen[:n])
        slope, offset = np.polyfit(macs[:n], seen[:n], 1)
        found[f"within_10_percent_at_{n}"] = {
            "ours": within(few.predict_ms(genes[test]), truth[test]),
            "boosting": within(boosted.predict(one_hot[test]), truth[test]),
            "macs": within(slope * macs[test] + offset, truth[test]),
        }
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    found = measure()
    if parser.parse_args().json:
        print(json.dumps(found, indent=2))
    else:
        forms = ", ".join(f"{form} {share:.0%}" for form, share in found["forms"].items())
        print(f"chosen from {N_TRAIN} networks: {forms}")
        print(f"choosing               {found['choose_500_s']:8.2f} s ({BUDGET_CHOOSE_S:g})")
        print(f"solving again          {found['refit_500_s']:8.2f} s ({BUDGET_REFIT_S:g})")
        print(
            f"with intervals         {found['intervals_per_s']:8,.0f} /s ({BUDGET_ARCHS_PER_S:,})"
        )
        for n in (20, 50, N_TRAIN):
            row = found[f"within_10_percent_at_{n}"]
            print(f"within 10 %, N = {n:<4} " + "  ".join(f"{k} {v:.0%}" for k, v in row.items()))
    sys.exit(0 if found["within_budget"] else 1)


if __name__ == "__main__":
    main()
