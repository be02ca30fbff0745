"""An ONNX file made ready for a device: read, described, converted, with expected outputs, sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from device_agents.files.given_inputs import Arrays
from device_agents.files.golden import Golden, HostAnswer, host_answer, relative_tolerance
from device_agents.files.onnx_files import ModelFacts, describe, fixed_shapes, read_model
from device_agents.measuring.batches import Net
from device_agents.measuring.measurer import DeviceMeasurer
from device_agents.runtimes.artefacts import Artefact, artefact_request, prepare
from latency_tables.files import sha256_bytes, sha256_json


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """What is known of a file before it is sent.

    ``given`` are the shapes that the user fixed, ``shapes`` those of all inputs. ``answer`` holds
    inputs and expected outputs, or says why there are none.
    """

    onnx: bytes
    facts: ModelFacts
    artefact: Artefact
    given: Mapping[str, tuple[int, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    answer: HostAnswer

    @property
    def net_id(self) -> str:
        """Names the network with its shapes."""
        given = {name: list(shape) for name, shape in self.given.items()}
        return sha256_json(["file", self.facts.sha256, given])

    def send(self, used: DeviceMeasurer) -> Net:
        """Put everything on the connected device. Raises DeviceError."""
        sources = self.artefact.parts()
        golden = self.answer.golden

        def put(data: bytes) -> str:
            sources.append(data)
            return sha256_bytes(data)  # a blob's name

        sample = None if golden is None else golden.put(put)
        request = artefact_request(self.artefact, iter(used.upload(sources)))
        return Net(name="0", shapes=dict(self.given), golden=sample, **request)


def prepare_file(
    path: Path,
    used: DeviceMeasurer,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    inputs: Arrays | None = None,
    golden: Golden | None = None,
    check_outputs: bool = True,
) -> ModelFile:
    """Read a file and ask this machine's onnxruntime for its outputs, unless ``golden`` has them.

    Raises UsageError (no such file, shape or input) and MeasurementError (no model, external data
    outside the file's folder, not convertible for the device's runtime).
    """
    model, files = read_model(path)
    facts = describe(path.name, model, files)
    given = {name: tuple(shape) for name, shape in (shapes or {}).items()}
    given.update({name: array.shape for name, array in (inputs or {}).items()})
    fixed = fixed_shapes(facts, given)
    answer = HostAnswer(golden=golden, note="" if golden else "not asked for")
    with used.exclusive():
        if golden is None and (check_outputs or inputs):
            relative = relative_tolerance(used.device.runtime, used.device.provider)
            answer = host_answer(path, facts, fixed, inputs, relative=relative)
        artefact = prepare(
            used.device.runtime, model, files, options=used.device.runtime_options, shapes=fixed
        )
    return ModelFile(
        onnx=model, facts=facts, artefact=artefact, given=given, shapes=fixed, answer=answer
    )
