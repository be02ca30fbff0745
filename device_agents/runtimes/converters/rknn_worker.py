"""Runs in the interpreter that has rknn-toolkit2, never in ours: a script, not a module of hilnas.

One JSON request on stdin, one JSON answer on what was stdout; the toolkit prints to stderr. It
needs nothing but rknn-toolkit2 and Python 3.8.

Request: model, output, target, dataset (None: float16). Answer: {"ok": true, "toolkit": version}
or {"ok": false, "phase": ..., "message": ...}.
"""

import importlib
import json
import os
import sys
from typing import Any, Callable, Dict, List, Tuple  # noqa: UP035  (Python 3.8)

Json = Dict[str, Any]  # noqa: UP006


def convert(request: Json) -> Json:
    """Load, build, export; the answer says in which step it failed."""
    try:
        toolkit: Any = importlib.import_module("rknn.api").RKNN(verbose=True)
    except Exception as error:  # an incomplete environment raises all sorts of things
        return {"ok": False, "phase": "import", "message": f"{type(error).__name__}: {error}"}
    dataset = request["dataset"]
    steps: List[Tuple[str, Callable[[], Any]]] = [  # noqa: UP006
        ("config", lambda: toolkit.config(target_platform=request["target"])),
        ("load_onnx", lambda: toolkit.load_onnx(model=request["model"])),
        ("build", lambda: toolkit.build(do_quantization=dataset is not None, dataset=dataset)),
        ("export_rknn", lambda: toolkit.export_rknn(request["output"])),
    ]
    try:
        for phase, step in steps:
            try:
                code = step()
            except Exception as error:
                message = f"{type(error).__name__}: {error}"
                return {"ok": False, "phase": phase, "message": message}
            if code not in (0, None):
                return {"ok": False, "phase": phase, "message": f"returned {code}"}
    finally:
        toolkit.release()
    return {"ok": True, "toolkit": version()}


def version() -> str:
    """Release of the toolkit, "unknown" where it was not installed by pip."""
    metadata = importlib.import_module("importlib.metadata")
    try:
        return str(metadata.version("rknn-toolkit2"))
    except metadata.PackageNotFoundError:
        return "unknown"


def main() -> None:
    """Answer the request on stdin."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the toolkit and its native parts print wherever they like
    result = convert(json.loads(sys.stdin.read()))
    answer.write(json.dumps(result))
    answer.flush()


if __name__ == "__main__":
    main()
