"""Runtime fragment: ONNX Runtime on the CPU.

A fragment is a module named ``runtime_<name>`` in this package with ``describe`` and ``Session``.
It is imported in child processes only. onnxruntime is imported late, after the affinity is set
and its telemetry is off (wheels since 1.29 send usage data by default).
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any, Callable, Dict, List, Sequence, Tuple

PROVIDER = "CPUExecutionProvider"


def _module() -> Any:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime


def describe() -> Dict[str, Any]:
    """Name, version and providers of this runtime. Raises ImportError where it is missing."""
    module = _module()
    return {
        "name": "onnxruntime",
        "version": module.__version__,
        "provider": PROVIDER,
        "providers": list(module.get_available_providers()),
    }


class Session:
    """One loaded network with explicit threads; ``inputs`` are (name, shape, element type)."""

    def __init__(self, path: str, *, threads: int, spinning: bool, optimization: str) -> None:
        module = _module()
        options = module.SessionOptions()
        # an explicit count keeps the workers inside the mask of the process; 0 re-pins them to
        # all cores (microsoft/onnxruntime#10104)
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = module.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        options.graph_optimization_level = {
            "all": module.GraphOptimizationLevel.ORT_ENABLE_ALL,
            "extended": module.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
            "basic": module.GraphOptimizationLevel.ORT_ENABLE_BASIC,
            "disabled": module.GraphOptimizationLevel.ORT_DISABLE_ALL,
        }[optimization]
        options.log_severity_level = 3
        self._session = module.InferenceSession(path, options, providers=[PROVIDER])
        self.inputs: List[Tuple[str, Sequence[Any], str]] = [
            (node.name, list(node.shape), _element(node.type))
            for node in self._session.get_inputs()
        ]
        self.output_names = [node.name for node in self._session.get_outputs()]

    def prepare(self, feeds: Dict[str, Any]) -> Callable[[], List[Any]]:
        """A call without arguments that runs once on ``feeds``: what is timed."""
        return partial(self._session.run, None, feeds)


def _element(text: str) -> str:
    """``tensor(float)`` → ``float``; other kinds are kept and refused later."""
    return text[len("tensor(") : -1] if text.startswith("tensor(") else text
