"""The newest ONNX file that a runtime on a board takes: IR version and opset.

Runtimes refuse files that are newer than themselves, and none says beforehand which those are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from device_agents.identity import clean_json
from device_agents.link.client import clean_text
from device_agents.link.session import Session
from latency_tables.errors import ProtocolError

LIMITS_S = 300.0
OLDEST_IR, OLDEST_OPSET = 4, 9
"""Every onnxruntime for Python 3.7 and newer takes these."""
MORE_IR = 2
"""How far above the newest IR version of our onnx package to look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxLimits:
    """Highest IR version and opset that load; None where not even the oldest does."""

    ir: int | None
    opset: int | None
    errors: Mapping[str, str] = field(default_factory=dict)

    def takes(self, ir: int, opset: int) -> bool:
        """Whether a file of these versions loads.

        >>> OnnxLimits(ir=9, opset=20).takes(10, 17)
        False
        """
        return ir <= (self.ir or 0) and opset <= (self.opset or 0)


@cache
def ladder() -> tuple[tuple[str, int, int, bytes], ...]:
    """Models of one Relu: (limit that it tests, IR version, opset, file).

    >>> {of for of, *_ in ladder()} == {"ir", "opset"}
    True
    """
    import onnx

    newest_ir, newest_opset = int(onnx.IR_VERSION), int(onnx.defs.onnx_opset_version())
    return (
        *(
            ("ir", ir, OLDEST_OPSET, _relu(ir, OLDEST_OPSET))
            for ir in range(OLDEST_IR, newest_ir + MORE_IR + 1)
        ),
        *(
            ("opset", OLDEST_IR, opset, _relu(OLDEST_IR, opset))
            for opset in range(OLDEST_OPSET, newest_opset + 1)
        ),
    )


def find_limits(session: Session, runtime: str = "onnxruntime") -> OnnxLimits:
    """Ask a board by loading the ladder there.

    Raises MissingRuntimeError where the runtime does not work, or another DeviceError.
    """
    rungs = ladder()
    blobs = session.transport.put_all([content for *_, content in rungs])
    models = [
        {"of": of, "ir": ir, "opset": opset, "blob": blob}
        for (of, ir, opset, _), blob in zip(rungs, blobs, strict=True)
    ]
    said = session.request("limits", {"runtime": runtime, "models": models}, timeout_s=LIMITS_S)
    errors = clean_json(said.get("errors"))
    return OnnxLimits(
        ir=_version(said, "ir"),
        opset=_version(said, "opset"),
        errors={k: clean_text(v, 300) for k, v in errors.items()} if errors else {},
    )


def _version(said: Mapping[str, Any], name: str) -> int | None:
    value = said.get(name)
    if value is not None and (type(value) is not int or not 0 < value < 1000):
        raise ProtocolError(f"the highest {name} is {clean_text(value, 60)!r}, which is no version")
    return value


def _relu(ir: int, opset: int) -> bytes:
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "limit", values[:1], values[1:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = ir
    return bytes(model.SerializeToString(deterministic=True))
