"""How torch operators become operators of a Graph: one small function each, and a table of them.

A handler gets the builder, the operator's arguments by their names in torch's schema, and the
tensor (or tensors) that torch gave. Activations and attention are written in the form that
``torch.onnx.export`` uses, so that runtimes find the patterns they fuse. Pooling and changes of
shape are in ``record_shapes.py``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from latency_tables.errors import UnsupportedOperatorError
from pipeline.export import record_shapes as shapes
from pipeline.export.record_builder import GraphBuilder
from pipeline.export.record_shapes import Arguments, Handler, axis_of, pair

# -- layers with weights -------------------------------------------------------------------------


def convolution(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """Convolution over one or two axes; ``padding`` may be numbers, "valid" or "same"."""
    weight, n = a["weight"], a["weight"].ndim - 2
    if a.get("transposed"):
        raise UnsupportedOperatorError("aten::conv_transpose")
    dilation = pair(a["dilation"], n)
    padding = a["padding"]
    if padding == "valid":
        padding = 0
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        pads = (*(t // 2 for t in totals), *(t - t // 2 for t in totals))
    else:
        pads = pair(padding, n) * 2
    if not b.is_weight(weight):
        raise UnsupportedOperatorError("a convolution whose weight is computed")
    fan_in = math.prod(weight.shape[1:])
    inputs = [b.value(a["input"]), b.weight(weight, fan_in=fan_in)]
    if a.get("bias") is not None:
        inputs.append(b.value(a["bias"], fan_in=fan_in))
    # defaults are left out: they are a tenth of a candidate's bytes
    attributes: dict[str, Any] = {"kernel_shape": tuple(weight.shape[2:])}
    if a["groups"] != 1:
        attributes["group"] = a["groups"]
    if any(pads):
        attributes["pads"] = pads
    for name, values in (("strides", pair(a["stride"], n)), ("dilations", dilation)):
        if any(value != 1 for value in values):
            attributes[name] = values
    b.emit("Conv", inputs, [out], **attributes)


def batch_norm(b: GraphBuilder, a: Arguments, out: Any) -> None:
    """Batch norm with tracked statistics; the builder folds it where it can."""
    out = out if isinstance(out, Tensor) else out[0]
    mean, variance = a["running_mean"], a["running_var"]
    if a.get("training") or mean is None:
        raise UnsupportedOperatorError("a batch norm that uses the statistics of its batch")
    channels = mean.shape[0]

    def affine(tensor: Tensor | None, absent: float) -> str:
        if tensor is None:
            return b.constant(np.full(channels, absent, dtype=np.float32))
        return b.value(tensor, fan_in=0 if absent else channels)

    b.emit("BatchNormalization",
           [b.value(a["input"]), affine(a["weight"], 1.0), affine(a["bias"], 0.0),
            b.value(mean, fan_in=channels), b.value(variance, fan_in=0)],
           [out], epsilon=float(a["eps"]))  # fmt: skip


def linear(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """Gemm for matrices, MatMul + Add for higher ranks."""
    x, weight, bias = a["input"], a["weight"], a.get("bias")
    if not b.is_weight(weight):
        raise UnsupportedOperatorError("a linear layer whose weight is computed")
    fan_in = weight.shape[1]
    if x.ndim == 2:
        inputs = [b.value(x), b.weight(weight, fan_in=fan_in)]
        if bias is not None:
            inputs.append(b.value(bias, fan_in=fan_in))
        b.emit("Gemm", inputs, [out], transB=1)
        return
    operands = [b.value(x), b.weight(weight, fan_in=fan_in, transposed=True)]
    if bias is None:
        b.emit("MatMul", operands, [out])
        return
    product = b.step("MatMul", operands, out.shape)
    b.emit("Add", [product, b.value(bias, fan_in=fan_in)], [out])


def layer_norm(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """Layer norm over the last axes, affine or not."""
    shape = tuple(a["normalized_shape"])
    weight, bias = a.get("weight"), a.get("bias")
    ones = np.ones(shape, dtype=np.float32)
    scale = b.constant(ones) if weight is None else b.value(weight, fan_in=0)
    inputs = [b.value(a["input"]), scale]
    if bias is not None:
        inputs.append(b.value(bias, fan_in=math.prod(shape)))
    b.emit("LayerNormalization", inputs, [out], axis=-len(shape), epsilon=float(a["eps"]))


def group_norm(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """Group norm: an instance norm of every group as one channel, then weight and bias."""
    x, groups = a["input"], int(a["num_groups"])
    flat = (x.shape[0], groups, x[0].numel() // groups)
    y = b.step("Reshape", [b.value(x), b.integers(flat)], flat)
    ones, zeros = np.ones(groups, dtype=np.float32), np.zeros(groups, dtype=np.float32)
    inputs = [y, b.constant(ones), b.constant(zeros)]
    y = b.step("InstanceNormalization", inputs, flat, epsilon=float(a["eps"]))
    weight, bias = a.get("weight"), a.get("bias")
    if weight is None or bias is None:
        b.emit("Reshape", [y, b.integers(out.shape)], [out])
        return
    y = b.step("Reshape", [y, b.integers(out.shape)], out.shape)
    y = b.step("Mul", [y, _per_channel(b, weight, out, fan_in=0)], out.shape)
    b.emit("Add", [y, _per_channel(b, bias, out, fan_in=x.shape[1])], [out])


def prelu(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """ReLU with a slope that was learnt, one or one for every channel."""
    x, slope = a["self"], a["weight"]
    several = slope.numel() > 1
    name = (
        _per_channel(b, slope, x, fan_in=slope.numel())
        if several
        else b.value(slope, fan_in=slope.numel())
    )
    b.emit("PRelu", [b.value(x), name], [out])


def _per_channel(b: GraphBuilder, weights: Tensor, x: Tensor, *, fan_in: int) -> str:
    """A vector of weights as (C, 1, ...), which broadcasts over (N, C, ...)."""
    shape = (weights.shape[0], *(1,) * (x.ndim - 2))
    return b.step("Reshape", [b.value(weights, fan_in=fan_in), b.integers(shape)], shape)


# -- products ------------------------------------------------------------------------------------


def matmul(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """Product of two computed tensors (or of one and a parameter)."""
    second = a.get("other", a.get("mat2"))
    b.emit("MatMul", [b.value(a["self"]), b.value(second)], [out])


def addmm(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """beta·self + alpha·mat1 @ mat2."""
    operands = [b.value(a["mat1"]), b.value(a["mat2"]), b.value(a["self"])]
    b.emit("Gemm", operands, [out], alpha=float(a["alpha"]), beta=float(a["beta"]))


def attention(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """softmax(q kᵀ · scale + mask) v as explicit products: fused kernels differ per device."""
    if a.get("dropout_p") or a.get("is_causal") or a.get("enable_gqa"):
        raise UnsupportedOperatorError("attention with dropout, a causal mask or grouped heads")
    q, k, v = a["query"], a["key"], a["value"]
    scale = a.get("scale") or q.shape[-1] ** -0.5
    axes = (*range(k.ndim - 2), k.ndim - 1, k.ndim - 2)
    scores_shape = (*q.shape[:-1], k.shape[-2])
    turned = b.step("Transpose", [b.value(k)], [k.shape[i] for i in axes], perm=axes)
    scores = b.step("MatMul", [b.value(q), turned], scores_shape)
    scores = b.step("Mul", [scores, b.value(float(scale))], scores_shape)
    if a.get("attn_mask") is not None:
        scores = b.step("Add", [scores, b.value(a["attn_mask"])], scores_shape)
    weights = b.step("Softmax", [scores], scores_shape, axis=-1)
    b.emit("MatMul", [weights, b.value(v)], [out])


# -- element by element --------------------------------------------------------------------------


def unary(op: str, **attributes: float) -> Handler:
    """An operator of one operand with fixed attributes."""

    def handler(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
        b.emit(op, [b.value(a["self"])], [out], **attributes)

    return handler


def clip(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """hardtanh (ReLU6 is one) and clamp."""
    low, high = a.get("min_val", a.get("min")), a.get("max_val", a.get("max"))
    bounds = ["" if bound is None else b.value(float(bound)) for bound in (low, high)]
    while bounds and not bounds[-1]:
        bounds.pop()
    b.emit("Clip", [b.value(a["self"]), *bounds], [out])


def relu6(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """Clip to 0…6."""
    clip(b, {"self": a["self"], "min": 0.0, "max": 6.0}, out)


def silu(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """x · sigmoid(x)."""
    x = b.value(a["self"])
    b.emit("Mul", [x, b.step("Sigmoid", [x], out.shape)], [out])


def gelu(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """x/2 · (1 + erf(x / √2)), in the order that runtimes recognise and fuse."""
    if a.get("approximate", "none") != "none":
        raise UnsupportedOperatorError("aten::gelu(approximate='tanh')")
    x, shape = b.value(a["self"]), out.shape
    t = b.step("Div", [x, b.value(math.sqrt(2.0))], shape)
    t = b.step("Erf", [t], shape)
    t = b.step("Add", [t, b.value(1.0)], shape)
    t = b.step("Mul", [x, t], shape)
    b.emit("Mul", [t, b.value(0.5)], [out])


def leaky_relu(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """x or slope · x."""
    b.emit("LeakyRelu", [b.value(a["self"])], [out], alpha=float(a["negative_slope"]))


def binary(op: str, *, scales: bool = False) -> Handler:
    """Two operands that broadcast. ``scales``: a weight as operand is a factor, near one."""

    def handler(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
        if a.get("alpha", 1) != 1 or a.get("rounding_mode") is not None:
            raise UnsupportedOperatorError(f"{op} with alpha or rounding")
        fan_in = 0 if scales else None
        operands = [b.value(a[k], fan_in=fan_in) for k in ("self", "other")]
        b.emit(op, operands, [out])

    return handler


def reversed_sub(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """other − self, as torch writes ``1 - x``."""
    if a.get("alpha", 1) != 1:
        raise UnsupportedOperatorError("Sub with alpha")
    b.emit("Sub", [b.value(a["other"]), b.value(a["self"])], [out])


def power(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """x to a constant power."""
    b.emit("Pow", [b.value(a["self"]), b.value(a["exponent"])], [out])


def softmax(b: GraphBuilder, a: Arguments, out: Tensor) -> None:
    """Softmax over one axis."""
    b.emit("Softmax", [b.value(a["self"])], [out], axis=axis_of(a["dim"], out))


_RESHAPES = ("reshape", "view", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze")
_PASSES = ("contiguous", "clone", "detach", "alias", "to", "_to_copy", "lift_fresh", "type_as",
           "positive")  # fmt: skip

HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(("conv1d", "conv2d", "convolution"), convolution),
    **dict.fromkeys(("batch_norm", "native_batch_norm"), batch_norm),
    "linear": linear,
    "layer_norm": layer_norm,
    "group_norm": group_norm,
    "prelu": prelu,
    **dict.fromkeys(("matmul", "mm", "bmm"), matmul),
    "addmm": addmm,
    "scaled_dot_product_attention": attention,
    "relu": unary("Relu"),
    "hardswish": unary("HardSwish"),
    "hardsigmoid": unary("HardSigmoid", alpha=1.0 / 6.0, beta=0.5),
    "sigmoid": unary("Sigmoid"),
    "tanh": unary("Tanh"),
    "exp": unary("Exp"),
    "sqrt": unary("Sqrt"),
    "neg": unary("Neg"),
    "abs": unary("Abs"),
    **dict.fromkeys(("hardtanh", "clamp"), clip),
    "relu6": relu6,
    "silu": silu,
    "gelu": gelu,
    "leaky_relu": leaky_relu,
    "add": binary("Add"),
    "sub": binary("Sub"),
    "rsub": reversed_sub,
    "mul": binary("Mul", scales=True),
    "div": binary("Div", scales=True),
    "pow": power,
    "softmax": softmax,
    "_softmax": softmax,
    "mean": shapes.mean,
    "adaptive_avg_pool2d": shapes.adaptive_avg_pool,
    "avg_pool2d": shapes.pool("AveragePool"),
    "max_pool2d": shapes.pool("MaxPool"),
    "upsample_nearest2d": shapes.upsample_nearest,
    **dict.fromkeys(_PASSES, shapes.passes),
    **dict.fromkeys(("dropout", "feature_dropout"), shapes.dropout),
    **dict.fromkeys(_RESHAPES, shapes.reshape),
    "permute": shapes.permute,
    "transpose": shapes.transpose,
    "t": shapes.t,
    "expand": shapes.expand,
    "cat": shapes.concat,
    "concat": shapes.concat,
    **dict.fromkeys(("split", "split_with_sizes"), shapes.split),
    "chunk": shapes.split,
    "unbind": shapes.unbind,
    "select": shapes.select,
    "slice": shapes.slice_,
    "index_select": shapes.index_select,
    "index": shapes.index,
    "embedding": shapes.embedding,
    **dict.fromkeys(("pad", "constant_pad_nd"), shapes.pad),
    "channel_shuffle": shapes.channel_shuffle,
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros"), shapes.filled(0.0)),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), shapes.filled(1.0)),
    **dict.fromkeys(("full", "full_like", "new_full"), shapes.filled(0.0)),
}
"""Name of torch's operator without its namespace and the underscore of in-place forms."""
