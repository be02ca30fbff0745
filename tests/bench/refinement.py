"""Is a measurement worth more during the search than before or after it?

Run it with ``python -m tests.bench.refinement [--data DIR] [--json]``. Four ways to spend the same
allowance of measurements are compared, all with the same searches and the same final front:

* ``front``: N0 networks for the table; everything else may go into the final front,
* ``table``: everything but the final front goes into the table, before the search,
* ``random``: N0 networks for the table, then candidates by chance during the search,
* ``refine``: N0 networks for the table, then active refinement during the search.

Without ``--data`` the device is synthetic: additive with interactions and noise, known truth. With
a folder of public measurements (:mod:`tests.bench.oracle_data`) the networks in a file are the
space, their measured latency is the truth, and the objective is a proxy that rises with MACs;
series that the gates refuse or call sums of blocks are left out. No board of ours is measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from latency_tables import LatencyModel
from latency_tables.arch import Arch, Decision
from latency_tables.cost_table import CostTable
from latency_tables.errors import LimitError
from latency_tables.estimate import Estimate
from pipeline.search.config import SearchConfig
from pipeline.search.evaluation import Evaluation, Scored
from pipeline.search.evaluator import Evaluator, LatencySource
from pipeline.search.evolution import EvolutionSearch
from pipeline.search.front import choose_winner
from pipeline.search.journal import Journal
from pipeline.search.learning import Learning
from pipeline.search.limits import Limit
from pipeline.search.measuring import LiveMeasurer
from pipeline.search.operators import archs_of, crossover, genes_of, mutate, pairs
from pipeline.search.refinement import Wanted, worth_measuring
from pipeline.search.refiner import Refiner
from pipeline.search.run_search import search

N0, BUDGET, FRONT = 20, 40, 8
CONFIG = SearchConfig(population=20, parents=8, crossover=8, mutation=8, generations=10)
QUANTILE = 0.4
"""The limit, as a quantile of the true latencies."""
NEAR = 0.2
"""Share of the limit within which a candidate counts as near it."""
_CHUNK = 16
WAYS = ("front", "table", "random", "refine")

Genes = NDArray[np.int64]
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """The objective in place of an accuracy."""

    accuracy: float
    loss: float = 0.0
    n_images: int = 0
    n_calibration_images: int = 0
    bn_policy: str = ""


@dataclass(kw_only=True, eq=False)
class World:
    """A space with the true latency and objective of networks; ``genes`` (N, n) are drawn from it.

    ``pool``: whether those are all networks there are (then the search stays among them).
    """

    name: str
    table: CostTable
    genes: Genes
    truth_ms: Array
    objective: Callable[[Genes], Array]
    truth_of: Callable[[Sequence[Arch]], Array]
    pool: bool
    groups: Sequence[object] | None = None
    stages: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """Of the space."""
        return tuple(self.table.decisions)

    def canonical(self, arch: Arch) -> Arch:
        """Every genome is a network of its own."""
        return arch

    def accuracy(self, arch: Arch) -> Scored:
        """The objective."""
        found = float(self.objective(self.table.genes([arch]))[0])
        return Reached(accuracy=found)

    def measure(self, archs: Sequence[Arch]) -> list[Estimate]:
        """True latencies as a device would give them."""
        return [
            Estimate(latency_ms=t, low_ms=t, high_ms=t, key="truth", source="measured", n=1)
            for t in self.truth_of(archs).tolist()
        ]


class PoolSearch(EvolutionSearch):
    """Evolution where only some networks exist: a child is the nearest one that was not scored."""

    def __init__(self, world: World, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.genes = world.genes
        self.archs = archs_of(world.decisions, world.genes)

    def ask(self) -> list[Arch]:
        """The first generation at random, then children of the best."""
        if self.done:
            return []
        rng, n = self._rng("pool"), self.config.population
        taken: dict[Arch, Arch] = {}
        parents = self.best(self.config.parents)
        if not parents:
            self._first(rng.permutation(len(self.archs)), taken, n)
            return list(taken.values())
        genes = genes_of(self.space.decisions, [e.arch for e in parents])
        first, second = pairs(rng, len(genes), n // 2)
        drawn = mutate(rng, genes[rng.integers(0, len(genes), n - n // 2)], self.sizes, 0.1)
        for child in [*crossover(rng, genes[first], genes[second]), *drawn]:
            distance = (self.genes != child).sum(axis=1)
            self._first(np.argsort(distance, kind="stable"), taken, len(taken) + 1)
        return list(taken.values())

    def _first(self, order: Genes, taken: dict[Arch, Arch], n: int) -> None:
        """Take networks in this order, where they are new and keep the limits, up to n."""
        for start in range(0, len(order), _CHUNK):
            if len(taken) >= n:
                break
            self._admit([self.archs[i] for i in order[start : start + _CHUNK]], taken, n)


@dataclass
class Device:
    """Measures at once what is asked."""

    world: World
    n: int = 0

    def submit(self, archs: Sequence[Arch], *, campaign: str) -> tuple[Arch, ...]:
        """Take note."""
        return tuple(archs)

    def collect(self, ticket: object) -> list[Estimate]:
        """Answer."""
        assert isinstance(ticket, tuple)
        return self(ticket)

    def __call__(self, archs: Sequence[Arch]) -> list[Estimate]:
        """Answer now."""
        self.n += len(archs)
        return self.world.measure(archs)


def compare(world: World, way: str, seed: int) -> dict[str, float]:
    """One search: what its winner reaches, and what its predictions were worth."""
    rng = np.random.default_rng(seed)
    n_table = N0 + (BUDGET if way == "table" else 0)
    order = rng.permutation(len(world.genes))[:n_table]  # nested: the first N0 are the same
    known = dict(zip(archs_of(world.decisions, world.genes[order]), order.tolist(), strict=True))
    device, bound = Device(world), float(np.quantile(world.truth_ms, QUANTILE))
    limit = Limit(metric="latency_ms", bound=bound, device="device")

    def refit(measured: Mapping[Arch, Estimate]) -> LatencySource:
        found = {**dict(zip(known, world.measure(list(known)), strict=True)), **measured}
        model = LatencyModel.fit(
            world.table,
            list(found),
            [e.latency_ms for e in found.values()],
            stages=world.stages or None,
        )
        return model.predict

    began = time.perf_counter()
    evaluator = Evaluator(
        space=world,
        cost_table=world.table,
        score=world.accuracy,
        limits=[limit],
        latency={"device": refit({})},
    )
    make = (lambda *a, **k: PoolSearch(world, *a, **k)) if world.pool else EvolutionSearch
    searcher = make(CONFIG, space=world, violations=evaluator.violations, seed=seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        Journal.open(Path(folder) / "search.jsonl", {}) as journal,
    ):
        refiner = Refiner(
            sources={"device": device},
            learning=Learning(refit={"device": refit}, evaluator=evaluator),
            journal=journal,
            budget=BUDGET,
        )
        choose = by_chance if way == "random" else worth_measuring
        with mock.patch("pipeline.search.refiner.worth_measuring", choose):
            refines = refiner if way in ("random", "refine") else None
            found = search(searcher, evaluator, journal, refiner=refines)
        first = max(
            (e for e in found.archive if e.feasible), key=lambda e: e.accuracy, default=None
        )
        measurer = LiveMeasurer(sources={"device": device}, journal=journal)
        size = FRONT + (BUDGET if way == "front" else 0)
        try:
            front = choose_winner(found.archive, [limit], measurer, front_size=size, extra=FRONT)
        except LimitError:
            front = None
    best = _best(world, bound)
    kept = [] if front is None else [p.verdict == "keeps" for p in front.points if p.on_front]
    left = [e.latency["device"] for e in found.archive]
    truth = world.truth_of([e.arch for e in found.archive]).tolist()
    errors = [
        abs(e.latency_ms / t - 1)
        for e, t in zip(left, truth, strict=True)
        if e.source == "predicted" and abs(t / bound - 1) <= NEAR
    ]
    return {
        "winner": float(front is not None),
        "objective": 0.0 if front is None else front.winner.evaluation.accuracy / best,
        "first_keeps": float(first is not None and float(world.truth_of([first.arch])[0]) <= bound),
        "front_keeps": statistics.fmean(kept) if kept else 0.0,
        "mape_near_limit": statistics.fmean(errors) if errors else float("nan"),
        "measured": float(n_table + device.n),
        "seconds": time.perf_counter() - began,
    }


def by_chance(
    evaluations: Sequence[Evaluation],
    limits: Sequence[Limit],
    device: str,
    *,
    n: int,
    exclude: Collection[Arch] = (),
) -> list[Wanted]:
    """Any candidates that were not measured."""
    rng = np.random.default_rng(len(evaluations))
    open_ = [
        e for e in evaluations if e.latency[device].source == "predicted" and e.arch not in exclude
    ]
    return [
        Wanted(
            arch=open_[i].arch,
            predicted=open_[i].latency[device],
            limit_worth=0.0,
            front_worth=0.0,
        )
        for i in rng.permutation(len(open_))[:n]
    ]


def _best(world: World, bound: float) -> float:
    """The best objective under the limit, among the networks that are known."""
    return float(world.objective(world.genes[world.truth_ms <= bound]).max())


def synthetic(seed: int) -> World:
    """A device that is made up: additive with couplings of neighbours, 1 % noise per network."""
    from pipeline.spaces import load_space

    space = load_space("shufflenetv2", preset="paper", input_shape=(3, 224, 224), n_classes=1000)
    table = space.cost_table()
    sizes = [len(d.choices) for d in table.decisions]
    rng = np.random.default_rng([seed, 7])
    entry = rng.uniform(0.2, 1.8, size=(len(sizes), max(sizes)))
    gain = np.sort(rng.uniform(0.0, 1.0, size=(len(sizes), max(sizes))), axis=1)
    macs = table.column("macs", rng.integers(0, sizes, size=(500, len(sizes))))
    scale = 10.0 / float(macs.mean())
    rows = np.arange(len(sizes))

    def truth(genes: Genes) -> Array:
        ms = 2.0 + scale * table.column("macs", genes) + entry[rows, genes].sum(axis=1)
        coupled = (genes[:, 1:] == genes[:, :-1]).sum(axis=1)
        noise = np.sin(genes @ (1.0 + rows**2) * 12.9898 + seed)  # fixed per network
        return np.asarray(ms * (1 + 0.01 * coupled) * (1 + 0.01 * noise))

    def objective(genes: Genes) -> Array:
        return np.asarray(gain[rows, genes].sum(axis=1) / len(sizes))

    genes = rng.integers(0, sizes, size=(20_000, len(sizes)))
    return World(
        name="synthetic",
        table=table,
        genes=genes,
        truth_ms=truth(genes),
        objective=objective,
        truth_of=lambda archs: truth(table.genes(archs)),
        pool=False,
    )


def measured_worlds(folder: Path, pattern: str) -> Iterator[World]:
    """One world per public series that was measured on whole networks."""
    from tests.bench.oracle_data import read_folder
    from tests.bench.oracle_data.gating import judge

    for series in read_folder(folder)[0]:
        if not fnmatch(series.name, pattern):
            continue
        verdict = judge(series)
        _, keep = np.unique(series.genes, axis=0, return_index=True)
        keep = np.sort(keep)
        if verdict.refused or not verdict.measured:
            continue
        genes, times = series.genes[keep], series.latency_ms[keep]
        table = series.space.table
        at = {tuple(g): i for i, g in enumerate(genes.tolist())}
        macs = np.sort(table.column("macs", genes))

        def objective(genes: Genes, table: CostTable = table, macs: Array = macs) -> Array:
            return np.asarray(np.searchsorted(macs, table.column("macs", genes)) / len(macs))

        def truth_of(
            archs: Sequence[Arch],
            table: CostTable = table,
            at: Mapping[tuple[int, ...], int] = at,
            times: Array = times,
        ) -> Array:
            return np.array([times[at[tuple(g)]] for g in table.genes(archs).tolist()])

        yield World(
            name=series.name,
            table=table,
            genes=genes,
            truth_ms=times,
            objective=objective,
            truth_of=truth_of,
            pool=True,
            stages=series.space.stages,
        )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Mean over seeds of every world and way."""
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name, of_seed in _worlds(options):
        found = {
            way: [compare(of_seed(seed), way, seed) for seed in range(options.seeds)]
            for way in WAYS
        }
        rows[name] = {way: _means(runs) for way, runs in found.items()}
        if not options.json:
            _print(name, rows[name])
    return {"n0": N0, "budget": BUDGET, "seeds": options.seeds, "rows": rows}


