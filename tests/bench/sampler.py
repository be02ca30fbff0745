"""Time to obtain an architecture at a cost: exact sampler, rejection, and a generator.

Run it with ``python -m tests.bench.sampler [SPACE …] [--column C] [--half-width W] [--json]``.
Times are CPU times of one thread, the fastest of some calls that all do the same. The rivals, in
the same run:

* rejection on the same cost table with vectorised look-ups, as fast as it can be;
* rejection with a counter that runs the network (fvcore): a few counts are timed, and the time of a
  draw is that times 1 / P(level). Labelled so: nobody waits for the tails;
* an LSTM generator of hidden size 64 with one head per decision, as ShiftNAS has one. It is not
  trained, so this bounds its time from below, and what it draws keeps no level.

``latency_ms`` is the additive latency of a model that was fitted on 60 networks with made-up
latencies (MACs with a factor per operator and 2 % noise).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latency_tables.cost_table import CostTable
from latency_tables.predictor import LatencyModel
from latency_tables.sampler import CostSampler, RejectionSampler, make_sampler
from pipeline.export.reference_count import count_with_fvcore
from pipeline.search.operators import random_genes, sizes_of
from pipeline.spaces import SPACES, load_space
from pipeline.spaces.base import Space

BUDGET_MS = 0.2
LEVELS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
N_EXACT, N_SINGLE, N_REJECTION, N_COUNTS = 1_000, 50, 50, 3
RARE = 2e-4
"""Levels with a smaller share are not drawn by rejection; their time follows from the others'."""
SMALL_IMAGES = ("nasbench_macro", "nasbench201")


class Generator(nn.Module):
    """Draws one choice after the other from an LSTM that reads the choice before."""

    def __init__(self, table: CostTable, hidden: int = 64) -> None:
        super().__init__()
        sizes = [len(d.choices) for d in table.decisions]
        self.cell = nn.LSTMCell(hidden, hidden)
        self.heads = nn.ModuleList(nn.Linear(hidden, n) for n in sizes)
        self.read = nn.ModuleList(nn.Embedding(n, hidden) for n in sizes)
        self.start = nn.Parameter(torch.zeros(hidden))

    @torch.inference_mode()
    def forward(self, n: int) -> Tensor:
        """Genes (n, n_decisions)."""
        word, state, genes = self.start.expand(n, -1), None, []
        for head, read in zip(self.heads, self.read, strict=True):
            state = self.cell(word, state)
            gene = torch.multinomial(head(state[0]).softmax(-1), 1)[:, 0]
            genes.append(gene)
            word = read(gene)
        return torch.stack(genes, dim=1)


