"""Room on the board: quota, free space, and what may be removed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from device_agents.board import workdir
from device_agents.link.client import AgentClient
from device_agents.link.local import LocalTransport, ProcessChannel
from device_agents.link.session import Session
from latency_tables.errors import ProtocolError
from latency_tables.weights_spec import WeightsSpec, WeightTensor
from tests.device_agents.agents import WAIT_S, measure_request, processes_in, wait_until

Start = Callable[..., ProcessChannel]


def blob(folder: Path, index: int, size: int = 100) -> Path:
    """A blob that was used at ``index`` seconds."""
    path = folder / "blobs" / f"{index:064x}"
    path.write_bytes(b"x" * size)
    os.utime(path, (index, index))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    workdir.make(str(tmp_path / "agent"))
    return tmp_path / "agent"


def test_the_least_recently_used_blobs_go_until_the_quota_is_kept(folder: Path) -> None:
    blobs = [blob(folder, index) for index in range(1, 5)]
    assert workdir.trim(str(folder), 250, keep=str(blobs[0])) == 200
    assert [path.exists() for path in blobs] == [True, False, False, True]


def test_they_go_until_enough_is_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = [blob(folder, index) for index in range(1, 5)]
    monkeypatch.setattr(workdir, "free_bytes", lambda path: 1000)
    workdir.trim(str(folder), 1 << 30, keep="", min_free_bytes=1150, also_keep=[blobs[1].name])
    assert [path.exists() for path in blobs] == [False, True, False, True]


def test_what_a_running_process_was_started_from_stays(folder: Path) -> None:
    used, unused = blob(folder, 1), blob(folder, 2)
    process = subprocess.Popen(["sh", "-c", "read line", str(used)], stdin=subprocess.PIPE)
    try:
        assert wait_until(lambda: process.pid in processes_in(folder))
        workdir.trim(str(folder), 0, keep="")
    finally:
        process.communicate()
    assert (used.exists(), unused.exists()) == (True, False)


def test_an_upload_that_runs_stays_and_one_that_was_given_up_goes(folder: Path) -> None:
    running, stale = folder / "blobs/.a.part", folder / "blobs/.b.part"
    for path in (running, stale):
        path.write_bytes(b"x" * 7)
    os.utime(stale, (1, 1))
    freed = workdir.clean(str(folder), ["blobs", "parts"], keep="")
    assert sum(freed.values()) == 7
    assert (running.exists(), stale.exists()) == (True, False)


def test_packages_in_use_stay_and_others_go(folder: Path) -> None:
    for name in ("old", "new"):
        (folder / "site" / name).mkdir(parents=True)
        (folder / "site" / name / "module.py").write_text("1234")
    (folder / "site/current").write_text("new\n")
    assert workdir.clean(str(folder), ["site"], keep="") == {"site": 4}
    assert sorted(path.name for path in (folder / "site").iterdir()) == ["current", "new"]


@pytest.mark.parametrize("text", ["../../etc", "/etc", "", "a/b", "\x1b[2J"])
def test_a_name_of_packages_that_leads_elsewhere_is_none(folder: Path, text: str) -> None:
    (folder / "site").mkdir()
    (folder / "site/current").write_text(text)
    assert workdir.site(str(folder)) == ""


def test_links_in_place_of_folders_are_not_followed(folder: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    (precious / "old").mkdir(parents=True)
    (precious / "old/file").write_text("x")
    (folder / "site").symlink_to(precious)
    (folder / "run").rmdir()
    (folder / "run").symlink_to(precious)
    workdir.clean(str(folder), ["site", "scratch"], keep="")
    assert (precious / "old/file").exists()
    with pytest.raises(OSError, match="symbolic link"):
        workdir.make(str(folder))


def test_a_work_folder_that_others_may_write_to_is_refused(folder: Path) -> None:
    folder.chmod(0o777)
    with pytest.raises(OSError, match="written by others"):
        workdir.make(str(folder))


def test_a_folder_of_ours_inside_is_closed_to_others(folder: Path) -> None:
    (folder / "blobs").chmod(0o777)
    workdir.make(str(folder))
    assert (folder / "blobs").stat().st_mode & 0o777 == 0o700


def test_the_agent_cleans_makes_room_and_keeps_itself(start_agent: Start, tmp_path: Path) -> None:
    client = AgentClient(start_agent())
    client.request("hello", timeout_s=WAIT_S)
    old, wanted = blob(tmp_path / "agent", 1), blob(tmp_path / "agent", 2)
    said = client.request("make_room", {"bytes": 1 << 60, "keep": [wanted.name]}, timeout_s=WAIT_S)
    assert (said["freed_bytes"], old.exists(), wanted.exists()) == (100, False, True)
    said = client.request("clean", {"what": ["blobs", "scratch"]}, timeout_s=WAIT_S)
    assert said["freed_bytes"] == {"blobs": 100, "scratch": 0}
    assert client.request("probe", {"runtimes": ["fake"]}, timeout_s=60)["runtimes"]  # it still is
    with pytest.raises(ProtocolError, match="'all' is not one of blobs, parts, scratch, site"):
        client.request("clean", {"what": ["all"]}, timeout_s=WAIT_S)


def test_hello_keeps_the_quota_that_it_is_told(start_agent: Start, tmp_path: Path) -> None:
    channel = start_agent()
    old = blob(tmp_path / "agent", 1)
    AgentClient(channel).request("hello", {"quota_bytes": 0}, timeout_s=WAIT_S)
    assert not old.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()[:100]}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_while_a_network_is_laid_out_is_the_boards_fault(
    small_disk: Path, fake_archive: bytes, make_onnx: Callable[..., bytes]
) -> None:
    tensor = WeightTensor(name="w", n_elements=1 << 20, fan_in=9, offset_bytes=0)
    spec = WeightsSpec(seed=1, tensors=(tensor,))  # 4 MiB, four times the disk
    transport = LocalTransport(small_disk)
    failed: list[dict[str, str]] = []
    with Session(transport, archive=fake_archive) as session:
        request = measure_request(small_disk, make_onnx())
        request["nets"][0]["weights"] = transport.put(json.dumps(spec.to_dict()).encode())
        session.request(
            "measure",
            request,
            timeout_s=60,
            on_event=lambda name, data: failed.append(data["error"]) if name == "failed" else None,
        )
        assert [(error["code"], error["blames"]) for error in failed] == [("DISK_FULL", "board")]
        assert session.request("probe", {"runtimes": ["fake"]}, timeout_s=60)["runtimes"]
