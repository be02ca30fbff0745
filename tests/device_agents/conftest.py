"""Networks that behave, networks that do not, and agents to measure them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from device_agents.board.frames import encode
from device_agents.devices import DeviceSpec
from device_agents.link.client import AgentClient
from device_agents.link.local import LocalTransport, ProcessChannel
from device_agents.link.zipapp import pack, sources
from device_agents.measuring.measurer import DeviceMeasurer
from device_agents.measuring.profiles import Profile, counted
from device_agents.measuring.replies import NetRound
from latency_tables.oracle import MeasureJob
from tests.device_agents.agents import WAIT_S, children_of, hangs, measure_request, wait_until
from tests.device_agents.rounds import make_round

FAKE_RUNTIME = Path(__file__).parents[1] / "fakes" / "runtime_fake.py"


def make_onnx(
    *, channels: int = 8, blocks: int = 2, batch: int | str = 1, doc: str = "", weight: float = 0.1
) -> bytes:
    """A chain of 3×3 convolutions; output ``output``, input ``input`` (batch, 3, 8, 8)."""
    nodes, weights, last, width = [], [], "input", 3
    for index in range(blocks):
        kernel = np.full((channels, width, 3, 3), weight / width, dtype=np.float32)
        weights.append(numpy_helper.from_array(kernel, f"k{index}"))
        out = "output" if index == blocks - 1 else f"c{index}"
        nodes.append(helper.make_node("Conv", [last, f"k{index}"], [out], pads=[1, 1, 1, 1]))
        last, width = out, channels
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, channels, 8, 8])],
        weights,
        doc_string=doc,
    )
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, ir_version=8, opset_imports=opset).SerializeToString())


def make_job(name: str, onnx: bytes | None = None, weights: Any = None) -> MeasureJob:
    return MeasureJob(
        net_id=name, arch=None, onnx=onnx or make_onnx(), weights=weights, space_id="test"
    )


@pytest.fixture(name="make_onnx", scope="session")
def _make_onnx() -> Callable[..., bytes]:
    return make_onnx


@pytest.fixture(name="make_job", scope="session")
def _make_job() -> Callable[..., MeasureJob]:
    return make_job


@pytest.fixture
def make_external() -> Callable[[str], bytes]:
    """A model (1, 3) × (3, 4) whose matrix lies in an external file at the given location."""

    def make(location: str) -> bytes:
        matrix = TensorProto(name="matrix", data_type=TensorProto.FLOAT, dims=[3, 4])
        matrix.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "48")):
            matrix.external_data.add(key=key, value=value)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["input", "matrix"], ["output"])],
            "external",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3])],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 4])],
            [matrix],
        )
        opset = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, ir_version=8, opset_imports=opset)
        return bytes(model.SerializeToString())

    return make


@pytest.fixture
def fake_job() -> Callable[..., MeasureJob]:
    """A job whose network does what the keywords say; see tests/fakes/runtime_fake.py."""
    return lambda name, **script: make_job(name, make_onnx(doc=f"fake:{json.dumps(script)}"))


@pytest.fixture(scope="session")
def fake_archive() -> bytes:
    """The agent with the fake runtime inside."""
    name = "device_agents/board/runtime_fake.py"
    return pack({**sources(), name: FAKE_RUNTIME.read_bytes()})


@pytest.fixture
def device(tmp_path: Path) -> DeviceSpec:
    return DeviceSpec(name="local", workdir=tmp_path / "agent")


@pytest.fixture
def fast() -> Profile:
    """Four runs in one round: for tests that do not look at the numbers."""
    return counted(4, 1, warmup_runs=1)


@pytest.fixture
def fake_measurer(
    device: DeviceSpec, fast: Profile, fake_archive: bytes
) -> Callable[..., DeviceMeasurer]:
    """Make a measurer that uses the fake runtime and waits for nothing."""

    def make(*, profile: Profile = fast, **settings: Any) -> DeviceMeasurer:
        spec = replace(device, runtime="fake", **settings.pop("spec", {}))
        settings.setdefault("archive", fake_archive)
        return DeviceMeasurer(spec, profile=profile, sleep=lambda seconds: None, **settings)

    return make


@pytest.fixture
def start_agent(tmp_path: Path, fake_archive: bytes) -> Iterator[Callable[..., ProcessChannel]]:
    """Start agents below one work folder; they are gone after the test."""
    channels = []

    def start(*arguments: str, workdir: Path = tmp_path / "agent") -> ProcessChannel:
        transport = LocalTransport(workdir)
        transport.open()
        channel = transport.run(transport.put(fake_archive), arguments)
        channels.append(channel)
        return channel

    yield start
    for channel in channels:
        channel.kill()


@pytest.fixture
def hanging(
    start_agent: Callable[..., ProcessChannel], tmp_path: Path, make_onnx: Callable[..., bytes]
) -> ProcessChannel:
    """An agent whose child hangs in a run."""
    channel = start_agent()
    client = AgentClient(channel)
    client.request("hello", timeout_s=WAIT_S)
    onnx = make_onnx(doc='fake:{"run": "hang"}')
    request = measure_request(tmp_path / "agent", onnx)
    channel.send(encode({**request, "v": 1, "id": 0, "op": "measure"}), WAIT_S)
    assert wait_until(lambda: any(map(hangs, children_of(channel.pid))))
    return channel


@pytest.fixture
def round_of() -> Callable[..., NetRound]:
    """One round with the given block medians; keywords change its other fields."""

    def make(block_medians: Sequence[int], **changes: Any) -> NetRound:
        return make_round([[value] for value in block_medians], **changes)

    return make