def fastest_ms(work: Callable[[], object], per: int, repeats: int = 5) -> float:
    """CPU time of the fastest of some calls of ``work``, divided by ``per``, in milliseconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(1e3 * (time.process_time() - start) / per)
    return min(times)


def draw_ms(sampler: CostSampler, low: float, high: float, n: int, at_once: int) -> float:
    """Time per architecture when ``n`` are drawn, ``at_once`` in each call."""

    def draw() -> None:
        rng = np.random.default_rng(0)
        for _ in range(n // at_once):
            sampler.sample(rng, low, high, at_once)

    return fastest_ms(draw, n, repeats=20 if at_once == 1 else 5)


def violations(sampler: CostSampler, low: float, high: float) -> int:
    """How many of many draws, some of them single ones, break the range."""
    rng = np.random.default_rng(1)
    drawn = [sampler.sample(rng, low, high, n) for n in (*[1] * N_SINGLE, N_EXACT)]
    costs = sampler.table.column(sampler.column, np.concatenate(drawn))
    return int(((costs < low) | (costs > high)).sum())


def with_latency(table: CostTable) -> CostTable:
    """The table with the latency column of a model fitted on 60 made-up measurements."""
    rng = np.random.default_rng(0)
    genes = random_genes(rng, sizes_of(table.decisions), 60)
    factors = rng.uniform(0.5, 2.0, len(table.factors))
    macs = table.factor_values(genes)[:, :, [c.name for c in table.columns].index("macs")]
    latency = (1.0 + macs @ factors / 1e8) * rng.normal(1.0, 0.02, 60)
    archs = [table.arch(g) for g in genes]
    return LatencyModel.fit(table, archs, latency, forms=("table",)).with_latency_column(table)


def count_ms(space: Space) -> float:
    """Time of counting the MACs of one random network by running it, the network made."""
    rng = np.random.default_rng(0)
    archs = [space.sample(rng) for _ in range(N_COUNTS)]
    networks = [(space.network(a), space.input_shape_of(a)) for a in archs]
    start = time.process_time()
    for network, shape in networks:
        count_with_fvcore(network, shape)
    return 1e3 * (time.process_time() - start) / N_COUNTS


def measure(space: Space, column: str, half_width: float) -> dict[str, Any]:
    """Times per draw at several levels of one column of one space."""
    table = space.cost_table()
    if column == "latency_ms":
        table = with_latency(table)
    start = time.process_time()
    exact = make_sampler(table, column)
    build_ms = 1e3 * (time.process_time() - start)
    rival, generator, rows = RejectionSampler(table, column), Generator(table).eval(), []
    draws_ms = fastest_ms(
        lambda: table.column(column, random_genes(np.random.default_rng(0), sizes_of(
            table.decisions), 20_000)), 20_000)  # fmt: skip
    fvcore_ms = count_ms(space) if column == "macs" else None
    for level, cost in zip(LEVELS, exact.quantiles(LEVELS).tolist(), strict=True):
        low, high = cost * (1 - half_width), cost * (1 + half_width)
        share = exact.probability(low, high)
        drawn = share >= RARE
        rows.append(
            {
                "level": level,
                "cost": cost,
                "probability": share,
                "exact_ms": draw_ms(exact, low, high, N_EXACT, N_EXACT),
                "exact_single_ms": draw_ms(exact, low, high, N_SINGLE, 1),
                "violations": violations(exact, low, high),
                "rejection_ms": draw_ms(rival, low, high, N_REJECTION, N_REJECTION)
                if drawn
                else draws_ms / share,
                "rejection_extrapolated": not drawn,
                "fvcore_rejection_ms_extrapolated": fvcore_ms and fvcore_ms / share,
            }
        )
    return {
        "space": space.name,
        "column": column,
        "genomes": table.n_archs,
        "method": exact.method,
        "build_ms": build_ms,
        "fvcore_ms_per_count": fvcore_ms,
        "generator_ms_batch_1": fastest_ms(lambda: [generator(1) for _ in range(10)], 10),
        "generator_ms_batch_256": fastest_ms(lambda: generator(256), 256),
        "rows": rows,
        "within_budget": all(
            max(r["exact_ms"], r["exact_single_ms"]) <= BUDGET_MS and not r["violations"]
            for r in rows
        ),
    }


def shipped(name: str) -> Space:
    """A space at its published size."""
    side = 32 if name in SMALL_IMAGES else 224
    preset = "tiny" if name == "autoformer" else "paper"
    return load_space(name, preset=preset, input_shape=(3, side, side), n_classes=1000)


def show(found: dict[str, Any], half_width: float) -> None:
    """Print one space."""
    print(
        f"{found['space']}: {found['genomes']:.3g} genomes by {found['column']} "
        f"±{100 * half_width:g} %, {found['method']}, built in {found['build_ms']:.0f} ms"
    )
    print(
        f"  generator, no level guaranteed: {found['generator_ms_batch_1']:.2f} ms (batch 1), "
        f"{found['generator_ms_batch_256']:.4f} ms (batch 256)"
    )
    print("  quantile       share   exact, ms   one at a time  rejection, ms   fvcore, s"
          "  violations")  # fmt: skip
    for row in found["rows"]:
        fvcore = row["fvcore_rejection_ms_extrapolated"]
        print(f"  {row['level']:8.3f}  {100 * row['probability']:8.4f} %  {row['exact_ms']:9.4f}"
              f"  {row['exact_single_ms']:14.3f}  {row['rejection_ms']:12.4g}"
              f"{'*' if row['rejection_extrapolated'] else ' '}"
              f"  {'-' if fvcore is None else format(fvcore / 1e3, '9.4g'):>9}*"
              f"  {row['violations']:10d}")  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Print the numbers; exit 1 where the budget does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spaces", nargs="*", choices=[*SPACES, []], metavar="SPACE")
    parser.add_argument("--column", default="macs")
    parser.add_argument("--half-width", type=float, default=0.0025)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = []
    for name in options.spaces or SPACES:
        results.append(measure(shipped(name), options.column, options.half_width))
        if not options.json:
            show(results[-1], options.half_width)
    if options.json:
        print(json.dumps(results))
    else:
        print(f"budget {BUDGET_MS} ms per draw; * = one try / share of the level, not waited for")
    return 0 if all(r["within_budget"] for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
