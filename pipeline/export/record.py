"""From torch modules to Graphs: the only place where the two meet.

A module runs once on the meta device (shapes, no numbers) under a dispatch mode that sees every
operator before torch decomposes it (``record_module.py``); each becomes an operator of a Graph
(``record_ops.py``), and batch norms are folded into convolutions (``record_builder.py``). Weights
are not looked at: a folded weight remembers from which tensors it follows, and
:func:`graph_weights` computes it from a trained network (``record_weights.py``).

A space's candidates are composed from recorded segments: :class:`GraphRecorder` records each
(segment key, input shape) once.

>>> from pipeline.spaces import load_space
>>> space = load_space("nasbench_macro", preset="paper", input_shape=(3, 32, 32), n_classes=10)
>>> from latency_tables.arch import Arch
>>> arch = Arch.from_genes(space.decisions, (2, 2, 2, 1, 2, 2, 2, 0))
>>> graph_of(space, arch).macs()
85164544
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from latency_tables.arch import Arch, Choice
from latency_tables.cost_table import Column, CostTable, Factor
from latency_tables.costs import graph_costs
from latency_tables.elimination import MAX_ENTRIES
from latency_tables.errors import (
    ExportError,
    SpaceError,
    TableTooWideError,
    UnsupportedOperatorError,
)
from latency_tables.graph import Graph, compose
from latency_tables.onnx_writer import OnnxCandidate, header_bytes, to_onnx
from pipeline.export.record_module import record
from pipeline.export.record_weights import graph_weights

if TYPE_CHECKING:
    from pipeline.spaces.base import Segment, Space

__all__ = [
    "COLUMNS",
    "Exported",
    "Fragment",
    "GraphRecorder",
    "PositionFragments",
    "export_or_fallback",
    "fragment_costs",
    "graph_of",
    "graph_weights",
    "position_fragments",
    "record",
    "recorder_of",
    "space_cost_table",
]

log = logging.getLogger(__name__)

COLUMNS = (
    Column(name="macs", unit="MAC"),
    Column(name="params", unit="parameter"),
    Column(name="weight_bytes", unit="byte"),
    Column(name="size_bytes", unit="byte"),
    Column(name="activation_bytes", unit="byte"),
    Column(name="activation_peak_bytes", unit="byte", reduce="max"),
    Column(name="macs_pointwise", unit="MAC"),
    Column(name="macs_depthwise", unit="MAC"),
    Column(name="macs_spatial", unit="MAC"),
    Column(name="macs_matmul", unit="MAC"),
    Column(name="n_operators", unit="operator"),
    Column(name="activation_elements", unit="element"),
    Column(name="elements_pointwise", unit="element"),
    Column(name="elements_depthwise", unit="element"),
    Column(name="elements_pooled", unit="element"),
    Column(name="elements_gated", unit="element"),
)
"""Columns of a space's cost table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """What was recorded of one segment: its graph, and the parameters of its module (with BN)."""

    graph: Graph
    n_parameters: int


class GraphRecorder:
    """Records each (segment key, input shape) once and composes networks from them."""

    def __init__(self) -> None:
        self._fragments: dict[tuple[Hashable, tuple[int, ...]], Fragment] = {}

    def __len__(self) -> int:
        return len(self._fragments)

    def fragment(self, segment: Segment, input_shape: tuple[int, ...]) -> Fragment:
        """The recorded segment. Raises UnsupportedOperatorError naming operator and segment."""
        key = (segment.key, input_shape)
        if key not in self._fragments:
            try:
                module = _built(segment)
                tensors = (*module.parameters(), *module.buffers())
                own = all(t.device.type == "meta" for t in tensors)
                self._fragments[key] = Fragment(
                    graph=record(module, input_shape, own=own),
                    n_parameters=sum(p.numel() for p in module.parameters()),
                )
            except UnsupportedOperatorError as error:
                where = f"segment {segment.name!r}"
                raise UnsupportedOperatorError(error.operator, where=where) from error
        return self._fragments[key]

    def fragments(self, space: Space, arch: Arch) -> list[tuple[str, Fragment]]:
        """Name and fragment of every segment of ``arch``, in order."""
        shape: tuple[int, ...] = (1, *space.input_shape_of(arch))
        pieces = []
        for segment in space.segments(arch):
            fragment = self.fragment(segment, shape)
            pieces.append((segment.name, fragment))
            shape = fragment.graph.output.shape
        return pieces

    def graph(self, space: Space, arch: Arch) -> Graph:
        """The graph of ``arch``."""
        return compose([(name, f.graph) for name, f in self.fragments(space, arch)])


def _built(segment: Segment) -> nn.Module:
    """The segment's module on the meta device; on the CPU where indices lose their values there."""
    with torch.device("meta"):
        module = segment.build()
    indices = [
        name
        for name, buffer in module.named_buffers()
        if buffer.device.type == "meta"
        and not buffer.is_floating_point()
        and not name.endswith("num_batches_tracked")
    ]
    return segment.build() if indices else module


@lru_cache(maxsize=32)
def recorder_of(space_id: str) -> GraphRecorder:
    """The recorder that all users of one space share."""
    return GraphRecorder()


