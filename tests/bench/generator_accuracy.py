"""How well the architecture generator keeps its levels, and how many architectures it writes.

Run it with ``python -m tests.bench.generator_accuracy [SPACE:PRESET:PX …] [--column C …]
[--steps N] [--seeds N] [--imitation W] [--json]``. A generator is trained without a task: on the
resource loss and, unless ``--imitation 0`` leaves that out, by imitation of the exact sampler; then
it is settled. No supernet is needed, only cost tables. Per space and cost it prints, in per cent of
the target:

* ``argmax``: |cost - target| / target of the most probable architecture *before any repair*, mean
  and worst over the levels that hold at least 100 architectures within ±1 %;
* ``between``: the same at 50 targets from the lowest to the highest level;
* ``draws``: mean of the same over random draws of all levels;
* ``entropy``: mean over levels of the entropy of an architecture in nats, beside the logarithm of
  the number of architectures within ±1 % of the target (more is only possible beyond 1 %);
* ``distinct``: different architectures among 64 draws, mean over levels;
* CPU seconds of one thread.

``latency_ms`` is the additive latency of a model fitted on 60 networks with made-up latencies.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch

from latency_tables.cost_table import CostTable
from latency_tables.sampler import make_sampler
from pipeline.generator.config import GeneratorConfig
from pipeline.generator.generator import ArchitectureGenerator
from pipeline.generator.levels import level_weights
from pipeline.generator.objective import FEW, NEAR, GeneratorObjective
from pipeline.generator.soft_cost import SoftCost
from tests.pipeline.generator.tables import even_targets, space_of, with_latency

CASES = (
    "autoformer:tiny:224",
    "autoformer:micro:8",
    "bignas:tiny:8",
    "attentivenas:tiny:8",
    "bignas:paper:320",
    "attentivenas:paper:288",
)
COLUMNS = ("macs", "latency_ms")
N_LEVELS, N_BETWEEN, N_DRAWN = 8, 50, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """See the module; misses are in per cent, entropies in nats."""

    n_judged: int
    argmax_mean: float
    argmax_worst: float
    between_mean: float
    between_worst: float
    draws_mean: float
    entropy: float
    log_count: float
    distinct: float
    cpu_s: float


def train_and_judge(
    table: CostTable, column: str, *, steps: int, seed: int, config: GeneratorConfig
) -> Accuracy:
    """Train a generator without a task and see what it writes."""
    torch.manual_seed(seed)
    targets = even_targets(table, column, N_LEVELS)
    start = time.process_time()
    generator = ArchitectureGenerator(table.decisions, n_levels=len(targets), hidden=config.hidden)
    cost = SoftCost(table, column)
    GeneratorObjective(generator, cost, targets=targets, config=config).fit(steps)
    cpu_s = time.process_time() - start

    def misses(points: list[float]) -> np.ndarray:
        archs = [generator.argmax(level_weights(targets, point)) for point in points]
        costs = table.column(column, table.genes(archs))
        missed: np.ndarray = 100 * np.abs(costs / np.array(points) - 1)
        return missed

    sampler = make_sampler(table, column, approximate=True)
    counts = np.array([sampler.count(t * (1 - NEAR), t * (1 + NEAR)) for t in targets])
    judged = misses(targets)[counts >= FEW]
    between = misses(np.linspace(targets[0], targets[-1], N_BETWEEN).tolist())
    with torch.no_grad():
        draws = generator.draws(
            torch.eye(len(targets)).repeat_interleave(N_DRAWN, dim=0), temperature=1.0
        )
    goals = torch.tensor(targets).double().repeat_interleave(N_DRAWN)
    archs = draws.archs
    groups = [archs[i * N_DRAWN : (i + 1) * N_DRAWN] for i in range(len(targets))]
    return Accuracy(
        n_judged=len(judged),
        argmax_mean=float(judged.mean()) if len(judged) else math.nan,
        argmax_worst=float(judged.max()) if len(judged) else math.nan,
        between_mean=float(between.mean()),
        between_worst=float(between.max()),
        draws_mean=100 * float((cost.of(draws.one_hot) / goals - 1).abs().mean()),
        entropy=float(draws.entropies.sum(dim=1).mean()),
        log_count=float(np.log(np.maximum(counts, 1)).mean()),
        distinct=float(np.mean([len(set(group)) for group in groups])),
        cpu_s=cpu_s,
    )


def main() -> None:
    """Train, judge and print."""
    parser = argparse.ArgumentParser(description="misses of the architecture generator")
    parser.add_argument("cases", nargs="*", default=CASES, metavar="SPACE:PRESET:PX")
    parser.add_argument("--column", nargs="+", default=COLUMNS)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--imitation", type=float, default=GeneratorConfig().imitation)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = GeneratorConfig(imitation=options.imitation)
    if not options.json:
        print("| space | cost | seed | levels | argmax mean / worst | between mean / worst | draws "
              "| entropy (log count) | distinct of 64 | CPU s |")  # fmt: skip
        print("|" + "---|" * 10)
    for case in options.cases:
        name, preset, px = case.split(":")
        table = with_latency(space_of(name, preset, int(px)).cost_table())
        for column in options.column:
            for seed in range(options.seeds):
                found = train_and_judge(
                    table, column, steps=options.steps, seed=seed, config=config
                )
                if options.json:
                    print(json.dumps({"case": case, "column": column, "seed": seed}
                                     | asdict(found)), flush=True)  # fmt: skip
                    continue
                print(
                    f"| {case} | {column} | {seed} | {found.n_judged} "
                    f"| {found.argmax_mean:.2f} / {found.argmax_worst:.2f} "
                    f"| {found.between_mean:.2f} / {found.between_worst:.2f} "
                    f"| {found.draws_mean:.2f} | {found.entropy:.1f} ({found.log_count:.1f}) "
                    f"| {found.distinct:.0f} | {found.cpu_s:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
