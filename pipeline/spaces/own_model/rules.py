"""How functions and methods of torch pass widths on: one small function per kind, and a table.

A rule gets the call, its arguments with :class:`Value` for tensors, and what torch gave for the
largest sizes; it ties axes together and returns the result with axes of its own. What is not in the
table and keeps the (broadcast) shape works entry by entry; anything else needs fixed sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from pipeline.spaces.own_model import dims
from pipeline.spaces.own_model.dims import Dim
from pipeline.spaces.own_model.trace import name_of, site
from pipeline.spaces.own_model.values import Ties, Value, fixed_value, values_in

MAX_BLOCKS = 1024
"""Blocks of one flattened axis that widths are followed through."""

Arguments = tuple[Any, ...]
Options = dict[str, Any]
Rule = Callable[[Ties, fx.Node, Arguments, Options, Any], Any]


def apply(ties: Ties, node: fx.Node, args: Arguments, options: Options, out: Any) -> Any:
    """The result of a call with its axes. Raises SpaceError where widths cannot be passed on."""
    if not _holds_tensors(out):
        return out  # numbers: x.shape, x.dim()
    if not values_in((args, options)):
        return opaque(ties, node, args, options, out)
    return RULES.get(name_of(node), aligned)(ties, node, args, options, out)


def _holds_tensors(out: Any) -> bool:
    items = out if isinstance(out, tuple | list) else (out,)
    return bool(items) and any(isinstance(item, Tensor) for item in items)


def _argument(args: Arguments, options: Options, place: int, *names: str, default: Any) -> Any:
    for name in names:
        if name in options:
            return options[name]
    return args[place] if len(args) > place else default


def opaque(ties: Ties, node: fx.Node, args: Arguments, options: Options, out: Any) -> Any:
    """Everything that comes in must have one size."""
    values = values_in((args, options))
    for value in values:
        ties.fix(node, value, range(len(value.axes)), "sizes must not change")
    maker = values[0].maker if values else str(node)

    def wrapped(item: Any) -> Any:
        if isinstance(item, Tensor):
            return fixed_value(item, maker, f"it comes from {site(node)}")
        if isinstance(item, tuple | list) and not isinstance(item, torch.Size):
            return tuple(wrapped(i) for i in item)
        return item

    return wrapped(out)


def aligned(ties: Ties, node: fx.Node, args: Arguments, options: Options, out: Any) -> Any:
    """Entry by entry with broadcasting; otherwise opaque."""
    values = values_in((args, options))
    if not isinstance(out, Tensor) or name_of(node) in _MOVES_ENTRIES:
        return opaque(ties, node, args, options, out)
    try:
        shape = np.broadcast_shapes(*(v.shape for v in values))
    except ValueError:
        return opaque(ties, node, args, options, out)
    if shape != tuple(out.shape):
        return opaque(ties, node, args, options, out)
    axes = []
    for back in range(-out.ndim, 0):
        there = [v for v in values if len(v.shape) >= -back]
        there = [v for v in there if v.shape[back] == out.shape[back]] or there
        # a width of 1 against others broadcasts; equal widths must stay equal
        for other in there[1:]:
            ties.unify(node, there[0], back, other, back)
        axes.append(there[0].axes[back])
    return Value(tensor=out, axes=tuple(axes), maker=values[0].maker)


_MOVES_ENTRIES = frozenset(
    {"flip", "fliplr", "flipud", "roll", "rot90", "channel_shuffle", "native_channel_shuffle",
     "sort", "argsort", "msort", "gather", "scatter", "scatter_add", "take_along_dim", "linear",
     "conv1d", "conv2d", "conv3d", "batch_norm", "group_norm", "layer_norm", "prelu", "inverse",
     "instance_norm", "index_copy", "index_add", "cumsum", "tril", "triu", "bilinear"}
)  # fmt: skip


# -- shapes --------------------------------------------------------------------------------------


def reshape(ties: Ties, node: fx.Node, args: Arguments, options: Options, out: Any) -> Any:
    """Entries in order, other axes: flattened axes keep their parts, others are matched."""
    (value, *_) = values_in((args, options))
    old, new = list(value.shape), list(out.shape)
    axes: list[Dim] = []
    i = j = 0
    while i < len(old) or j < len(new):
        first, start = i, j
        a = b = 1
        if i < len(old):
            a, i = old[i], i + 1
        if j < len(new):
            b, j = new[j], j + 1
        while a != b:
            if a < b:
                a, i = a * old[i], i + 1
            else:
                b, j = b * new[j], j + 1
        while i < len(old) and old[i] == 1 and (j == len(new) or new[j] != 1):
            i += 1
        axes += _regrouped(ties, node, value, range(first, i), new[start:j])
    return Value(tensor=out, axes=tuple(axes), maker=value.maker)


def _regrouped(
    ties: Ties, node: fx.Node, value: Value, old: range, new: Sequence[int]
) -> list[Dim]:
    """Axes ``old`` of a value become axes of sizes ``new``, equal in number of entries."""
    sources = [i for i in old if value.shape[i] != 1]
    targets = [n for n in new if n != 1]
    if len(sources) == len(targets):
        found = [value.axes[i] for i in sources]
    elif len(targets) == 1:
        found = [_flattened(ties, node, value, sources)]
    elif len(sources) == 1:
        found = _unflattened(value.axes[sources[0]], targets)
    else:
        ties.fix(node, value, sources, "axes are mixed")
        found = [dims.fixed(n, "axes are mixed") for n in targets]
    rest = iter(found)
    return [dims.fixed(1, "one entry") if n == 1 else next(rest) for n in new]


def _flattened(ties: Ties, node: fx.Node, value: Value, sources: Sequence[int]) -> Dim:
    """The parts of one axis made of several: the first of them varies slowest."""
    result = value.axes[sources[0]]
    for axis in sources[1:]:
        inner, n_inner = value.axes[axis], value.shape[axis]
        n_outer = dims.size_of(dims.resolve(result))
        if _steady(inner):
            result = dims.scaled(result, n_inner)
        elif _steady(result) and n_outer <= MAX_BLOCKS:
            result = dims.resolve(inner) * n_outer
        else:
            why = "two axes that may change become one"
            ties.fix_dim(node, inner, value.maker, why)
            result = dims.scaled(result, n_inner)
    return result


def _steady(dim: Dim) -> bool:
    return all(part.atom.fixed for part in dims.resolve(dim))


def _unflattened(dim: Dim, sizes: Sequence[int]) -> list[Dim]:
    """One axis becomes several: the first takes the width, blocks of fixed size stay whole."""
    inner = math.prod(sizes[1:])
    if _steady(dim):
        return [dims.fixed(n, "it was split off a fixed size") for n in sizes]
    first = dims.scaled(dim, Fraction(1, inner))
    return [first, *(dims.fixed(n, "it is the size of a block") for n in sizes[1:])]


def permute(ties: Ties, node: fx.Node, args: Arguments, options: Options, out: Any) -> Any:
    """Any order of axes, found by moving numbered ones."""
    (value, *_) = values_in((args, options))
    probe = torch.empty(tuple(range(2, 2 + len(value.shape))), device="meta")
    plain = [probe if isinstance(a, Value) else a for a in args]
    named = {k: probe if isinstance(v, Value) else v for k, v in options.items()}
    if isinstance(node.target, str):
        moved = getattr(plain[0], node.target)(*plain[1:], **named)
    else:
        moved = node.target(*plain, **named)
    axes = tuple(value.axes[n - 2] for n in moved.shape)
    return Value(tensor=out, axes=axes, maker=value.maker)


def expand(ties: Ties, node: fx.Node, args: Arguments, options: Options, out: Any) -> Any:
    """Axes of one entry are repeated, new ones stand in front."""
    value = args[0]
    new = len(out.shape) - len(value.shape)
    axes = tuple(
        value.axes[i - new]
        if i >= new and value.shape[i - new] == out.shape[i]
        else dims.fixed(out.shape[i], "it is repeated")
        for i in range(out.ndim)
    )
    if len(args) == 2 and isinstance(args[1], Value):  # expand_as
        axes = tuple(
            a if i >= new and value.shape[i - new] == out.shape[i] else args[1].axes[i]
            for i, a in enumerate(axes)
        )
    return Value(tensor=out, axes=axes, maker=value.maker)


def concat(ties: Ties, node: fx.Node, args: Arguments, options: Options, out: Any) -> Any:
    """Join along an axis: parts one after the other; other axes are equal."""
    values = values_in((args, options))
    axis = _argument(args, options, 1, "dim", "axis", default=0) % out.ndim
    axes = list(values[0].axes)
    for other in values[1:]:
        for i in range(out.ndim):
            if i != axis:
                ties.unify(node, values[0], i, other, i)
    axes[axis] = tuple(part for v in values for part in dims.resolve(v.axes[axis]))
    return Value(tensor=out, axes=tuple(axes), maker=values[0].maker)


def stack(ties: Ties, node: fx.Node, args: Arguments, options: Options, out: Any) -> Any:
    """Join along a new axis."""
    values = values_in((args, options))
    axis = _argument(args, options, 1, "dim", default=0) % out.ndim
    for other in values[1:]:
        for i in range(len(other.axes)):
            ties.unify(node, values[0], i, other, i)
    axes = list(values[0].axes)
    axes.insert(axis, dims.fixed(len(values), "it counts tensors"))
    return Value(tensor=out, axes=tuple(axes), maker=values[0].maker)


def cut(ties: Ties, node: fx.Node, args: Arguments, options: Options, out: Any) -> Any:
    """chunk, split, unbind, narrow, select: the axis that is cut must have one size."""
    value = args[0]
    place = {"unbind": 1, "narrow": 1, "select": 1}.get(name_of(node), 2)
    axis = _argument(args, options, place, "dim", default=0) % len(value.axes)
    ties.fix(node, value, [axis], "an axis is cut")
    gone = name_of(node) in ("unbind", "select")

    def part(tensor: Tensor) -> Value:
        axes = [a for i, a in enumerate(value.axes) if not (gone and i == axis)]
        if not gone:
            axes[axis] = dims.fixed(tensor.shape[axis], "it was cut off")
        return Value(tensor=tensor, axes=tuple(axes), maker=value.maker)

    return part(out) if isinstance(out, Tensor) else tuple(part(t) for t in out)


def getitem(ties: Ties, node: fx.Node, args: Arguments, options: Options, out: Any) -> Any:
    """``x[...]`` with whole numbers, slices, None and dots; other axes pass."""
    value, index = args
    index = index if isinstance(index, tuple) else (index,)
    if any(isinstance(i, Value | list) for i in index):
        return opaque(ties, node, args, options, out)
    n_used = sum(i is not None and i is not Ellipsis for i in index)
    if Ellipsis not in index:
        index = (*index, Ellipsis)
    axes: list[Dim] = []
    axis = 0
    for i in index:
        if i is None:
            axes.append(dims.fixed(1, "it is new"))
        elif i is Ellipsis:
            n = len(value.axes) - n_used
            axes += value.axes[axis : axis + n]
            axis += n
        else:
            if i != slice(None):
                ties.fix(node, value, [axis], "an axis is cut")
            if isinstance(i, slice):
                whole = i == slice(None)
                n = out.shape[len(axes)]
                axes.append(value.axes[axis] if whole else dims.fixed(n, "it was cut off"))
            axis += 1
    return Value(tensor=out, axes=tuple(axes), maker=value.maker)


# -- numbers -------------------------------------------------------------------------------------


def reduction(ties: Ties, node: fx.Node, args: Arguments, options: Options, out: Any) -> Any:
    """mean, sum, max, …: the axes that are left keep their widths, whatever was summed up."""
    if len(values_in((args, options))) > 1:  # max(x, y)
        return aligned(ties, node, args, options, out)
    (value,) = values_in((args, options))
    place = 2 if name_of(node) == "norm" else 1
    over = _argument(args, options, place, "dim", "axis", default=None)
    if isinstance(over, bool):  # std(unbiased)
        over = None
    n = len(value.axes)
    over = range(n) if over is None else ((over,) if isinstance(over, int) else tuple(over))
    gone = {i % n for i in over}

    def part(tensor: Tensor) -> Value:
        if tensor.ndim == n:
            axes = tuple(
                dims.fixed(1, "it is summed up") if i in gone else value.axes[i] for i in range(n)
            )
        else:
            axes = tuple(value.axes[i] for i in range(n) if i not in gone)
        return Value(tensor=tensor, axes=axes, maker=value.maker)

    return part(out) if isinstance(out, Tensor) else tuple(part(t) for t in out)


def resample(ties: Ties, node: fx.Node, args: Arguments, options: Options, out: Any) -> Any:
    """Pooling, padding, interpolation: axes of another size than before must be fixed."""
    (value,) = values_in((args, options))
    if not isinstance(out, Tensor) or out.ndim != len(value.axes):
        return opaque(ties, node, args, options, out)
    same = [a == b for a, b in zip(value.shape, out.shape, strict=True)]
    ties.fix(node, value, [i for i, kept in enumerate(same) if not kept], "a size is changed")
    axes = tuple(
        value.axes[i] if same[i] else dims.fixed(out.shape[i], "it is resampled")
        for i in range(out.ndim)
    )
    return Value(tensor=out, axes=axes, maker=value.maker)


def matmul(ties: Ties, node: fx.Node, args: Arguments, options: Options, out: Any) -> Any:
    """(…, n, k) by (…, k, m): k is equal on both sides."""
    values = values_in((args, options))
    if len(values) != 2 or any(len(v.axes) < 2 for v in values):
        return opaque(ties, node, args, options, out)
    a, b = values
    ties.unify(node, a, -1, b, -2)
    lead: list[Dim] = []
    for back in range(-out.ndim, -2):
        there = [v for v in values if len(v.axes) >= -back and v.shape[back] == out.shape[back]]
        for other in there[1:]:
            ties.unify(node, there[0], back, other, back)
        lead.append(there[0].axes[back])
    return Value(tensor=out, axes=(*lead, a.axes[-2], b.axes[-1]), maker=a.maker)


def attention(ties: Ties, node: fx.Node, args: Arguments, options: Options, out: Any) -> Any:
    """softmax(q kᵀ) v for (…, n, d), (…, m, d), (…, m, e)."""
    values = values_in((args, options))
    q, k, v = values[:3]
    if len(values) > 3 or not len(q.axes) == len(k.axes) == len(v.axes):
        return opaque(ties, node, args, options, out)
    for back in range(-out.ndim, -2):
        ties.unify(node, q, back, k, back)
        ties.unify(node, q, back, v, back)
    ties.unify(node, q, -1, k, -1)
    ties.unify(node, k, -2, v, -2)
    return Value(tensor=out, axes=(*q.axes[:-1], v.axes[-1]), maker=q.maker)


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as",
         "reshape_as"),
        reshape,
    ),
    **dict.fromkeys(
        ("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "adjoint"),
        permute,
    ),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), expand),
    **dict.fromkeys(("cat", "concat", "concatenate"), concat),
    "stack": stack,
    **dict.fromkeys(
        ("chunk", "split", "split_with_sizes", "unbind", "narrow", "select", "tensor_split"), cut
    ),
    "getitem": getitem,
    **dict.fromkeys(
        ("mean", "sum", "amax", "amin", "max", "min", "std", "var", "norm", "argmax", "argmin",
         "prod", "logsumexp", "median", "any", "all"),
        reduction,
    ),
    **dict.fromkeys(
        ("pad", "interpolate", "upsample", "avg_pool1d", "avg_pool2d", "max_pool1d", "max_pool2d",
         "lp_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool1d",
         "adaptive_max_pool2d"),
        resample,
    ),
    **dict.fromkeys(("matmul", "bmm", "mm"), matmul),
    "scaled_dot_product_attention": attention,
}  # fmt: skip
"""Name of a function or method → how it passes widths on."""
