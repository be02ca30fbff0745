"""rknn-toolkit-lite2, the vendor's Python package for the board: only where ctypes cannot be used.

It tells neither the driver's time of a run nor layers, and converts data in Python, so its
latency is larger than that of librknnrt.so called directly. Records say which one was used.
"""

from __future__ import annotations

import importlib
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

Json = Dict[str, Any]


def _class() -> Any:
    return importlib.import_module("rknnlite.api").RKNNLite


def describe() -> Json:
    """Name and version. Raises ImportError where the package is missing."""
    _class()
    try:
        from importlib.metadata import version
    except ImportError:  # Python 3.7
        text = "unknown"
    else:
        text = version("rknn-toolkit-lite2")
    return {
        "name": "rknn",
        "version": "lite2-" + text,
        "provider": "NPU",
        "providers": ["NPU"],
        "api": "lite2",
    }


class LiteSession:
    """One network; ``names`` are those that the host wrote, because lite2 tells none."""

    def __init__(
        self,
        path: str,
        names: Json,
        mask: int,
        *,
        threads: int,
        spinning: bool,
        optimization: str,
        provider: str = "",
        options: Optional[Json] = None,
    ) -> None:
        del threads, spinning, optimization, provider, options
        if not names:
            raise ValueError("rknn-toolkit-lite2 needs model.rknn.json beside the model")
        self._names, self._mask = names, mask
        self._lite = _class()()
        for step, code in (
            ("load_rknn", self._lite.load_rknn(path)),
            ("init_runtime", self._lite.init_runtime(core_mask=mask)),
        ):
            if code != 0:
                raise RuntimeError("rknn-toolkit-lite2: {} returned {}".format(step, code))
        self.inputs: List[Tuple[str, Sequence[int], str]] = [
            (entry["name"], entry["shape"], entry.get("type", "float")) for entry in names["inputs"]
        ]
        self.output_names = [entry["name"] for entry in names["outputs"]]

    def prepare(self, feeds: Json) -> Callable[[], List[Any]]:
        """A call without arguments that runs once on ``feeds``."""
        arrays = [feeds[name] for name, _, _ in self.inputs]
        formats = ["nchw" if array.ndim == 4 else None for array in arrays]
        infer = self._lite.inference

        def call() -> List[Any]:
            outputs = infer(inputs=arrays, data_format=formats)
            if outputs is None:
                raise RuntimeError("rknn-toolkit-lite2: inference gave nothing")
            return list(outputs)

        return call

    def evidence(self) -> Json:
        """Which interface gave the number."""
        return {"headline": "call_wall_us", "api": "lite2", "core_mask": self._mask}
