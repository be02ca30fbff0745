"""Spaces whose segments depend on several decisions, or are absent, get exact cost tables."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latency_tables.arch import Arch, Decision
from latency_tables.costs import graph_costs
from latency_tables.errors import SpaceError, UnsupportedOperatorError
from latency_tables.sampler import EliminationSampler, EnumerationSampler
from pipeline.export.record import COLUMNS, graph_of, space_cost_table
from pipeline.spaces.base import Segment

DECISIONS = (
    Decision(label="width", choices=(8, 16)),
    Decision(label="depth", choices=(0, 1, 2)),
    Decision(label="kernel1", choices=(1, 3)),
    Decision(label="kernel2", choices=(1, 3)),
)


@dataclass
class ElasticSpace:
    """A stem whose width all later segments share, and blocks that exist up to the depth."""

    space_id: str
    block_labels: tuple[str, ...] = ("width", "depth")
    activation: type[nn.Module] = nn.ReLU
    input_shape: tuple[int, int, int] = (3, 8, 8)
    decisions: tuple[Decision, ...] = field(default=DECISIONS)

    def input_shape_of(self, arch: Arch) -> tuple[int, int, int]:
        return self.input_shape

    def positions(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        blocks = ((f"block{i}", ("width", "depth", f"kernel{i}")) for i in (1, 2))
        return (("stem", ("width",)), *blocks, ("head", ("width",)))

    def segments(self, arch: Arch) -> tuple[Segment, ...]:
        width, activation = int(arch["width"]), self.activation

        def block(kernel: int) -> nn.Module:
            conv = nn.Conv2d(width, width, kernel, padding=kernel // 2)
            return nn.Sequential(conv, nn.BatchNorm2d(width), activation())

        stem = Segment(name="stem", labels=("width",), key=("stem", width),
                       build=lambda: nn.Conv2d(3, width, 3))  # fmt: skip
        blocks = [
            Segment(
                name=f"block{i}",
                labels=(*self.block_labels, f"kernel{i}"),
                key=("block", arch[f"kernel{i}"]),
                build=lambda kernel=int(arch[f"kernel{i}"]): block(kernel),
            )
            for i in range(1, int(arch["depth"]) + 1)
        ]

        def classifier() -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(width * 36, 5))

        head = Segment(name="head", labels=("width",), key="head", build=classifier)
        return (stem, *blocks, head)


def all_archs() -> list[Arch]:
    sizes = (range(len(d.choices)) for d in DECISIONS)
    return [Arch.from_genes(DECISIONS, genes) for genes in itertools.product(*sizes)]


def test_coupled_and_absent_segments_add_up_to_the_graph() -> None:
    space = ElasticSpace("elastic")
    table = space_cost_table(space)
    for arch in all_archs():
        graph, costs = graph_costs(graph_of(space, arch)), table.costs(arch)
        assert {k: costs[k] for k in graph} == graph


def test_an_absent_segment_costs_nothing() -> None:
    table = space_cost_table(ElasticSpace("elastic"))
    block = next(f for f in table.factors if f.name == "block2")
    assert block.labels == ("width", "depth", "kernel2")
    assert (block.values[:, :2] == 0).all()
    assert (block.values[:, 2, :, [c.name for c in COLUMNS].index("macs")] > 0).all()


def test_couplings_are_counted_exactly() -> None:
    table = space_cost_table(ElasticSpace("elastic"))
    counted, listed = EliminationSampler(table, "macs"), EnumerationSampler(table, "macs")
    for limit in np.unique([table.cost(arch, "macs") for arch in all_archs()]):
        assert counted.count(high=limit) == listed.count(high=limit)


def test_a_segment_and_its_position_must_agree_on_what_they_depend_on() -> None:
    with pytest.raises(SpaceError, match=r"'block1' depends on \('width', 'kernel1'\)"):
        space_cost_table(ElasticSpace("wrong", block_labels=("width",)))


def test_an_unsupported_operator_is_named_with_its_segment() -> None:
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sort(x).values

    with pytest.raises(UnsupportedOperatorError, match=r"aten::sort.*segment 'block1'"):
        space_cost_table(ElasticSpace("sorting", activation=Sorted))
