"""How torch's pooling, reductions and changes of shape become operators of a Graph.

See ``record_ops.py`` for the rest and for the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latency_tables.errors import UnsupportedOperatorError
from pipeline.export.record_builder import GraphBuilder

Arguments = dict[str, Any]
Handler = Callable[[GraphBuilder, Arguments, Any], None]


def pair(value: Sequence[int] | int, n: int = 2) -> tuple[int, ...]:
    """Torch's "one number or one per axis" as one per axis."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * n if len(values) == 1 else values


def axis_of(axis: int, tensor: Tensor) -> int:
    return axis % max(tensor.ndim, 1)


# -- pooling and reductions ----------------------------------------------------------------------


def mean(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """Mean over axes."""
    x = a["self"]
    axes = a.get("dim")
    axes = range(x.ndim) if axes is None else ([axes] if isinstance(axes, int) else axes)
    axes = tuple(sorted(axis_of(i, x) for i in axes))
    b.emit("ReduceMean", [b.value(x)], [out], axes=axes, keepdims=int(bool(a.get("keepdim"))))


def adaptive_avg_pool(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """Adaptive pooling whose windows are equal; others have no ONNX form.

    Global pooling is a ReduceMean and not a GlobalAveragePool, because that is what torch's
    exporter writes: the net that is timed should be the net that is deployed.
    """
    x = a["self"]
    sizes, targets = x.shape[2:], out.shape[2:]
    if all(t == 1 for t in targets):
        mean(b, {"self": x, "dim": range(2, x.ndim), "keepdim": True}, out)
        return
    if any(s % t for s, t in zip(sizes, targets, strict=True)):
        raise UnsupportedOperatorError(f"adaptive pooling from {tuple(sizes)} to {tuple(targets)}")
    kernel = tuple(s // t for s, t in zip(sizes, targets, strict=True))
    b.emit("AveragePool", [b.value(x)], [out], kernel_shape=kernel, strides=kernel)


def pool(op: str) -> Handler:
    """Average or maximum pooling over windows of two axes."""

    def handler(b: GraphBuilder, a: Arguments, out: Any) -> None:
        out = out if isinstance(out, Tensor) else out[0]
        kernel = pair(a["kernel_size"])
        attributes: dict[str, Any] = {
            "kernel_shape": kernel,
            "strides": pair(a["stride"]) if a.get("stride") else kernel,
            "pads": pair(a["padding"]) * 2,
            "ceil_mode": int(a["ceil_mode"]),
        }
        if op == "AveragePool":
            if a.get("divisor_override"):
                raise UnsupportedOperatorError("average pooling with a divisor of its own")
            attributes["count_include_pad"] = int(a["count_include_pad"])
        else:
            attributes["dilations"] = pair(a["dilation"])
        b.emit(op, [b.value(a["self"])], [out], **attributes)

    return handler


# -- shapes --------------------------------------------------------------------------------------


def upsample_nearest(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """Repetition of pixels, by whole numbers only: runtimes round the others differently."""
    x = a["input"]
    factors = [large / small for large, small in zip(out.shape, x.shape, strict=True)]
    if any(factor != int(factor) for factor in factors):
        raise UnsupportedOperatorError(
            f"interpolation from {tuple(x.shape[2:])} to {tuple(out.shape[2:])}"
        )
    scales = b.constant(np.array(factors, dtype=np.float32))
    b.emit("Resize", [b.value(x), "", scales], [out], mode="nearest",
           coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip


def passes(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """Copies and casts to the same type: the value stays what it is."""
    x = a.get("self", a.get("input"))
    if not isinstance(x, Tensor) or x.dtype != out.dtype:
        raise UnsupportedOperatorError("a cast to another type")
    b.bind(out, b.value(x))


def dropout(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """Dropout outside training does nothing."""
    if a.get("train"):
        raise UnsupportedOperatorError("dropout in training")
    b.bind(out, b.value(a["input"]))


def reshape(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """Anything that keeps the elements in order."""
    x = a["self"]
    if x.shape == out.shape:
        b.bind(out, b.value(x))
    else:
        b.emit("Reshape", [b.value(x), b.integers(out.shape)], [out])


def permute(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """Any order of axes."""
    axes = tuple(axis_of(i, out) for i in a["dims"])
    b.emit("Transpose", [b.value(a["self"])], [out], perm=axes)


def transpose(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """Swap two axes."""
    x = a["self"]
    axes = list(range(x.ndim))
    first, second = (axis_of(a[k], x) for k in ("dim0", "dim1"))
    axes[first], axes[second] = second, first
    permute(b, {"self": x, "dims": axes}, out)


def t(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """Swap the axes of a matrix."""
    transpose(b, {"self": a["self"], "dim0": 0, "dim1": 1}, out)


def expand(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """Repeat axes of length one."""
    if a["self"].shape == out.shape:
        b.bind(out, b.value(a["self"]))
    else:
        b.emit("Expand", [b.value(a["self"]), b.integers(out.shape)], [out])


def concat(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """Join along an axis."""
    b.emit("Concat", [b.value(x) for x in a["tensors"]], [out], axis=axis_of(a["dim"], out))


def split(b: GraphBuilder, a: Arguments, out: Sequence[Tensor]) -> None:
    """Cut along an axis (split, chunk, split_with_sizes)."""
    x = a["self"]
    axis = axis_of(a["dim"], x)
    if len(out) == 1:
        b.bind(out[0], b.value(x))
        return
    sizes = b.integers([part.shape[axis] for part in out])
    b.emit("Split", [b.value(x), sizes], list(out), axis=axis)


def unbind(b: GraphBuilder, a: Arguments, out: Sequence[Tensor]) -> None:
    """Cut an axis into slices without it: one Gather each, as exporters write it."""
    for i, part in enumerate(out):
        select(b, {"self": a["self"], "dim": a["dim"], "index": i}, part)


def select(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """One slice of an axis, without the axis."""
    x = a["self"]
    axis = axis_of(a["dim"], x)
    index = b.constant(np.array(a["index"] % x.shape[axis], dtype=np.int64))
    b.emit("Gather", [b.value(x), index], [out], axis=axis)


def slice_(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """A range of an axis."""
    x = a["self"]
    if x.shape == out.shape:
        b.bind(out, b.value(x))
        return
    axis = axis_of(a["dim"], x)
    length = x.shape[axis]
    start, end = (a["start"] or 0), length if a["end"] is None else a["end"]
    start, end = (max(i + length, 0) if i < 0 else min(i, length) for i in (start, end))
    ranges = [b.integers([i]) for i in (start, end, axis, a["step"])]
    b.emit("Slice", [b.value(x), *ranges], [out])


def index_select(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """Rows of an axis by constant indices."""
    axis = axis_of(a["dim"], out)
    b.emit("Gather", [b.value(a["self"]), b.value(a["index"])], [out], axis=axis)


def index(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """``x[indices]`` with one constant index tensor."""
    given = [(axis, i) for axis, i in enumerate(a["indices"]) if i is not None]
    if len(given) != 1 or given[0][1].dtype == torch.bool:
        raise UnsupportedOperatorError("aten::index with several indices or a mask")
    axis, indices = given[0]
    b.emit("Gather", [b.value(a["self"]), b.value(indices)], [out], axis=axis)


def embedding(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """Rows of a table by constant indices."""
    b.emit("Gather", [b.value(a["weight"]), b.value(a["indices"])], [out], axis=0)


def pad(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """Constant padding; torch counts axes from the last one."""
    if a.get("mode", "constant") != "constant":
        raise UnsupportedOperatorError(f"padding of mode {a['mode']}")
    x, amounts = a["self"], list(a["pad"])
    before, after = [0] * x.ndim, [0] * x.ndim
    for i in range(len(amounts) // 2):
        before[-1 - i], after[-1 - i] = amounts[2 * i], amounts[2 * i + 1]
    inputs = [b.value(x), b.integers([*before, *after]), b.value(float(a.get("value") or 0.0))]
    b.emit("Pad", inputs, [out])


def channel_shuffle(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """(N, g·c, H, W) → (N, c·g, H, W)."""
    n, c, *size = out.shape
    groups = a["groups"]
    split_shape = (n, groups, c // groups, *size)
    turned_shape = (n, c // groups, groups, *size)
    axes = (0, 2, 1, *range(3, 3 + len(size)))
    x = b.step("Reshape", [b.value(a["self"]), b.integers(split_shape)], split_shape)
    x = b.step("Transpose", [x], turned_shape, perm=axes)
    b.emit("Reshape", [x, b.integers(out.shape)], [out])


def filled(value: float) -> Handler:
    """A new tensor of one number."""

    def handler(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
        if out.dtype != torch.float32:
            raise UnsupportedOperatorError(f"a new tensor of {out.dtype}")
        number = float(a.get("fill_value", value))
        b.emit("Expand", [b.value(number), b.integers(out.shape)], [out])

    return handler
