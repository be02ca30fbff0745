"""What a right device answers: the model's outputs on this machine's onnxruntime.

The device gets the inputs and these outputs, and compares on its own. The tolerance of an output
follows its size: a share of its largest value (0.001, and 0.02 for runtimes that compute with half
precision), because values near zero are differences of large ones. 8-bit integers may be one off:
rounding differs between processors.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agents.board.inputs import UnsupportedInput, random_inputs
from device_agents.files.given_inputs import Arrays, total_bytes
from device_agents.files.onnx_files import ModelFacts
from device_agents.link.client import clean_text

MAX_BYTES = 64 << 20
"""Inputs, and outputs, that are sent for the comparison; what is larger is not compared."""

RELATIVE = 1e-3
RELATIVE_HALF = 2e-2
INPUT_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """Inputs and the outputs that a right device gives for them, by tensor name.

    ``atols`` replaces ``atol`` for the outputs that it names.
    """

    inputs: Mapping[str, NDArray[Any]]
    outputs: Mapping[str, NDArray[Any]]
    atol: float = 1e-3
    rtol: float = 1e-3
    atols: Mapping[str, float] = field(default_factory=dict)

    def put(self, put: Callable[[bytes], str]) -> dict[str, Any]:
        """Send the arrays; gives what the agent reads."""
        return {
            "inputs": {name: put(npy(array)) for name, array in self.inputs.items()},
            "outputs": {name: put(npy(array)) for name, array in self.outputs.items()},
            "atol": self.atol,
            "rtol": self.rtol,
            "atols": dict(self.atols),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class HostAnswer:
    """A golden sample, or None; ``note`` says what is not compared and why."""

    golden: Golden | None
    note: str = ""


def host_answer(
    path: Path,
    facts: ModelFacts,
    shapes: Mapping[str, tuple[int, ...]],
    given: Arrays | None = None,
    *,
    relative: float = RELATIVE,
) -> HostAnswer:
    """Run the model here, on ``given`` inputs or on the seeded ones that a device would make up.

    Never raises for the model: where this machine cannot run it, the note says so. Inputs that the
    user gave are in the answer even then, because the device needs them.
    """
    try:
        inputs = given or random_inputs(
            [(one.name, shapes[one.name], one.type) for one in facts.inputs], INPUT_SEED, {}
        )
    except UnsupportedInput as error:
        return HostAnswer(golden=None, note=str(error))
    sent = Golden(inputs=inputs, outputs={}) if given else None
    if not given and total_bytes(inputs) > MAX_BYTES:
        return HostAnswer(golden=None, note=f"the inputs have over {MAX_BYTES >> 20} MiB")
    try:
        outputs, again = _run_twice(path, inputs)
    except Exception as error:  # onnxruntime raises a dozen types of its own, none public
        reason = clean_text(error, 300).replace(str(path), facts.name)
        return HostAnswer(golden=sent, note=f"this machine cannot run the model: {reason}")
    if not all(np.array_equal(outputs[n], again[n], equal_nan=_floats(outputs[n])) for n in again):
        note = "the model answers equal inputs differently: it draws random numbers"
        return HostAnswer(golden=sent, note=note)
    kept, left = _bounded(outputs)
    note = f"not compared, over {MAX_BYTES >> 20} MiB or no numbers: {', '.join(left)}"
    golden = Golden(
        inputs=inputs,
        outputs=kept,
        rtol=relative,
        atols={name: tolerance(array, relative) for name, array in kept.items()},
    )
    return HostAnswer(golden=golden if kept or given else None, note=note if left else "")


def relative_tolerance(runtime: str, provider: str) -> float:
    """What a runtime may be off, as a share of the output."""
    exact = runtime == "onnxruntime" and provider in ("", "CPUExecutionProvider")
    return RELATIVE if exact else RELATIVE_HALF


def tolerance(expected: NDArray[Any], relative: float = RELATIVE) -> float:
    """Largest absolute error that an output may have.

    >>> tolerance(np.array([-20.0, 0.5])), tolerance(np.array([3], dtype=np.uint8))
    (0.02, 1.0)
    """
    if expected.dtype.kind == "f":
        finite = np.abs(expected[np.isfinite(expected)].astype(np.float64))
        return relative * float(finite.max(initial=0.0)) or relative
    return 1.0 if expected.dtype.kind in "iu" and expected.dtype.itemsize == 1 else 0.0


def npy(array: NDArray[Any]) -> bytes:
    """An array as the bytes of an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def import_onnxruntime() -> Any:
    """onnxruntime with telemetry off: it reads that switch when it is imported."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime


def _run_twice(path: Path, inputs: Arrays) -> tuple[Arrays, Arrays]:
    runtime = import_onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is in the note
    options.intra_op_num_threads = min(4, os.cpu_count() or 1)
    options.inter_op_num_threads = 1
    # idle workers that spin would disturb a measurement on this machine
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]
    first, second = (dict(zip(names, session.run(None, inputs), strict=True)) for _ in range(2))
    return first, second


def _floats(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind == "f"


def _bounded(outputs: Arrays) -> tuple[Arrays, list[str]]:
    """The smallest outputs that fit, and the names of the others."""
    kept: Arrays = {}
    left: list[str] = []
    room = MAX_BYTES
    for name, array in sorted(outputs.items(), key=lambda item: getattr(item[1], "nbytes", 0)):
        if isinstance(array, np.ndarray) and array.dtype.kind in "fiub" and array.nbytes <= room:
            kept[name], room = array, room - array.nbytes
        else:
            left.append(name)
    return kept, left
