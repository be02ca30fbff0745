"""The reference network: a fixed small CNN that is timed between candidates.

Its latency tells drift of the board from differences between candidates, and ratios to it compare
boards. The files are generated, not stored: equal sizes give equal bytes. Opset 17 and IR 8 load
everywhere since onnxruntime 1.12.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from latency_tables.errors import UsageError

# name -> (channels, blocks, height and width); choose one near the candidates' cost
SIZES = {"tiny": (24, 6, 16), "small": (32, 8, 32), "medium": (64, 8, 56)}


@cache
def reference_model(size: str) -> bytes:
    """An ONNX file: ``blocks`` × (3×3 convolution, ReLU), global pooling, linear classifier.

    Raises UsageError naming the sizes.

    >>> reference_model("tiny") == reference_model.__wrapped__("tiny")
    True
    """
    from onnx import TensorProto, helper, numpy_helper

    if size not in SIZES:
        raise UsageError(f"reference network {size!r} does not exist; there are {list(SIZES)}")
    channels, blocks, side = SIZES[size]
    rng = np.random.Generator(np.random.PCG64(20260101))
    nodes, weights, last, width = [], [], "input", 3
    for index in range(blocks):
        kernel = rng.uniform(-1, 1, (channels, width, 3, 3)).astype(np.float32)
        kernel *= np.float32(np.sqrt(6 / (9 * width)))  # keeps activations near unit variance
        weights.append(numpy_helper.from_array(kernel, f"kernel{index}"))
        nodes.append(
            helper.make_node("Conv", [last, f"kernel{index}"], [f"conv{index}"], pads=[1, 1, 1, 1])
        )
        nodes.append(helper.make_node("Relu", [f"conv{index}"], [f"relu{index}"]))
        last, width = f"relu{index}", channels
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
