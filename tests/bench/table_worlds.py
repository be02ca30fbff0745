"""Search spaces whose every subnet was trained, and measured where a device is named.

Read from a folder of public data: ``nasbench/nas_bench_macro.csv.gz`` (6,561 subnets, accuracy and
MACs), ``nasbench/nb201.csv.gz`` (15,625 cells, accuracy) and ``latency/*.parquet`` (6,466 of those
cells measured on a Raspberry Pi 5; cells that compute the same share a measurement). A genome has
the numbers of its canonical form, which is the network that would be deployed.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import moocore
import numpy as np
from numpy.typing import NDArray

from latency_tables.arch import Arch
from latency_tables.estimate import Estimate
from pipeline.search.evaluation import Score
from pipeline.search.evaluator import Evaluator
from pipeline.search.limits import Limit
from pipeline.search.operators import all_genes, archs_of, sizes_of
from pipeline.spaces import load_space
from pipeline.spaces.base import Space

Array = NDArray[np.float64]
Genes = NDArray[np.int64]

WORST_ERROR = 10.0
"""Per cent above the lowest error; less accurate subnets are of no interest."""
PI5 = ("pi5", "onnx", "cifar100")
"""Device, framework and task of the latencies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A space with the accuracy (per cent) and the cost of every genome.

    ``cost_name`` is "macs", or a device whose latency in ms the cost is. ``bound`` limits the cost
    where a search is to find one subnet.
    """

    name: str
    space: Space
    genes: Genes
    accuracy: Array
    cost: Array
    cost_name: str
    bound: float
    place: dict[Arch, int] = field(default_factory=dict)
    front: Array = field(default_factory=lambda: np.empty((0, 2)))

    def evaluator(self, *, limited: bool) -> Evaluator:
        """A fresh one, that looks everything up."""
        timed = self.cost_name != "macs"
        limit = Limit(
            metric="latency_ms" if timed else "macs",
            bound=self.bound,
            device=self.cost_name if timed else None,
        )
        return Evaluator(
            space=self.space,
            cost_table=self.space.cost_table(),
            score=self.score,
            limits=[limit] if limited else [],
            latency={self.cost_name: self.latencies} if timed else {},
        )

    def score(self, arch: Arch) -> Score:
        """The trained accuracy."""
        return Score(accuracy=float(self.accuracy[self.place[arch]]), loss=0.0)

    def latencies(self, archs: Sequence[Arch]) -> list[Estimate]:
        """The measured latencies."""
        found = [float(self.cost[self.place[arch]]) for arch in archs]
        return [
            Estimate(latency_ms=t, low_ms=t, high_ms=t, key="public", source="measured", n=1)
            for t in found
        ]

    def rows(self, at: Sequence[int]) -> Array:
        """Error and cost (N, 2) of genomes by place, both to be minimised."""
        return np.stack([100.0 - self.accuracy[at], self.cost[at]], axis=1)

    def hypervolume(self, rows: Array) -> float:
        """Share of the best possible hypervolume that a set of rows (N, 2) reaches.

        The reference is an error of ``WORST_ERROR`` points above the lowest one, and the cost of
        the subnet that has it: what is worse in either counts nothing.
        """
        low = self.front.min(axis=0)
        high = self.front.max(axis=0)
        high[0] = low[0] + WORST_ERROR
        mine, best = (
            float(moocore.hypervolume((x - low) / (high - low), ref=[1.0, 1.0]))
            for x in (rows, self.front)
        )
        return mine / best

    def best_within(self) -> float:
        """The highest accuracy that the limit allows."""
        return float(self.accuracy[self.cost <= self.bound].max())


def worlds(data: Path) -> Iterator[World]:
    """NAS-Bench-Macro by MACs and NAS-Bench-201 by latency on a Raspberry Pi 5."""
    yield macro(data)
    yield nasbench201(data)


def macro(data: Path) -> World:
    """NAS-Bench-Macro: mean CIFAR-10 accuracy of three trainings, MACs; limit 60 M."""
    space = load_space("nasbench_macro", preset="paper", input_shape=(3, 32, 32), n_classes=10)
    genes = all_genes(sizes_of(space.decisions))
    with gzip.open(data / "nasbench" / "nas_bench_macro.csv.gz", "rt", newline="") as stream:
        rows = {row["arch"]: row for row in csv.DictReader(stream)}
    found = [rows["".join(map(str, g))] for g in genes.tolist()]
    return _world(
        name="NAS-Bench-Macro, MACs",
        space=space,
        genes=genes,
        accuracy=np.array([float(row["mean_acc"]) for row in found]),
        cost=np.array([float(row["flops"]) for row in found]),
        cost_name="macs",
        bound=60e6,
    )


def nasbench201(data: Path) -> World:
    """NAS-Bench-201: CIFAR-10 test accuracy after 200 epochs, Pi 5 latency; limit 40 %."""
    from pyarrow import parquet

    from pipeline.spaces.nasbench201 import PUBLISHED_NAMES

    space = load_space("nasbench201", preset="paper", input_shape=(3, 32, 32), n_classes=10)
    genes = all_genes(sizes_of(space.decisions))
    cells = parquet.read_table(data / "latency" / "nb201_arch_latency.parquet")
    measured = parquet.read_table(data / "latency" / "nb201_hw360_measured.parquet")
    with gzip.open(data / "nasbench" / "nb201.csv.gz", "rt", newline="") as stream:
        accuracies = {row["arch"]: float(row["cifar10_test_200"]) for row in csv.DictReader(stream)}
    keys = zip(*(measured[c].to_pylist() for c in ("device", "framework", "task")), strict=True)
    times = {
        index: ms
        for index, key, ms in zip(
            measured["arch_idx"].to_pylist(),
            keys,
            measured["lat_ms_median"].to_pylist(),
            strict=True,
        )
        if key == PI5
    }
    same_as = dict(
        zip(cells["arch_str"].to_pylist(), cells["hw360_rep_arch_idx"].to_pylist(), strict=True)
    )
    # the space's decisions are edges e01, e02, e12, e03, e13, e23, as in the benchmark's names
    at = {}
    for text in accuracies:
        operators = re.findall(r"([a-z_0-9]+)~", text)
        at[tuple(PUBLISHED_NAMES.index(operator) for operator in operators)] = text
    texts = [at[tuple(g)] for g in genes.tolist()]
    cost = np.array([times[same_as[text]] for text in texts])
    return _world(
        name="NAS-Bench-201, Pi 5 latency",
        space=space,
        genes=genes,
        accuracy=np.array([accuracies[text] for text in texts]),
        cost=cost,
        cost_name="pi5",
    )


def _world(*, space: Space, genes: Genes, accuracy: Array, cost: Array, **named: object) -> World:
    archs = archs_of(space.decisions, genes)
    place = {arch: i for i, arch in enumerate(archs)}
    canonical = np.array([place[space.canonical(arch)] for arch in archs])
    accuracy, cost = accuracy[canonical], cost[canonical]
    if "bound" not in named:
        named["bound"] = float(np.quantile(cost, 0.4))
    rows = np.stack([100.0 - accuracy, cost], axis=1)
    front = np.unique(rows[moocore.is_nondominated(rows)], axis=0)
    return World(
        space=space, genes=genes, accuracy=accuracy, cost=cost, place=place, front=front, **named
    )  # type: ignore[arg-type]
