"""Each runtime in a child of the real agent: pinned, timed, compared with onnxruntime."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_agents.devices import DeviceSpec
from device_agents.files.golden import Golden
from device_agents.files.measure_file import measure_file
from device_agents.link.client import AgentClient
from device_agents.link.local import LocalTransport, ProcessChannel
from device_agents.measuring.profiles import Profile
from device_agents.measuring.reference import reference_model
from device_agents.runtimes.artefacts import Artefact, prepare
from latency_tables.errors import MissingRuntimeError
from tests.device_agents.agents import measure_request
from tests.device_agents.runtimes.nets import expected, image, residual_net
from tests.device_agents.runtimes.test_ncnn import installed as ncnn_installed
from tests.device_agents.runtimes.test_openvino import installed as openvino_installed

Start = Callable[..., ProcessChannel]


def npy(array: Any) -> bytes:
    import io

    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def send(workdir: Path, artefact: Artefact) -> dict[str, Any]:
    put = LocalTransport(workdir).put
    return {
        "blob": put(artefact.main),
        "files": {name: put(data) for name, data in artefact.files.items()},
    }


def measured(client: AgentClient, request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The one network's event, and the answer."""
    heard: list[tuple[str, dict[str, Any]]] = []
    answer = client.request(
        "measure", request, timeout_s=60, on_event=lambda event, data: heard.append((event, data))
    )
    [net] = [data for event, data in heard if event in ("net", "failed")]
    return net, answer


@pytest.fixture
def client(start_agent: Start) -> AgentClient:
    client = AgentClient(start_agent())
    client.request("hello", {"owner": "test"}, timeout_s=10)
    return client


@openvino_installed
def test_a_file_is_measured_with_openvino_and_its_answer_is_that_of_onnxruntime(
    tmp_path: Path, device: DeviceSpec, fast: Profile
) -> None:
    model, _ = residual_net()
    (tmp_path / "net.onnx").write_bytes(model)
    feeds = {"image": image()}
    golden = Golden(inputs=feeds, outputs={"logits": expected(model, feeds)}, atol=1e-5)
    found = measure_file(
        tmp_path / "net.onnx",
        replace(device, runtime="openvino"),
        profile=fast,
        golden=golden,
        peak_memory=False,
    ).measurement
    assert found.error is None
    assert not {"WRONG_ANSWER", "MIGRATED"} & {verdict.code for verdict in found.verdicts}
    assert found.runtime["name"] == "openvino"
    assert found.runtime["provider"] == "CPU"


@ncnn_installed
def test_a_converted_network_runs_in_the_agent_with_a_converted_reference(
    tmp_path: Path, client: AgentClient
) -> None:
    workdir = tmp_path / "agent"
    put = LocalTransport(workdir).put
    model, _ = residual_net()
    feeds = {"image": image()}
    net = {
        "name": "0",
        **send(workdir, prepare("ncnn", model)),
        "golden": {
            "inputs": {"image": put(npy(feeds["image"]))},
            "outputs": {"logits": put(npy(expected(model, feeds)))},
            "atol": 1e-4,
            "rtol": 1e-4,
        },
    }
    request = measure_request(workdir, model, runtime="ncnn", nets=[net])
    request["reference"] = send(workdir, prepare("ncnn", reference_model("tiny")))
    heard, answer = measured(client, request)
    assert heard["golden"]["right"], heard
    assert heard["masks_outside"] == []
    assert heard["runtime_evidence"]["use_fp16_storage"] is False
    assert answer["runtime"]["name"] == "ncnn"


@pytest.mark.parametrize("failing_mask", [0xFFFFFFFF, 1])
def test_an_npu_library_in_the_site_folder_is_used(
    tmp_path: Path,
    client: AgentClient,
    build_stub: Callable[..., Path],
    make_rknn: Callable[..., Path],
    failing_mask: int,
) -> None:
    workdir = tmp_path / "agent"
    (workdir / "site" / "stub").mkdir(parents=True)
    shutil.copy(build_stub() / "librknnrt.so", workdir / "site" / "stub")
    (workdir / "site" / "current").write_text("stub")
    reference = make_rknn().read_bytes()
    request = measure_request(
        workdir, make_rknn(failing_mask=failing_mask).read_bytes(), runtime="rknn"
    )
    request["reference"] = {"blob": LocalTransport(workdir).put(reference)}
    heard, answer = measured(client, request)
    assert answer["runtime"]["library"]["path"].startswith(str(workdir / "site"))
    if failing_mask == 1:  # the default mask, core 0
        assert heard["error"]["code"] == "RUN_CRASHED"
        assert "rknn_run returned -1" in heard["error"]["message"]
    else:
        assert heard["finite"] is True
        assert heard["runtime_evidence"]["npu_share"]["by_count"] == 0.5


@pytest.mark.skipif(os.path.exists("/usr/lib/librknnrt.so"), reason="this machine has an RKNN NPU")
def test_a_runtime_that_the_device_lacks_is_named_before_anything_is_measured(
    device: DeviceSpec, fast: Profile
) -> None:
    from device_agents.measuring.measurer import DeviceMeasurer

    lacking = replace(device, runtime="rknn")
    with pytest.raises(MissingRuntimeError, match="runtime 'rknn' does not work on the device"):
        DeviceMeasurer(lacking, profile=fast).runtime()
