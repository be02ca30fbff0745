"""Follow a model once, at its largest sizes, and find out how widths depend on decisions.

Every alternative of every choice is followed. The result is a :class:`Body`: calls, and for every
layer which part of its weights an architecture uses.
"""

from __future__ import annotations

import operator
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from latency_tables.arch import Choice as Answer
from latency_tables.arch import Decision
from latency_tables.errors import SpaceError
from pipeline.spaces.own_model import dims, layer_rules, rules
from pipeline.spaces.own_model.checks import check_all_called, check_sizes
from pipeline.spaces.own_model.dims import Atom, Dim
from pipeline.spaces.own_model.layers import Choice, Elastic
from pipeline.spaces.own_model.pieces import (
    Axes,
    Body,
    Branches,
    Item,
    Layer,
    Stack,
    Weight,
    with_tensors,
)
from pipeline.spaces.own_model.trace import site, trace
from pipeline.spaces.own_model.values import Ties, Value, fixed_value, shown, tensors_of, values_in

N_IMAGES = 13
"""Images in the batch that a model is followed with: a number that is rarely another size."""


class Analysis:
    """What was found out about a model.

    Args:
        model: its own largest self, on the CPU; not changed.
        input_shape: (channels, height, width) of one image.

    Raises:
        SpaceError: something that cannot be followed or resolved; names the layers.
    """

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        self.model = model
        self.ties = Ties()
        self._atoms: dict[str, Atom] = {}
        self._choices: dict[str, tuple[str, tuple[Answer, ...], str]] = {}
        self._seen: dict[int, str] = {}
        self._n_calls: Counter[int] = Counter()
        self.sizes: dict[fx.Node, Dim] = {}
        self.values: dict[fx.Node, Any] = {}
        with torch.no_grad(), torch.device("meta"):
            images = fixed_value(torch.empty(N_IMAGES, *input_shape), "the input", "an image")
            axes = (dims.fixed(N_IMAGES, dims.BATCH), *images.axes[1:])
            start = Value(tensor=images.tensor, axes=axes, maker=images.maker)
            self.body, end = self._body(model, "", start)
        self.output = self._output(end)
        check_all_called(model, self._seen)
        check_sizes(self.body)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """In the order in which the model meets them."""
        return tuple(
            Decision(label=label, choices=choices)
            for label, (_, choices, _) in self._choices.items()
        )

    # -- following -------------------------------------------------------------------------------

    def _body(self, module: nn.Module, path: str, start: Value) -> tuple[Body, Value]:
        """One graph of calls, and what it gives for ``start``."""
        where = shown(path) if path else type(module).__name__
        graph = trace(module, where)
        body = Body(graph=graph, items={}, extra=graph.dropouts)  # type: ignore[attr-defined]
        result: Any = None
        for node in graph.nodes:
            if node.op == "output":
                result = map_arg(node.args[0], self.values.__getitem__)
            else:
                self.values[node] = self._node(node, body, path, start)
        if not isinstance(result, Value):
            raise SpaceError(
                f"{where} gives {type(result).__name__}; one tensor is needed",
                hint="return the tensor alone",
            )
        return body, result

    def _node(self, node: fx.Node, body: Body, path: str, start: Value) -> Any:
        if node.op == "placeholder":
            return start
        if node.op == "get_attr":
            return self._weight(node, body, path)
        args = map_arg(node.args, self.values.__getitem__)
        options = dict(map_arg(node.kwargs, self.values.__getitem__))
        try:
            if node.op == "call_module":
                return self._module(node, body, path, args, options)
            return self._call(node, args, options)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            given = ", ".join(_size(v) for v in values_in((args, options)))
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise SpaceError(
                f"{site(node)} fails at the largest sizes, given {given or 'nothing'}: {why}"
            ) from error

    def _call(self, node: fx.Node, args: Any, options: dict[str, Any]) -> Any:
        """A function or a method."""
        if node.target is operator.getitem and values_in(args[0]) and isinstance(args[0], tuple):
            return args[0][args[1]]
        plain, named = tensors_of(tuple(args)), tensors_of(options)
        if isinstance(node.target, str):
            out = getattr(plain[0], node.target)(*plain[1:], **named)
        else:
            out = node.target(*plain, **named)
        self._note_size(node, args, out)
        if node.target is getattr and isinstance(out, Tensor):
            if args[1] in ("T", "mT") and out.ndim == 2:
                return Value(tensor=out, axes=args[0].axes[::-1], maker=args[0].maker)
            return rules.opaque(self.ties, node, (args[0],), {}, out)
        return rules.apply(self.ties, node, tuple(args), options, out)

    def _note_size(self, node: fx.Node, args: Any, out: Any) -> None:
        """Remember of which axis a number is the size."""
        if not isinstance(out, int) or isinstance(out, bool):
            return
        source, index = node.args[0], node.args[1] if len(node.args) > 1 else None
        if node.op == "call_method" and node.target == "size" and isinstance(args[0], Value):
            self.sizes[node] = args[0].axes[int(args[1])]
        elif isinstance(source, fx.Node) and isinstance(index, int):
            origin = source.args[0] if source.args else None
            shape = source.target == "size" or (
                source.target is getattr and source.args[1] == "shape"
            )
            if shape and isinstance(origin, fx.Node) and isinstance(self.values[origin], Value):
                self.sizes[node] = self.values[origin].axes[index]

    def _weight(self, node: fx.Node, body: Body, path: str) -> Value:
        """A parameter or a buffer that ``forward`` reads."""
        target = str(node.target)
        full = _join(path, target)
        owner, _, name = full.rpartition(".")
        tensor = getattr(self.model.get_submodule(owner), name, None)
        if tensor is None:
            raise SpaceError(
                f"forward of {shown(path)} makes a tensor by itself; only what modules hold is "
                "carried over",
                hint="self.register_buffer(name, tensor) in __init__",
            )
        known = body.items.get(target)
        if known is None:
            adapts = tensor.is_floating_point()
            axes: Axes = tuple(
                dims.free(n, shown(full)) if adapts and n > 1 else dims.fixed(n, "it is an index")
                for n in tensor.shape
            )
            known = body.items[target] = Weight(path=full, axes=axes)
        if not isinstance(known, Weight):
            raise SpaceError(f"{shown(full)!r} is a module and a tensor at once")
        given = tuple(d for d in known.axes if d is not None)
        return Value(tensor=torch.empty_like(tensor, device="meta"), axes=given, maker=shown(full))

    # -- modules ---------------------------------------------------------------------------------

    def _module(
        self, node: fx.Node, body: Body, path: str, args: Any, options: dict[str, Any]
    ) -> Any:
        target = str(node.target)
        inner = "" if target == "body" else target
        full = _join(path, inner)
        module = body.extra.get(target) or self.model.get_submodule(full)
        self._note_call(module, full, node)
        values = values_in((args, options))
        if isinstance(module, Choice | Elastic):
            if len(values) != 1 or len(args) != 1 or options:
                raise SpaceError(f"{shown(full)!r} takes one tensor, unlike {site(node)}")
            item, value = self._marked(node, module, full, values[0])
        else:
            layer = Layer(path=full, name=shown(full))
            item = body.items.get(target, layer)
            out = self._run(module, args, options)
            if len(args) == 1 and len(values) == 1 and not options and isinstance(out, Tensor):
                value = layer_rules.call(self.ties, node, module, layer, values[0], out)
            else:
                value = rules.opaque(self.ties, node, tuple(args), options, out)
        body.items[target] = item
        return value

    def _marked(
        self, node: fx.Node, module: Choice | Elastic, full: str, value: Value
    ) -> tuple[Item, Value]:
        if isinstance(module, Choice):
            return self._choice(node, module, full, value)
        if module.depth is not None:
            return self._stack(node, module, full, value)
        layer = Layer(path=_join(full, "module"), name=shown(full))
        self._note_call(module.module, layer.path, node)
        if module.kernel is not None:
            label = f"{layer.name}.kernel"
            self._decide(label, "kernel", module.kernel, layer.name)
            layer.kernel = (label, module.kernel[-1])
        width = None if module.width is None else self._width(module, layer.name)
        out = self._run(module.module, (value,), {})
        given = layer_rules.call(self.ties, node, module.module, layer, value, out, width)
        return layer, given

    def _choice(self, node: fx.Node, module: Choice, full: str, value: Value) -> tuple[Item, Value]:
        self._decide(module.label, "choice", tuple(module.branches), shown(full))
        bodies: dict[str, Body] = {}
        ends: dict[str, Value] = {}
        for name, branch in module.branches.items():
            bodies[name], ends[name] = self._body(branch, _join(full, "branches", name), value)
        (first, one), *others = ends.items()
        for name, other in others:
            if one.shape != other.shape:
                raise SpaceError(
                    f"choice {module.label!r}: {first!r} gives {_size(one)} and {name!r} gives "
                    f"{_size(other)} for {_size(value)}; alternatives must give equal shapes"
                )
            for axis in range(len(one.axes)):
                self._tie_ends(node, module.label, (first, one), (name, other), axis)
        return Branches(label=module.label, bodies=bodies), _renamed(one, shown(full))

    def _tie_ends(
        self, node: fx.Node, label: str, a: tuple[str, Value], b: tuple[str, Value], axis: int
    ) -> None:
        try:
            self.ties.unify(node, a[1], axis, b[1], axis)
        except SpaceError as error:
            raise SpaceError(
                f"choice {label!r}: {a[0]!r} and {b[0]!r} must give equal widths; {error.message}",
                hint=error.hint,
            ) from None

    def _stack(self, node: fx.Node, module: Elastic, full: str, value: Value) -> tuple[Item, Value]:
        label = module.label or f"{shown(full)}.depth"
        options = module.depth or ()
        self._decide(label, "depth", options, shown(full))
        bodies: list[Body] = []
        ends: list[Value] = []
        for name, part in module.module.named_children():
            body, value = self._body(part, _join(full, "module", name), value)
            bodies.append(body)
            ends.append(value)
        for n in options[:-1]:
            if ends[n - 1].shape != value.shape:
                raise SpaceError(
                    f"{shown(full)!r}: {n} modules give {_size(ends[n - 1])}, all "
                    f"{options[-1]} give {_size(value)}; every depth must give one shape"
                )
            for axis in range(len(value.axes)):
                self._tie_ends(
                    node, label, (f"depth {n}", ends[n - 1]), (f"depth {options[-1]}", value), axis
                )
        return Stack(label=label, bodies=bodies), _renamed(value, shown(full))

    def _run(self, module: nn.Module, args: Any, options: dict[str, Any]) -> Any:
        """What a layer gives for the largest sizes, without numbers."""
        plain = with_tensors(module, lambda x, *_: torch.empty_like(x, device="meta")).eval()
        return plain(*tensors_of(tuple(args)), **tensors_of(options))

    # -- book-keeping ----------------------------------------------------------------------------

    def _note_call(self, module: nn.Module, full: str, node: fx.Node) -> None:
        """Raise SpaceError where a module with weights is called again."""
        before = self._seen.setdefault(id(module), full)
        self._n_calls[id(module)] += 1
        if self._n_calls[id(module)] == 1:
            return
        marked = any(isinstance(m, Choice | Elastic) for m in module.modules())
        if marked or any(True for _ in module.parameters()) or list(module.buffers()):
            other = "" if before == full else f" and as {shown(before)!r}"
            raise SpaceError(
                f"{shown(full)!r} is used twice{other}, again at {site(node)}; layers with weights "
                "are used once",
                hint="make a layer of its own for each place",
            )

    def _decide(self, label: str, kind: str, choices: tuple[Answer, ...], where: str) -> None:
        known = self._choices.get(label)
        if known is None:
            self._choices[label] = (kind, choices, where)
            return
        linked = kind in ("width", "depth")
        if known[0] != kind or not linked or known[1] != choices:
            raise SpaceError(
                f"the label {label!r} is given twice: {known[2]!r} has {known[0]} {known[1]}, "
                f"{where!r} has {kind} {choices}",
                hint="use another label"
                + (", or the same options where widths are to be equal" if linked else ""),
            )

    def _width(self, module: Elastic, name: str) -> Atom:
        """The atom of an elastic width; layers with one label share it."""
        options = module.width or ()
        label = module.label or f"{name}.width"
        self._decide(label, "width", options, name)
        if label not in self._atoms:
            self._atoms[label] = Atom(size=options[-1], label=label, options=options)
        self._atoms[label].layers.append(name)
        return self._atoms[label]

    def _output(self, end: Value) -> Value:
        if len(end.shape) != 2 or end.shape[0] != N_IMAGES:
            raise SpaceError(
                f"the model gives a tensor of {_size(end) or 'no'} entries per image; one axis of "
                "class scores is needed"
            )
        for dim in end.axes:
            atom = dims.elastic_atom(dim)
            if atom is not None:
                raise SpaceError(
                    f"'{atom.layers[0]}' (width {', '.join(map(str, atom.options))}) sets the "
                    "number of class scores, which never changes",
                    hint="let the last layer be plain",
                )
            dims.fix(dim, "it is the number of classes")
        return end


def _join(*steps: str) -> str:
    return ".".join(step for step in steps if step)


def _renamed(value: Value, maker: str) -> Value:
    return Value(tensor=value.tensor, axes=value.axes, maker=maker)


def _size(value: Value) -> str:
    return "×".join(map(str, value.shape[1:]))
