"""Run a followed model at smaller sizes, without numbers, and compare every shape.

What was concluded from the largest sizes must hold for all: a ``view`` with fixed numbers, for
example, only shows when less comes in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from latency_tables.arch import Arch, Decision
from latency_tables.errors import SpaceError
from pipeline.spaces.own_model import dims
from pipeline.spaces.own_model.pieces import (
    Body,
    Layer,
    Weight,
    active_part,
    chosen,
    narrowed,
)
from pipeline.spaces.own_model.trace import site
from pipeline.spaces.own_model.values import Value

N_RANDOM = 8


def covering(decisions: Sequence[Decision]) -> list[Arch]:
    """The first and the last options of all, every option somewhere, and a few random ones."""
    rng = np.random.default_rng(0)
    longest = max((len(d.choices) for d in decisions), default=0)
    shifts = [int(rng.integers(longest)) for _ in decisions]
    genes = [[0] * len(decisions), [len(d.choices) - 1 for d in decisions]]
    genes += [
        [(i + s) % len(d.choices) for d, s in zip(decisions, shifts, strict=True)]
        for i in range(longest)
    ]
    genes += [[int(rng.integers(len(d.choices))) for d in decisions] for _ in range(N_RANDOM)]
    return list(dict.fromkeys(Arch.from_genes(decisions, g) for g in genes))


def probe(
    body: Body,
    arch: Mapping[str, Any],
    model: nn.Module,
    values: Mapping[fx.Node, Any],
    x: Tensor,
) -> Tensor:
    """Run ``body`` for ``arch`` on a tensor without numbers.

    Raises:
        SpaceError: a call fails or gives another shape than was concluded; names both.
    """
    env: dict[fx.Node, Any] = {}
    result: Any = None
    for node in body.graph.nodes:
        if node.op == "output":
            result = map_arg(node.args[0], env.__getitem__)
            continue
        try:
            env[node] = _run(node, body, arch, model, values, x, env)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise _told(node, arch, values, str(error).splitlines()[0]) from error
        _compare(node, arch, values, env[node])
    return result  # type: ignore[no-any-return]


def _run(
    node: fx.Node,
    body: Body,
    arch: Mapping[str, Any],
    model: nn.Module,
    values: Mapping[fx.Node, Any],
    x: Tensor,
    env: dict[fx.Node, Any],
) -> Any:
    if node.op == "placeholder":
        return x
    args, options = map_arg(node.args, env.__getitem__), map_arg(node.kwargs, env.__getitem__)
    if node.op == "call_function":
        return node.target(*args, **options)  # type: ignore[operator]
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **options)
    item = body.items[str(node.target)]
    if isinstance(item, Weight):
        owner, _, name = item.path.rpartition(".")
        tensor: Tensor = getattr(model.get_submodule(owner), name)
        return active_part(_empty(tensor), item.axes, arch)
    if isinstance(item, Layer):
        layer = body.extra.get(str(node.target)) or model.get_submodule(item.path)
        return narrowed(layer, item, arch, lambda _, part, *__: _empty(part)).eval()(
            *args, **options
        )
    y: Any = args[0]
    for inner in chosen(item, arch):
        y = probe(inner, arch, model, values, y)
    return y


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")


def _compare(
    node: fx.Node, arch: Mapping[str, Any], values: Mapping[fx.Node, Any], got: Any
) -> None:
    value = values[node]
    if not isinstance(value, Value) or not isinstance(got, Tensor):
        return
    expected = tuple(dims.active_of(axis, arch) for axis in value.axes)
    if tuple(got.shape) != expected:
        raise _told(
            node,
            arch,
            values,
            f"it gives {tuple(got.shape)} where {expected} follows from the widths before it",
        )


def _told(
    node: fx.Node, arch: Mapping[str, Any], values: Mapping[fx.Node, Any], why: str
) -> SpaceError:
    """Names the call and the elastic layers whose widths it gets."""
    sources = [v for v in (values[n] for n in node.all_input_nodes) if isinstance(v, Value)]
    labels = [label for v in sources for axis in v.axes for label in dims.labels_of(axis)]
    atoms = [a for v in sources for axis in v.axes if (a := dims.elastic_atom(axis)) is not None]
    layers = dict.fromkeys(layer for atom in atoms for layer in atom.layers[:1])
    widths = ", ".join(f"{label} = {arch[label]}" for label in dict.fromkeys(labels))
    feeds = f", which {', '.join(map(repr, layers))} feeds with {widths}" if layers else ""
    return SpaceError(
        f"{site(node)}{feeds}, cannot adapt: {why}",
        hint="write sizes as x.flatten(1), x.size(1) or -1 instead of numbers, or leave that "
        "layer's width fixed",
    )
