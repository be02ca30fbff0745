"""A small network with the operators that candidates have."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SHAPE = (1, 3, 12, 12)
LOCATION = "weights.bin"


def residual_net(batch: int | str = 1, *, external: bool = False) -> tuple[bytes, bytes]:
    """Convolution, depthwise convolution, residual, pooling, classifier; model and weight bytes.

    ``external`` keeps the weights in a file of their own, as candidates have them.
    """
    rng = np.random.Generator(np.random.PCG64(3))
    weights: list[TensorProto] = []
    data = b""

    def weight(name: str, *shape: int) -> str:
        nonlocal data
        values = rng.uniform(-0.5, 0.5, shape).astype(np.float32)
        tensor = numpy_helper.from_array(values, name)
        if external:
            raw = values.tobytes()
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", LOCATION), ("offset", len(data)), ("length", len(raw))):
                tensor.external_data.add(key=key, value=str(value))
            data += raw
        weights.append(tensor)
        return name

    def conv(x: str, y: str, name: str, pads: int, **attributes: Any) -> Any:
        return helper.make_node("Conv", [x, name], [y], pads=[pads] * 4, **attributes)

    nodes = [
        conv("image", "a", weight("w0", 8, 3, 3, 3), 1),
        helper.make_node("Relu", ["a"], ["b"]),
        conv("b", "c", weight("w1", 8, 1, 3, 3), 1, group=8),
        helper.make_node("HardSwish", ["c"], ["d"]),
        conv("d", "e", weight("w2", 8, 8, 1, 1), 0),
        helper.make_node("Add", ["e", "b"], ["f"]),
        helper.make_node("GlobalAveragePool", ["f"], ["g"]),
        helper.make_node("Flatten", ["g"], ["h"]),
        helper.make_node("Gemm", ["h", weight("w3", 8, 5), weight("w4", 5)], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, *SHAPE[1:]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 5])],
        weights,
    )
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, ir_version=8, opset_imports=opset)
    return bytes(model.SerializeToString()), data


def image(batch: int = 1) -> NDArray[np.float32]:
    rng = np.random.Generator(np.random.PCG64(5))
    return rng.standard_normal((batch, *SHAPE[1:])).astype(np.float32)


def expected(model: bytes, feeds: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """What onnxruntime makes of it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    result: NDArray[Any] = session.run(None, feeds)[0]
    return result
