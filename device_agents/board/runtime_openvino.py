"""Runtime fragment: OpenVINO, which reads ONNX files as they are.

One stream with as many threads as the agent pins cores for; OpenVINO's own pinning is off, because
the process is pinned already. Precision is float32 unless ``options`` say otherwise: by itself
OpenVINO may compute in 16 bits where the processor can, which is another network.

The package ``openvino`` reports its import to its vendor where ``openvino_telemetry`` is installed.
That module is hidden before the import, so nothing is sent and no consent file is written.
"""

from __future__ import annotations

import importlib
import statistics
import sys
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

PROVIDER = "CPU"
PRECISIONS = ("f32", "f16", "bf16")
OPTIONS = ("precision",)
PROFILE_RUNS = 5

_TYPES = {
    "f16": "float16",
    "f32": "float",
    "f64": "double",
    "boolean": "bool",
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "u8": "uint8",
    "u16": "uint16",
    "u32": "uint32",
    "u64": "uint64",
}


def _module() -> Any:
    # None makes "import openvino_telemetry" fail, and openvino takes its silent stand-in
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


def describe() -> Dict[str, Any]:
    """Name, version and devices of this runtime. Raises ImportError where it is missing."""
    module = _module()
    return {
        "name": "openvino",
        "version": str(module.__version__).split("-", 1)[0],
        "build": str(module.__version__),
        "provider": PROVIDER,
        "providers": list(module.Core().available_devices),
    }


class Session:
    """One compiled network; ``inputs`` are (name, shape, element type).

    ``provider`` is a device that :func:`describe` lists, by default "CPU". ``options`` may hold
    ``precision``: "f32" (default), "f16" or "bf16". OpenVINO has no levels of graph optimisation
    and decides itself how its threads wait: only ``optimization`` "all" is accepted, ``spinning``
    is ignored. Raises ValueError for options that do not exist, RuntimeError where the network
    cannot be read or compiled.
    """

    def __init__(
        self,
        path: str,
        *,
        threads: int,
        spinning: bool,
        optimization: str,
        provider: str = "",
        options: Optional[Dict[str, Any]] = None,
    ) -> None:
        del spinning
        if optimization != "all":
            raise ValueError(
                "OpenVINO has no graph optimization {!r}; allowed: all".format(optimization)
            )
        self._module = _module()
        self._core = self._module.Core()
        self._device = provider or PROVIDER
        self._settings = _settings(self._device, threads, options or {})
        devices = list(self._core.available_devices)
        if self._device not in devices:
            raise ValueError(
                "OpenVINO device {!r} does not exist; there are: {}".format(
                    self._device, ", ".join(devices)
                )
            )
        self._model = self._core.read_model(path)
        self._compiled = self._core.compile_model(self._model, self._device, self._settings)
        self.inputs: List[Tuple[str, Sequence[Any], str]] = [
            (_name(port, port.node.friendly_name), _shape(port), _element(port))
            for port in self._model.inputs
        ]
        self.output_names = [
            _name(port, port.node.friendly_name.rsplit("/sink_port_", 1)[0])
            for port in self._model.outputs
        ]

    def prepare(self, feeds: Dict[str, Any]) -> Callable[[], List[Any]]:
        """A call without arguments that runs once on ``feeds``; outputs are overwritten by it."""
        request = self._request(self._compiled, feeds)
        outputs = [request.get_output_tensor(i) for i in range(len(self.output_names))]
        fixed = all(port.partial_shape.is_static for port in self._compiled.outputs)

        def call(held: Any = feeds) -> List[Any]:
            del held  # tensors share the arrays' memory without keeping them alive
            request.infer()
            if fixed:
                return [tensor.data for tensor in outputs]
            return [request.get_output_tensor(i).data for i in range(len(outputs))]

        return call

    def _request(self, compiled: Any, feeds: Dict[str, Any]) -> Any:
        request = compiled.create_infer_request()
        for index, (name, _, _) in enumerate(self.inputs):
            # shared: what is timed starts with the array in place, as with other runtimes
            request.set_input_tensor(index, self._module.Tensor(feeds[name], shared_memory=True))
        return request

    def profile(self, feeds: Dict[str, Any]) -> List[Dict[str, Any]]:
        """Median ns of each operator that ran, from a second, instrumented compilation."""
        settings = dict(self._settings, PERF_COUNT=True)
        compiled = self._core.compile_model(self._model, self._device, settings)
        request = self._request(compiled, feeds)
        request.infer()
        times: Dict[str, List[int]] = {}
        nodes: Dict[str, Any] = {}
        for _ in range(PROFILE_RUNS):
            request.infer()
            for node in request.profiling_info:
                if str(node.status).endswith("EXECUTED"):
                    times.setdefault(node.node_name, []).append(_ns(node.real_time))
                    nodes[node.node_name] = node
        return [
            {
                "name": name,
                "op": nodes[name].node_type,
                "ns": int(statistics.median(taken)),
                "provider": self._device,
                "kernel": nodes[name].exec_type,
            }
            for name, taken in times.items()
        ]

    def evidence(self) -> Dict[str, Any]:
        """What OpenVINO says it does: threads, streams, pinning and precision."""
        supported = {str(name) for name in self._compiled.get_property("SUPPORTED_PROPERTIES")}
        names = (
            "INFERENCE_NUM_THREADS",
            "NUM_STREAMS",
            "ENABLE_CPU_PINNING",
            "INFERENCE_PRECISION_HINT",
        )
        return {
            name.lower(): _plain(self._compiled.get_property(name))
            for name in names
            if name in supported
        }


def _settings(device: str, threads: int, options: Dict[str, Any]) -> Dict[str, Any]:
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise ValueError(
            "OpenVINO option {!r} does not exist; allowed: {}".format(
                unknown[0], ", ".join(OPTIONS)
            )
        )
    precision = options.get("precision", "f32")
    if precision not in PRECISIONS:
        raise ValueError("precision {!r}; allowed: {}".format(precision, ", ".join(PRECISIONS)))
    settings: Dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    if device == PROVIDER:
        settings.update(
            {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
        )
    return settings


def _name(port: Any, original: str) -> str:
    """The ONNX name: a port may have several names, of which one is its node's."""
    names = port.names
    return original if original in names or not names else str(port.get_any_name())


def _shape(port: Any) -> List[Any]:
    return [
        dimension.get_length() if dimension.is_static else str(dimension)
        for dimension in port.partial_shape
    ]


def _element(port: Any) -> str:
    name = str(port.element_type.get_type_name())
    return _TYPES.get(name, name)


def _ns(duration: Any) -> int:
    ns: int = round(duration.total_seconds() * 1e9)
    return ns


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float)) else str(value)