def graph_of(space: Space, arch: Arch) -> Graph:
    """The graph of an architecture, composed from segments that were recorded once.

    Raises:
        UnsupportedOperatorError: names the operator and the segment.
    """
    return recorder_of(space.space_id).graph(space, arch)


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionFragments:
    """What may stand at one position: choice indices of ``labels`` → fragment, None if absent."""

    name: str
    labels: tuple[str, ...]
    shape: tuple[int, ...]
    fragments: dict[tuple[int, ...], Fragment | None]


def position_fragments(space: Space) -> Iterator[PositionFragments]:
    """Every position of a space with everything that may stand there, recorded once each.

    Raises:
        TableTooWideError: a position depends on too many decisions to be tabulated.
    """
    recorder = recorder_of(space.space_id)
    by_label = {d.label: d for d in space.decisions}
    first = Arch({d.label: d.choices[0] for d in space.decisions})
    for name, labels in space.positions():
        shape = tuple(len(by_label[label].choices) for label in labels)
        if math.prod(shape) > MAX_ENTRIES:
            raise TableTooWideError(math.prod(shape), MAX_ENTRIES, list(labels))
        found: dict[tuple[int, ...], Fragment | None] = {}
        for genes in itertools.product(*(range(n) for n in shape)):
            choices: dict[str, Choice] = {
                label: by_label[label].choices[g] for label, g in zip(labels, genes, strict=True)
            }
            arch = Arch({**first, **choices})
            found[genes] = _fragment_at(recorder, space, arch, name, labels)
        yield PositionFragments(name=name, labels=labels, shape=shape, fragments=found)


def space_cost_table(space: Space) -> CostTable:
    """Exact costs of every architecture of a space: one factor per position.

    A factor covers all combinations of the decisions on which the position depends; where a
    combination leaves the position out, it costs nothing.

    Raises:
        TableTooWideError: a position depends on too many decisions to be tabulated.
    """
    factors = []
    for position in position_fragments(space):
        values = np.zeros((*position.shape, len(COLUMNS)))
        present = {genes: f for genes, f in position.fragments.items() if f is not None}
        distinct = {id(f): f for f in present.values()}  # whether a block is there repeats them
        costs = {key: fragment_costs(position.name, f) for key, f in distinct.items()}
        for genes, fragment in present.items():
            values[genes] = costs[id(fragment)]
        factors.append(Factor(name=position.name, labels=position.labels, values=values))
    return CostTable(space.decisions, COLUMNS, factors)


def _fragment_at(
    recorder: GraphRecorder, space: Space, arch: Arch, name: str, labels: tuple[str, ...]
) -> Fragment | None:
    """The segment called ``name``, None where ``arch`` leaves it out."""
    segments = space.segments(arch)
    known = {s.name: s for s in segments}
    if name not in known:
        return None
    if set(known[name].labels) != set(labels):
        raise SpaceError(
            f"segment {name!r} depends on {known[name].labels}, its position on {labels}"
        )
    shape: tuple[int, ...] = (1, *space.input_shape_of(arch))
    for segment in segments:
        fragment = recorder.fragment(segment, shape)
        if segment.name == name:
            break
        shape = fragment.graph.output.shape
    return fragment


def fragment_costs(name: str, fragment: Fragment) -> list[float]:
    """Costs of a segment called ``name``, one per column: a row of a factor."""
    placed = compose([(name, fragment.graph)])
    costs: dict[str, float] = {**graph_costs(placed), "params": fragment.n_parameters}
    costs["size_bytes"] = costs["weight_bytes"] + header_bytes(placed)
    return [float(costs[column.name]) for column in COLUMNS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """An ONNX candidate and how it was made; ``reason`` is "" unless torch's exporter made it."""

    candidate: OnnxCandidate
    fallback: bool
    reason: str = ""


def export_or_fallback(module: nn.Module, input_shape: tuple[int, ...]) -> Exported:
    """ONNX without weights; where Graph lacks an operator, torch's exporter with weights.

    The second way takes seconds instead of milliseconds, so it is logged and flagged.

    Raises:
        ExportError: neither way works.
    """
    try:
        return Exported(candidate=to_onnx(record(module, input_shape)), fallback=False)
    except UnsupportedOperatorError as error:
        reason = str(error)
    log.warning("%s; torch's exporter takes over, which is slow", reason)
    return Exported(
        candidate=OnnxCandidate(model=_torch_export(module, input_shape), weights_spec=None),
        fallback=True,
        reason=reason,
    )


def _torch_export(module: nn.Module, input_shape: tuple[int, ...]) -> bytes:
    """The bytes that ``torch.onnx.export`` gives, weights embedded."""
    real = copy.deepcopy(module).eval()
    if any(p.device.type == "meta" for p in real.parameters()):
        real = real.to_empty(device="cpu")
        for parameter in real.parameters():
            nn.init.normal_(parameter, std=0.02)
    try:
        program = torch.onnx.export(
            real, (torch.zeros(input_shape),), dynamo=True, opset_version=18, verbose=False
        )
    except Exception as error:  # the exporter raises what it likes
        raise ExportError(f"torch's exporter cannot express the network either: {error}") from error
    if program is None:
        raise ExportError("torch's exporter gave nothing")
    data: bytes = program.model_proto.SerializeToString()
    return data
