"""A small world to search in: a space with exact costs, latencies and accuracies by formula."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latency_tables.arch import Arch, Decision
from latency_tables.cost_table import Column, CostTable, Factor
from latency_tables.errors import DeviceError
from latency_tables.estimate import Estimate
from pipeline.search.config import SearchConfig
from pipeline.search.evaluation import Score
from pipeline.search.evaluator import Evaluator
from pipeline.search.front import pareto_front
from pipeline.search.in_loop import InLoop
from pipeline.search.journal import Journal
from pipeline.search.learning import BackgroundSource, InTurn, Learning, Refit, Reviser
from pipeline.search.limits import Limit
from pipeline.search.remeasuring import Remeasurer
from pipeline.search.run_search import (
    Progress,
    SearchResult,
    make_searcher,
    search,
    search_identity,
)


@dataclass
class World:
    """A space of ``n`` decisions with 3 choices. Decision i costs (i + 1) × choice MMACs.

    Latency is 1 ms + 0.1 ms per MMAC; accuracy rises with every gene, with saturation and a
    coupling of neighbours, so that the best subnet under a limit is not the largest one below it.
    """

    n: int = 6
    merged: bool = False  # canonical form ignores the last gene
    scored: Counter[Arch] = field(default_factory=Counter)
    timed: Counter[Arch] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.decisions = tuple(
            Decision(label=f"block{i}", choices=("skip", "k3", "k5")) for i in range(self.n)
        )
        base = [1e6, 2e3, 8e3, 4e3]
        step = np.array([1e6, 1e3, 4e3, 2e3])
        factors = [Factor(name="stem", labels=(), values=np.array(base))]
        for i, decision in enumerate(self.decisions):
            values = np.arange(3)[:, None] * (i + 1) * step
            factors.append(Factor(name=decision.label, labels=(decision.label,), values=values))
        self.table = CostTable(
            self.decisions,
            [
                Column(name="macs", unit="MAC"),
                Column(name="params", unit="1"),
                Column(name="weight_bytes", unit="B"),
                Column(name="activation_peak_bytes", unit="B", reduce="max"),
            ],
            factors,
        )

    def canonical(self, arch: Arch) -> Arch:
        if not self.merged:
            return arch
        return Arch({k: v for k, v in arch.items() if k != self.decisions[-1].label})

    def latencies_ms(self, archs: Sequence[Arch]) -> list[float]:
        macs = self.table.column("macs", self.table.genes(archs))
        return [float(t) for t in 1.0 + 1e-7 * macs]

    def latencies(self, archs: Sequence[Arch]) -> list[Estimate | DeviceError]:
        self.timed.update(archs)
        return [estimate(t, source="predicted") for t in self.latencies_ms(archs)]

    def accuracy(self, arch: Arch) -> float:
        genes = np.array(arch.genes(self.decisions), dtype=float)
        single = np.sqrt(genes) * (1.0 + 0.3 * np.sin(np.arange(self.n)))
        coupled = (genes[1:] == genes[:-1]).sum() * 0.2
        return float(single.sum() + coupled) / (2 * self.n)

    def score(self, arch: Arch) -> Score:
        self.scored[arch] += 1
        return Score(accuracy=self.accuracy(arch), loss=1.0, n_images=100, bn_policy="recalibrate")

    def everything(self) -> list[Arch]:
        genes = np.indices((3,) * self.n).reshape(self.n, -1).T
        return [self.table.arch(row) for row in genes]

    def evaluator(self, *limits: Limit, **options: Any) -> Evaluator:
        options.setdefault("latency", {"board": self.latencies})
        options.setdefault("score", self.score)
        return Evaluator(space=self, cost_table=self.table, limits=limits, supernet="w1", **options)

    def run(
        self,
        path: Path,
        config: SearchConfig,
        *limits: Limit,
        seed: int = 0,
        on_progress: Callable[[Progress], None] | None = None,
        evaluator: Evaluator | None = None,
        boards: Mapping[str, BackgroundSource] | None = None,
        refiner: Callable[[Evaluator, Journal], Reviser] | None = None,
        refit: Mapping[str, Refit] | None = None,
        every: int | None = None,
        **options: Any,
    ) -> SearchResult:
        evaluator = evaluator or self.evaluator(*limits)
        searcher = make_searcher(config, evaluator, seed=seed, **options)
        identity = search_identity(config, evaluator, seed=seed, space_id="world")
        with Journal.open(path, identity) as journal:
            learning = Learning(refit=refit or {}, evaluator=evaluator)
            loop = InLoop(
                sources=boards or {},
                evaluator=evaluator,
                journal=journal,
                learning=learning,
                budget=config.measure_budget,
            )
            again = Remeasurer(
                sources=boards or {},
                learning=learning,
                journal=journal,
                every=every or 1_000,
                front=pareto_front,
            )
            measured = boards is not None and config.measure == "all"
            revisers: list[Reviser] = [loop, again] if measured else [again]
            return search(
                searcher,
                evaluator,
                journal,
                in_loop=loop if measured else None,
                refiner=refiner(evaluator, journal) if refiner else InTurn(revisers),
                on_progress=on_progress,
            )


def estimate(latency_ms: float, *, source: Any = "measured", spread: float = 0.1) -> Estimate:
    """A latency with an interval of ± ``spread`` of it."""
    return Estimate(
        latency_ms=latency_ms,
        low_ms=latency_ms * (1 - spread),
        high_ms=latency_ms * (1 + spread),
        key="k",
        source=source,
        n=90,
    )


@pytest.fixture
def make_estimate() -> Callable[..., Estimate]:
    return estimate


@pytest.fixture
def make_world() -> type[World]:
    return World


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def journal_path(tmp_path: Path) -> Path:
    return tmp_path / "search.jsonl"
