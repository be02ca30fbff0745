"""The reference network: a fixed small CNN that is timed between candidates.

Its latency tells drift of the board from differences between candidates, and ratios to it compare
boards. The files are generated, not stored: equal sizes give equal bytes. Opset 17 and IR 8 load
everywhere since onnxruntime 1.12.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from latency_tables.errors import UsageError

# name -> (channels, blocks, height and width); choose one near the candidates' cost
SIZES = {"tiny": (16, 6, 8), "small": (24, 10, 28), "medium": (48, 12, 56)}
EXPAND = 3


def reference_macs(size: str) -> int:
    """Multiply-accumulates of the inverted residuals of a size."""
    channels, blocks, side = SIZES[size]
    return blocks * side**2 * channels * EXPAND * (2 * channels + 9)


def reference_for(macs: float) -> str:
    """The size whose cost is nearest to that of typical candidates.

    >>> reference_for(1e6), reference_for(3e8)
    ('tiny', 'medium')
    """
    return min(SIZES, key=lambda size: abs(math.log(max(macs, 1.0) / reference_macs(size))))


@cache
def reference_model(size: str) -> bytes:
    """An ONNX file: a 3×3 convolution, ``blocks`` inverted residuals, pooling, linear classifier.

    The same kinds of operators as the candidates: what slows many small operators down (a busy
    neighbour on the same core, cold caches) hardly shows in one large convolution.

    Raises UsageError naming the sizes.

    >>> reference_model("tiny") == reference_model.__wrapped__("tiny")
    True
    """
    from onnx import TensorProto, helper, numpy_helper

    if size not in SIZES:
        raise UsageError(f"reference network {size!r} does not exist; there are {list(SIZES)}")
    channels, blocks, side = SIZES[size]
    rng = np.random.Generator(np.random.PCG64(20260101))
    nodes, weights = [], []

    def conv(x: str, name: str, c_in: int, c_out: int, kernel: int, groups: int = 1) -> str:
        shape = (c_out, c_in // groups, kernel, kernel)
        values = rng.uniform(-1, 1, shape).astype(np.float32)
        values *= np.float32(np.sqrt(6 / (kernel**2 * c_in / groups)))  # unit variance behind ReLU
        weights.append(numpy_helper.from_array(values, f"{name}.w"))
        pads = [kernel // 2] * 4
        nodes.append(helper.make_node("Conv", [x, f"{name}.w"], [name], pads=pads, group=groups))
        return name

    def relu(x: str) -> str:
        nodes.append(helper.make_node("Relu", [x], [f"{x}.relu"]))
        return f"{x}.relu"

    last, wide = relu(conv("input", "stem", 3, channels, 3)), channels * EXPAND
    for index in range(blocks):
        x = relu(conv(last, f"expand{index}", channels, wide, 1))
        x = relu(conv(x, f"depthwise{index}", wide, wide, 3, groups=wide))
        x = conv(x, f"project{index}", wide, channels, 1)
        nodes.append(helper.make_node("Add", [last, x], [f"sum{index}"]))
        last = f"sum{index}"
    matrix = rng.uniform(-0.1, 0.1, (channels, 10)).astype(np.float32)
    weights.append(numpy_helper.from_array(matrix, "matrix"))
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "matrix"], ["output"]))
    graph = helper.make_graph(
        nodes,
        f"reference-{size}",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 10])],
        weights,
    )
    model = helper.make_model(
        graph, producer_name="hilnas", ir_version=8, opset_imports=[helper.make_opsetid("", 17)]
    )
    data: bytes = model.SerializeToString(deterministic=True)
    return data
