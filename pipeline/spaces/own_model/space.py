"""A search space out of a user's own model.

The model is a plain ``nn.Module`` in which some layers are :class:`Elastic` and some places a
:class:`Choice`. It is followed once (``analysis.py``), checked at smaller sizes (``probe.py``), and
cut into segments (``cutting.py``). The supernet *is* the model; a subnet runs the same calls on the
leading part of its weights (``pieces.py``), as in Cai et al., "Once for All", 2020, section 3.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from latency_tables.arch import Arch
from latency_tables.cost_table import CostTable
from latency_tables.errors import SpaceError, UsageError
from latency_tables.files import sha256_json
from latency_tables.graph import Graph
from pipeline.spaces.base import Segment, Supernet
from pipeline.spaces.described import DescribedSpace
from pipeline.spaces.own_model.analysis import N_IMAGES, Analysis
from pipeline.spaces.own_model.cutting import Cut, cut
from pipeline.spaces.own_model.pieces import (
    Axes,
    Layer,
    Piece,
    piece_of,
    write_back,
)
from pipeline.spaces.own_model.probe import covering, probe

Factory = Callable[..., nn.Module]


class OwnSupernet(Supernet):
    """The user's model; a subnet runs its calls on the active part of its weights."""

    def __init__(self, space: OwnSpace, model: nn.Module) -> None:
        super().__init__()
        self.space, self.model = space, model

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        """Logits (N, n_classes) of ``arch`` for images (N, C, H, W).

        Raises:
            UsageError: modules of the model were compiled, which subnets do not run.
        """
        if any(m._compiled_call_impl is not None for m in self.model.modules()):
            raise UsageError(
                "a model of your own is not compiled: its subnets run layers that are cut anew for "
                "each architecture",
                hint="--set train.compile=false",
            )
        copied: list[tuple[Tensor, Tensor, Axes]] = []

        def give(whole: Tensor, part: Tensor, axes: Axes, is_parameter: bool) -> Tensor:
            if not is_parameter and whole.ndim == 1 and part is not whole and not part._is_view():
                copied.append((whole, part, axes))  # statistics after a concatenation
            return part

        for segment in self.space.present(arch):
            x = piece_of(segment.body, arch, self.model, give)(x)
        # batch norms may be training where the rest is not
        if copied and any(module.training for module in self.modules()):
            with torch.no_grad():
                for whole, part, axes in copied:
                    write_back(whole, part, axes, arch)
        return x

    def subnet_parameters(self, arch: Arch) -> list[nn.Parameter]:
        """Every parameter of which ``arch`` uses a part."""
        found: dict[int, nn.Parameter] = {}
        for segment in self.space.present(arch):
            for item in segment.body.active(arch):
                if item.path.rpartition(".")[2] in segment.body.extra:
                    continue
                if isinstance(item, Layer):
                    parameters = list(self.model.get_submodule(item.path).parameters())
                else:
                    tensor = _tensor_at(self.model, item.path)
                    parameters = [tensor] if isinstance(tensor, nn.Parameter) else []
                found.update((id(p), p) for p in parameters)
        return list(found.values())