def _worlds(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[int], World]]]:
    if options.data is None:
        yield "synthetic", synthetic
        return
    for world in measured_worlds(options.data, options.series):
        yield world.name, lambda seed, world=world: world  # type: ignore[misc]


def _means(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over runs; of the objective also its standard error."""
    objective = [r["objective"] for r in runs]
    spread = statistics.stdev(objective) if len(runs) > 1 else float("nan")
    means = {"objective_se": spread / len(runs) ** 0.5}
    for key in runs[0]:
        values = [r[key] for r in runs if not np.isnan(r[key])]
        means[key] = statistics.fmean(values) if values else float("nan")
    return means


_SHOWN = (
    ("winner", "winner", ".0%"),
    ("objective", "objective", ".2%"),
    ("s.e.", "objective_se", ".2%"),
    ("first keeps", "first_keeps", ".0%"),
    ("front keeps", "front_keeps", ".0%"),
    ("MAPE at limit", "mape_near_limit", ".1%"),
    ("measured", "measured", ".1f"),
    ("s", "seconds", ".1f"),
)
"""Heading, score and format of each column."""


def _print(name: str, ways: Mapping[str, Mapping[str, float]]) -> None:
    print(f"\n{name}\n        " + "".join(f"{title:>14}" for title, _, _ in _SHOWN))
    for way, found in ways.items():
        row = "".join(f"{found[key]:14{style}}" for _, key, style in _SHOWN)
        print(f"  {way:<6}{row}", flush=True)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of public measurements")
    parser.add_argument("--series", default="*", help="which series, as in 'mnasnet/*'")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options)
    if options.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
