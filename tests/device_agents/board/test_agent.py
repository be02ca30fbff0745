"""The agent as a real process: protocol, lease, and its end with everything it started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from device_agents.board.frames import MAX_FRAME_BYTES, decode
from device_agents.link.client import AgentClient
from device_agents.link.local import LocalTransport, ProcessChannel
from device_agents.link.zipapp import agent_archive
from latency_tables.errors import LeasedError, LinkLostError, ProtocolError
from latency_tables.files import sha256_bytes
from tests.device_agents.agents import WAIT_S, alive, children_of, measure_request, wait_until

Start = Callable[..., ProcessChannel]


def test_hello_names_protocol_boot_python_and_the_archive_that_runs(start_agent: Start) -> None:
    said = AgentClient(start_agent()).request("hello", {"owner": "test"}, timeout_s=WAIT_S)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert (said["protocol_version"], said["boot_id"], said["leftovers"]) == (1, boot, [])
    assert said["lease"]["owner"] == "test"
    assert len(said["agent_sha256"]) == 64


def test_the_agent_names_itself_by_the_hash_of_its_archive(tmp_path: Path) -> None:
    transport = LocalTransport(tmp_path)
    transport.open()
    client = AgentClient(transport.run(transport.put(agent_archive())))
    said = client.request("hello", timeout_s=WAIT_S)
    client.close()
    assert said["agent_sha256"] == sha256_bytes(agent_archive())


def test_probe_lists_runtimes_with_version_and_providers(start_agent: Start) -> None:
    said = AgentClient(start_agent()).request(
        "probe", {"runtimes": ["onnxruntime", "fake", "absent", "../evil"]}, timeout_s=60
    )
    assert [runtime["name"] for runtime in said["runtimes"]] == ["onnxruntime", "fake"]
    assert "CPUExecutionProvider" in said["runtimes"][0]["providers"]
    assert said["allowed_cores"] == sorted(os.sched_getaffinity(0))


def test_probe_reads_below_the_root_it_was_given(start_agent: Start, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "proc/device-tree").mkdir(parents=True)
    (tree / "proc/device-tree/model").write_text("Invented Board 7\0")
    client = AgentClient(start_agent("--root", str(tree)))
    assert client.request("probe", {"runtimes": []}, timeout_s=60)["soc"] == "Invented Board 7"


def test_the_runtime_is_never_imported_by_the_agents_parent(start_agent: Start) -> None:
    channel = start_agent()
    AgentClient(channel).request("probe", timeout_s=60)
    assert "onnxruntime" not in Path(f"/proc/{channel.pid}/maps").read_text()


def test_a_second_agent_hears_who_holds_the_lease(start_agent: Start) -> None:
    first = start_agent()
    AgentClient(first).request("hello", {"owner": "night job"}, timeout_s=WAIT_S)
    with pytest.raises(LeasedError, match=f"night job \\(process {first.pid}"):
        AgentClient(start_agent()).request("hello", timeout_s=WAIT_S)


def test_the_lease_is_free_again_after_its_holder_was_killed(start_agent: Start) -> None:
    first = start_agent()
    AgentClient(first).request("hello", timeout_s=WAIT_S)
    os.kill(first.pid, 9)
    first.kill()
    assert AgentClient(start_agent()).request("hello", timeout_s=WAIT_S)["lease"]


def test_an_unknown_operation_and_a_wrong_request_are_refused_and_the_agent_goes_on(
    start_agent: Start,
) -> None:
    client = AgentClient(start_agent())
    with pytest.raises(ProtocolError, match="'shell' does not exist"):
        client.request("shell", timeout_s=WAIT_S)
    with pytest.raises(ProtocolError, match="KeyError"):
        client.request("measure", timeout_s=WAIT_S)
    assert client.request("ping", timeout_s=WAIT_S) == {}


def test_cores_that_do_not_exist_are_refused(
    start_agent: Start, tmp_path: Path, make_onnx: Callable[..., bytes]
) -> None:
    client = AgentClient(start_agent())
    request = measure_request(tmp_path / "agent", make_onnx(), cores=[4000])
    with pytest.raises(ProtocolError, match="4000"):
        client.request("measure", request, timeout_s=WAIT_S)


@pytest.mark.parametrize(
    "line", [b"garbage\n", b"x" * (MAX_FRAME_BYTES + 1) + b"\n"], ids=["garbage", "oversized"]
)
def test_a_line_that_is_no_frame_is_answered_and_ends_the_agent(
    start_agent: Start, line: bytes
) -> None:
    channel = start_agent()
    channel.send(line, WAIT_S)
    answer = channel.receive(WAIT_S)
    assert answer is not None
    assert decode(answer)["error"]["code"] == "PROTOCOL"
    assert channel.receive(WAIT_S) == b""


def test_ping_is_answered_while_a_measurement_runs(hanging: ProcessChannel) -> None:
    assert AgentClient(hanging).request("ping", timeout_s=WAIT_S) == {}


def test_heartbeats_come_while_a_measurement_runs(hanging: ProcessChannel) -> None:
    line = hanging.receive(WAIT_S)
    assert line is not None
    assert decode(line)["event"] == "heartbeat"


def test_the_end_of_stdin_ends_the_agent_and_its_child(hanging: ProcessChannel) -> None:
    agent, child = hanging.pid, children_of(hanging.pid)[0]
    stdin = hanging._process.stdin
    assert stdin is not None
    stdin.close()
    assert wait_until(lambda: not alive(child) and not alive(agent))


def test_a_killed_agent_takes_its_child_along(hanging: ProcessChannel) -> None:
    child = children_of(hanging.pid)[0]
    os.kill(hanging.pid, 9)
    assert wait_until(lambda: not alive(child))


def test_a_killed_agent_is_a_lost_link_at_once(hanging: ProcessChannel) -> None:
    start = time.monotonic()
    os.kill(hanging.pid, 9)
    with pytest.raises(LinkLostError, match="status -9"):
        AgentClient(hanging).request("ping", timeout_s=60)
    assert time.monotonic() - start < 5


def test_scratch_of_a_killed_agent_is_removed_by_the_next(
    start_agent: Start, tmp_path: Path
) -> None:
    left = tmp_path / "agent" / "run" / "123-0"
    left.mkdir(parents=True)
    (left / "model.onnx").write_bytes(b"secret")
    AgentClient(start_agent()).request("hello", timeout_s=WAIT_S)
    assert not left.exists()


def test_the_protocol_survives_a_runtime_that_prints_to_stdout(
    start_agent: Start, tmp_path: Path, make_onnx: Callable[..., bytes]
) -> None:
    onnx = make_onnx(doc="fake:" + json.dumps({"print": "Welcome to librknnrt!\n"}))
    heard: list[str] = []
    AgentClient(start_agent()).request(
        "measure",
        measure_request(tmp_path / "agent", onnx),
        timeout_s=60,
        on_event=lambda name, data: heard.append(name),
    )
    assert heard == ["net"]


def test_a_child_that_an_earlier_agent_left_is_reported_and_not_killed(
    start_agent: Start, tmp_path: Path
) -> None:
    blob = tmp_path / "agent" / "blobs" / ("0" * 64)
    command = [sys.executable, "-c", "import time; time.sleep(60)", str(blob), "--child"]
    orphan = subprocess.Popen(command)
    try:
        said = AgentClient(start_agent()).request("hello", timeout_s=WAIT_S)
        assert [left["pid"] for left in said["leftovers"]] == [orphan.pid]
        assert orphan.poll() is None
    finally:
        orphan.kill()
        orphan.wait()