class OwnSpace(DescribedSpace):
    """See :class:`pipeline.spaces.base.Space` for the methods, :func:`own_space` to make one."""

    cuts: tuple[Cut, ...]

    def __init__(self, make: Factory, *, name: str, input_shape: tuple[int, int, int]) -> None:
        self._make = make
        self.template = self._fresh(keep_random_state=True)
        analysis = Analysis(self.template, input_shape)
        if not analysis.decisions:
            raise SpaceError(
                f"{name} has nothing to choose", hint='mark layers: Choice("label", {...}), '
                "Elastic(layer, width=(...))"
            )  # fmt: skip
        self.probes = covering(analysis.decisions)
        with torch.no_grad(), torch.device("meta"):
            x = torch.empty(N_IMAGES, *input_shape)
            for arch in self.probes:
                probe(analysis.body, arch, self.template, analysis.values, x)
        super().__init__(
            name=name,
            preset="own",
            options={},
            input_shape=input_shape,
            n_classes=analysis.output.shape[1],
            decisions=analysis.decisions,
        )
        self.cuts = cut(analysis)
        self._cost_table: CostTable | None = None
        _ = self._structure  # refuses operators that cannot be recorded

    def _fresh(self, *, keep_random_state: bool = False) -> nn.Module:
        if not keep_random_state:
            return self._make()
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            return self._make()

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnSpace:
        """Copies of a supernet share their space, which never changes."""
        return self

    # -- identity --------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Decisions, weights, and hashes of what was recorded; no file, no path of one."""
        return {**super().describe(), **self._structure}

    @cached_property
    def _structure(self) -> dict[str, Any]:
        """What makes two models the same space.

        The graphs are those of a few architectures that together take every option; the layers are
        as torch prints them, so that a change that only training sees is a change as well.
        """
        from pipeline.export.record import GraphRecorder

        recorder = GraphRecorder()  # apart from the one that is found by the space's identity
        tensors = {name: list(x.shape) for name, x in self.template.state_dict().items()}
        return {
            "decisions": {d.label: list(d.choices) for d in self.decisions},
            "segments": {c.name: list(c.labels) for c in self.cuts},
            "tensors_sha256": sha256_json(tensors),
            "layers_sha256": sha256_json(repr(self.template)),
            "graphs_sha256": sha256_json([_plain(recorder.graph(self, a)) for a in self.probes]),
        }

    def canonical(self, arch: Arch) -> Arch:
        """Set the genes that no layer of ``arch`` depends on to their first choices."""
        live = {c.depth[0] for c in self.cuts if c.depth is not None}
        live |= {label for c in self.present(arch) for label in c.body.live(arch)}
        dead = {d.label: d.choices[0] for d in self.decisions if d.label not in live}
        return Arch({**arch, **dead})

    def graph_key(self, arch: Arch) -> str:
        """The canonical choices in order."""
        canonical = self.canonical(arch)
        return "|".join(str(canonical[d.label]) for d in self.decisions)

    # -- networks --------------------------------------------------------------------------------

    def positions(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Name and labels of every segment that any architecture has."""
        return tuple((c.name, c.labels) for c in self.cuts)

    def segments(self, arch: Arch) -> tuple[Segment, ...]:
        """The pieces of the model without those beyond an elastic depth."""
        return tuple(self._segment(c, arch) for c in self.present(arch))

    def present(self, arch: Arch) -> list[Cut]:
        """The segments that ``arch`` has."""
        return [c for c in self.cuts if c.present(arch)]

    def _segment(self, part: Cut, arch: Arch) -> Segment:
        live = set(part.body.live(arch))
        key = (part.name, *((x, arch[x]) for x in part.labels if x in live))
        build = partial(self._built, part, arch)
        return Segment(name=part.name, labels=part.labels, key=key, build=build)

    def _built(self, part: Cut, arch: Arch) -> Piece:
        """One piece with fresh weights, or without numbers where torch's device is "meta"."""
        if torch.get_default_device().type == "meta":
            return piece_of(part.body, arch, self.template, _shape_only)
        return piece_of(part.body, arch, self._fresh(), _own_copy)

    def supernet(self) -> OwnSupernet:
        """A freshly made model."""
        model = self._fresh()
        shapes = [
            {name: tuple(x.shape) for name, x in m.state_dict().items()}
            for m in (model, self.template)
        ]
        if shapes[0] != shapes[1]:
            raise SpaceError(
                f"{self.name} makes another model each time it is called; it must be one model"
            )
        return OwnSupernet(self, model)

    def network(self, arch: Arch) -> nn.Sequential:
        """The structure of one subnet with fresh weights: the leading part of a fresh model's."""
        self.validate(arch)
        if torch.get_default_device().type == "meta":
            model, give = self.template, _shape_only
        else:
            model, give = self._fresh(), _own_copy
        pieces = ((c.name, piece_of(c.body, arch, model, give)) for c in self.present(arch))
        return nn.Sequential(OrderedDict(pieces))

    def inherit(
        self, network: nn.Sequential, arch: Arch, supernet: Supernet, *, share: bool = False
    ) -> None:
        """Give ``network`` the active part of the supernet's weights; see :class:`Space`.

        A shared parameter is the supernet's own where all of it is used, a view where the leading
        entries are, and a copy where the parts of a concatenation are.
        """
        if not isinstance(supernet, OwnSupernet):
            raise SpaceError(f"{type(supernet).__name__} is not a supernet of {self.name}")
        give = _shared if share else _own_copy
        for part in self.present(arch):
            target = network.get_submodule(part.name)
            source = piece_of(part.body, arch, supernet.model, give)
            source.train(network.training)
            _take_over(target, source)

    def cost_table(self) -> CostTable:
        """Exact costs of every choice (cached)."""
        if self._cost_table is None:
            from pipeline.export.record import space_cost_table

            self._cost_table = space_cost_table(self)
        return self._cost_table


def _shape_only(whole: Tensor, part: Tensor, axes: Axes, is_parameter: bool) -> Tensor:
    """No numbers, but those of index buffers, which recorders read."""
    if not is_parameter and not part.is_floating_point() and part.ndim:
        return part.detach().clone()
    empty = torch.empty(part.shape, dtype=part.dtype, device="meta")
    return nn.Parameter(empty, requires_grad=whole.requires_grad) if is_parameter else empty


def _own_copy(whole: Tensor, part: Tensor, axes: Axes, is_parameter: bool) -> Tensor:
    copied = part.detach().clone().contiguous()
    return nn.Parameter(copied, requires_grad=whole.requires_grad) if is_parameter else copied


def _shared(whole: Tensor, part: Tensor, axes: Axes, is_parameter: bool) -> Tensor:
    if not is_parameter:
        return part.detach().clone()
    if part is whole:
        return whole
    return nn.Parameter(part.detach(), requires_grad=whole.requires_grad)


def _take_over(target: nn.Module, source: nn.Module) -> None:
    """Let ``target`` hold the tensors of ``source``, a module of the same structure."""
    modules = dict(source.named_modules())
    for name, module in target.named_modules():
        module._parameters.update(modules[name]._parameters)
        module._buffers.update(modules[name]._buffers)


def _tensor_at(model: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(owner), name)
    return tensor


def _plain(graph: Graph) -> list[Any]:
    """Operators, attributes and shapes, JSON-ready."""
    shapes: dict[str, list[Any]] = {v.name: list(v.shape) for v in graph.values()}
    shapes |= {p.name: list(p.shape) for p in graph.parameters}
    shapes |= {c.name: [c.dtype, *c.shape, c.data.hex()] for c in graph.constants}
    return [
        [
            node.op,
            [[name, shapes.get(name, [])] for name in (*node.inputs, *node.outputs)],
            [[k, v if not isinstance(v, tuple) else list(v)] for k, v in node.attributes],
        ]
        for node in graph.nodes
    ]


def own_space(
    model: Factory | nn.Module,
    *,
    input_shape: tuple[int, int, int],
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> OwnSpace:
    """Make a search space of a model with :class:`Choice` and :class:`Elastic` in it.

    Args:
        model: a class or a function that makes the model, or a model, whose weights the supernet
            then starts with.
        input_shape: (channels, height, width) of one image.
        name: of the space; the class's name by default.
        options: keyword arguments for the class or function.

    Raises:
        SpaceError: the model cannot be followed, or widths cannot be resolved; names the layers.

    >>> from pipeline.own_model import Choice, Elastic
    >>> def net() -> nn.Module:
    ...     return nn.Sequential(
    ...         Elastic(nn.Conv2d(3, 16, 3, padding=1), width=(8, 12, 16)),
    ...         nn.BatchNorm2d(16),
    ...         Choice("block", {"k3": nn.Conv2d(16, 16, 3, padding=1), "skip": nn.Identity()}),
    ...         nn.AdaptiveAvgPool2d(1),
    ...         nn.Flatten(),
    ...         nn.Linear(16, 10),
    ...     )
    >>> space = own_space(net, input_shape=(3, 8, 8))
    >>> [(d.label, d.choices) for d in space.decisions]
    [('0.width', (8, 12, 16)), ('block', ('k3', 'skip'))]
    >>> space.cost_table().cost(Arch({"0.width": 8, "block": "skip"}), "macs")  # 64·27·8 + 8·10
    13904.0
    """
    make = partial(copy.deepcopy, model) if isinstance(model, nn.Module) else partial(
        model, **(options or {})
    )  # fmt: skip
    title = name or str(getattr(model, "__name__", type(model).__name__))
    return OwnSpace(make, name=title, input_shape=input_shape)
