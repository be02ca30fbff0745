"""A session over links that break in every way, and agents that notice when the host is gone."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import device_agents.link.client as client_module
from device_agents.link.local import LocalTransport, ProcessChannel
from device_agents.link.session import Session, with_retries
from latency_tables.errors import DeviceError, LeasedError, LinkLostError, UnreachableError
from tests.device_agents.agents import (
    alive,
    children_of,
    hangs,
    measure_request,
    processes_in,
    wait_until,
)

REPOSITORY = Path(__file__).parents[3]
Onnx = Callable[..., bytes]


class HalfOpen:
    """A link that can be cut so that neither end is told: what is sent is lost."""

    def __init__(self, inner: ProcessChannel) -> None:
        self.inner, self.cut, self.pid = inner, False, inner.pid

    def send(self, data: bytes, timeout_s: float) -> None:
        if not self.cut:
            self.inner.send(data, timeout_s)

    def receive(self, timeout_s: float) -> bytes | None:
        if not self.cut:
            return self.inner.receive(min(timeout_s, 0.05))
        time.sleep(timeout_s)
        return None

    def complaint(self) -> str:
        return self.inner.complaint()

    def kill(self, within_s: float | None = None) -> None:
        """The host forgets its end; nothing reaches the board."""


class Watched(LocalTransport):
    """Remembers its channels; with ``half_open`` they can be cut."""

    half_open = False

    def __init__(self, workdir: Path, arguments: Sequence[str] = ()) -> None:
        super().__init__(workdir, arguments=arguments)
        self.channels: list[Any] = []

    def run(self, agent: str, arguments: Sequence[str] = ()) -> Any:
        channel = super().run(agent, arguments)
        self.channels.append(HalfOpen(channel) if self.half_open else channel)
        return self.channels[-1]

    @property
    def pid(self) -> int:
        return int(self.channels[-1].pid)


@pytest.fixture
def quick_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "PING_S", 0.1)


@pytest.fixture
def transport(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "agent")


@pytest.fixture
def make(transport: Watched, fake_archive: bytes) -> Callable[..., Session]:
    return lambda **settings: Session(transport, archive=fake_archive, **settings)


def hang(session: Session, transport: Watched, make_onnx: Onnx, timeout_s: float = 60) -> None:
    """Ask for a measurement that never ends."""
    onnx = make_onnx(doc='fake:{"run": "hang"}')
    request = measure_request(Path(transport.workdir), onnx)
    session.request("measure", request, timeout_s=timeout_s)


def when_it_hangs(transport: Watched, action: Callable[[], object]) -> threading.Thread:
    """Do ``action`` once a child of the agent hangs."""

    def wait() -> None:
        if wait_until(lambda: any(map(hangs, children_of(transport.pid)))):
            action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_hello_tells_where_the_agent_works_and_what_it_can_do(
    make: Callable[..., Session], transport: Watched
) -> None:
    site = Path(transport.workdir) / "site"
    site.mkdir(parents=True)
    (site / "current").write_text("abc123\n")
    with make() as session:
        assert session.hello["workdir"] == transport.workdir
        assert session.hello["site"] == "abc123"
        assert session.hello["disk_free_bytes"] > 0
        assert "clocks" in session.hello["extensions"]
        assert session.hello["clocks_journal"] is False
        assert session.lease_token.startswith("1-")
    assert processes_in(Path(transport.workdir)) == []


def test_a_frozen_agent_is_noticed_within_the_deadline_and_leaves_nothing(
    make: Callable[..., Session], transport: Watched, make_onnx: Onnx, quick_pings: None
) -> None:
    frozen: list[float] = []

    def freeze() -> None:
        os.kill(transport.pid, signal.SIGSTOP)
        frozen.append(time.monotonic())

    with make(deadline_s=1.0) as session:
        thread = when_it_hangs(transport, freeze)
        with pytest.raises(LinkLostError, match="no sign of life for 1 s"):
            hang(session, transport, make_onnx)
        assert time.monotonic() - frozen[0] < 5  # and two of them to end it
        thread.join()
        assert not session.is_open
    assert wait_until(lambda: processes_in(Path(transport.workdir)) == [])


def test_a_frozen_idle_agent_is_told_by_the_next_request(
    make: Callable[..., Session], transport: Watched, quick_pings: None
) -> None:
    with make(deadline_s=0.5) as session:
        os.kill(transport.pid, signal.SIGSTOP)
        with pytest.raises(LinkLostError, match="no sign of life"):
            session.request("lease_show", {}, timeout_s=60)


def test_a_child_that_computes_for_longer_than_the_deadline_is_no_lost_link(
    make: Callable[..., Session], transport: Watched, make_onnx: Onnx, quick_pings: None
) -> None:
    # heartbeats come every 2 s only: it lives by the answers to pings
    with make(deadline_s=0.6) as session, pytest.raises(LinkLostError, match="within its 3 s"):
        hang(session, transport, make_onnx, timeout_s=3)


def test_a_cut_cable_is_noticed_by_both_ends(
    make: Callable[..., Session], transport: Watched, make_onnx: Onnx, quick_pings: None
) -> None:
    transport.half_open = True

    def cut() -> None:
        transport.channels[-1].cut = True

    with make(deadline_s=1.0, host_silence_s=2.0) as session:
        thread = when_it_hangs(transport, cut)
        with pytest.raises(LinkLostError, match="no sign of life for 1 s"):
            hang(session, transport, make_onnx)
        thread.join()
        assert alive(transport.pid)  # nobody told it
        assert wait_until(lambda: processes_in(Path(transport.workdir)) == [])
    transport.channels[-1].inner.kill()


def test_an_agent_whose_cable_is_cut_while_idle_ends_itself(
    make: Callable[..., Session], transport: Watched, quick_pings: None
) -> None:
    transport.half_open = True
    session = make(host_silence_s=1.0)
    session.open()
    transport.channels[-1].cut = True
    assert wait_until(lambda: not alive(transport.pid))
    session.close()
    transport.channels[-1].inner.kill()


def test_an_idle_session_is_kept_for_longer_than_a_host_may_be_silent(
    make: Callable[..., Session], transport: Watched, quick_pings: None
) -> None:
    with make(host_silence_s=0.5) as session:
        assert not wait_until(lambda: not alive(transport.pid), within_s=1.5)
        assert session.request("ping", {}, timeout_s=5) == {}


HOST = """
import json, sys
from pathlib import Path
from device_agents.link.local import LocalTransport
from device_agents.link.session import Session
workdir, archive, request, heard = map(Path, sys.argv[1:])
journal = heard.open("a", buffering=1)
def on_event(name, data):
    journal.write(json.dumps([name, data["name"]]) + "\\n")
with Session(LocalTransport(workdir), archive=archive.read_bytes()) as session:
    journal.write('["open", ""]\\n')
    session.request("measure", json.loads(request.read_text()), timeout_s=60, on_event=on_event)
journal.write('["end", ""]\\n')
"""


class Host:
    """A host as a process of its own, to be killed."""

    def __init__(self, folder: Path, archive: bytes, request: dict[str, Any]) -> None:
        (folder / "archive").write_bytes(archive)
        (folder / "request").write_text(json.dumps(request))
        self.heard_file = folder / "heard"
        names = [folder / "agent", folder / "archive", folder / "request", self.heard_file]
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOST, *map(str, names)],
            cwd=REPOSITORY,
            stderr=subprocess.DEVNULL,  # it may well complain when its agent is killed
        )

    def heard(self) -> list[list[str]]:
        if not self.heard_file.exists():
            return []
        return [json.loads(line) for line in self.heard_file.read_text().splitlines()]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def test_a_killed_host_leaves_no_agent_and_no_child(
    tmp_path: Path, fake_archive: bytes, make_onnx: Onnx
) -> None:
    transport = LocalTransport(tmp_path / "agent")
    transport.open()
    request = measure_request(tmp_path / "agent", make_onnx(doc='fake:{"run": "hang"}'))
    host = Host(tmp_path, fake_archive, request)

    def child_hangs() -> bool:
        return any(map(hangs, processes_in(tmp_path / "agent")))

    try:
        assert wait_until(child_hangs)
    finally:
        host.kill()
    assert wait_until(lambda: processes_in(tmp_path / "agent") == [])


def several(workdir: Path, make_onnx: Onnx) -> dict[str, Any]:
    """A request for four networks that take a tenth of a second each."""
    put = LocalTransport(workdir).put
    blob = put(make_onnx(doc='fake:{"burn_us": 15000}'))
    nets = [{"name": str(index), "blob": blob} for index in range(4)]
    return measure_request(workdir, make_onnx(), nets=nets)


def victims(what: str, host: Host, workdir: Path) -> list[int]:
    if what == "host":
        return [host.process.pid]
    found = []
    for pid in processes_in(workdir):
        with contextlib.suppress(OSError):
            is_child = b"--child" in Path(f"/proc/{pid}/cmdline").read_bytes()
            if pid != host.process.pid and is_child == (what == "child"):
                found.append(pid)
    return found


def check_random_kill(
    victim: str, seed: int, tmp_path: Path, archive: bytes, make_onnx: Onnx
) -> None:
    """Kill somebody at a random moment: nothing is left, nothing heard is doubled, all goes on."""
    workdir = tmp_path / "agent"
    transport = Watched(workdir)
    transport.open()
    request = several(workdir, make_onnx)
    host = Host(tmp_path, archive, request)
    delay_s = random.Random(f"{victim} {seed}").uniform(0, 1.5)
    try:
        assert wait_until(lambda: ["open", ""] in host.heard(), 30)
        with contextlib.suppress(subprocess.TimeoutExpired):
            host.process.wait(delay_s)  # the random moment, which may be after its end
        for pid in victims(victim, host, workdir):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        host.process.wait(60)
    finally:
        host.kill()
    assert wait_until(lambda: processes_in(workdir) == [])
    nets = [name for kind, name in host.heard() if kind == "net"]
    assert len(nets) == len(set(nets))  # none is told twice
    if victim == "child" and ["end", ""] in host.heard():
        assert sorted(nets) == ["0", "1", "2", "3"]
    again: list[str] = []
    with Session(transport, archive=archive) as session:
        assert session.leftovers == ()
        session.request(
            "measure", request, timeout_s=60, on_event=lambda name, data: again.append(name)
        )
    assert again == ["net"] * 4


@pytest.mark.parametrize("victim", ["host", "agent", "child"])
@pytest.mark.parametrize("seed", [0])
def test_a_kill_at_a_random_moment_leaves_nothing_and_the_next_session_works(
    victim: str, seed: int, tmp_path: Path, fake_archive: bytes, make_onnx: Onnx
) -> None:
    check_random_kill(victim, seed, tmp_path, fake_archive, make_onnx)


@pytest.mark.long
@pytest.mark.parametrize("victim", ["host", "agent", "child"])
@pytest.mark.parametrize("seed", range(1, 31))
def test_kills_at_many_random_moments_leave_nothing(
    victim: str, seed: int, tmp_path: Path, fake_archive: bytes, make_onnx: Onnx
) -> None:
    check_random_kill(victim, seed, tmp_path, fake_archive, make_onnx)


# ---- two hosts, one board ---------------------------------------------------------------------


def test_two_hosts_take_turns(transport: Watched, make: Callable[..., Session]) -> None:
    other = make(owner="second", lease_wait_s=20)
    story: list[str] = []
    with make(owner="first"):

        def open_other() -> None:
            other.open()
            story.append("second has it")

        thread = threading.Thread(target=open_other)
        thread.start()
        assert wait_until(lambda: len(transport.channels) == 2)
        thread.join(0.5)
        story.append("first lets go")
    thread.join(20)
    other.close()
    assert story == ["first lets go", "second has it"]
    assert len(transport.channels) == 2  # who waits asks the same agent again


def test_an_agent_that_waits_does_not_touch_the_scratch_of_the_holder(
    make: Callable[..., Session], transport: Watched, start_agent: Callable[..., ProcessChannel]
) -> None:
    with make():
        scratch = Path(transport.workdir) / "run" / "1-net"
        scratch.mkdir()
        waiting = make(owner="second", lease_wait_s=0)
        with pytest.raises(LeasedError):
            waiting.open()
        os.kill(start_agent().pid, signal.SIGTERM)
        assert wait_until(lambda: len(processes_in(Path(transport.workdir))) == 1)
        assert scratch.exists()


def test_a_broken_holder_stops_and_blames_no_network(
    make: Callable[..., Session], transport: Watched, make_onnx: Onnx, fake_archive: bytes
) -> None:
    failed: list[str] = []

    def break_it() -> None:
        with Session(LocalTransport(Path(transport.workdir)), take=False) as looker:
            token = looker.request("lease_show", {}, timeout_s=10)["holder"]["token"]
            looker.request("lease_break", {"token": token, "force": True}, timeout_s=10)

    with make() as session:
        thread = when_it_hangs(transport, break_it)
        request = measure_request(Path(transport.workdir), make_onnx(doc='fake:{"run": "hang"}'))
        with pytest.raises(LeasedError) as caught:
            session.request(
                "measure", request, timeout_s=60, on_event=lambda name, data: failed.append(name)
            )
        thread.join()
        assert (caught.value.code, failed) == ("LEASE_LOST", [])
        assert not session.is_open
    assert wait_until(lambda: processes_in(Path(transport.workdir)) == [])


def test_a_lease_file_replaced_by_a_link_is_refused_by_name(
    make: Callable[..., Session], transport: Watched, tmp_path: Path
) -> None:
    transport.open()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (Path(transport.workdir) / "lease").symlink_to(victim)
    with pytest.raises(DeviceError, match="lease is a link; remove it") as caught:
        make().open()
    assert (caught.value.code, victim.read_text()) == ("LEASE_FILE", "precious")


# ---- what earlier sessions left ---------------------------------------------------------------


def test_hello_tells_of_a_reboot_and_of_what_was_left(fake_archive: bytes, tmp_path: Path) -> None:
    boot_id = tmp_path / "tree/proc/sys/kernel/random/boot_id"
    boot_id.parent.mkdir(parents=True)
    boot_id.write_text("first")
    transport = Watched(tmp_path / "agent", ["--root", str(tmp_path / "tree")])
    session = Session(transport, owner="night job", archive=fake_archive)
    with session:
        assert (session.boot_id, session.hello["left_behind"]["other_boots_lease"]) == (
            "first",
            None,
        )
        os.kill(transport.pid, signal.SIGKILL)
    part = tmp_path / "agent/blobs/.abc.part"
    part.write_bytes(b"x" * 10)
    os.utime(part, (1, 1))
    (tmp_path / "agent/run/7-0").mkdir(parents=True)
    (tmp_path / "agent/run/7-0/model.onnx").write_bytes(b"secret")
    boot_id.write_text("second")
    with session:
        behind = session.hello["left_behind"]
        assert session.boot_id == "second"
        assert behind["other_boots_lease"]["owner"] == "night job"
        assert (behind["scratch_bytes"], behind["stale_parts"], behind["stale_part_bytes"]) == (
            6,
            1,
            10,
        )
        assert not (tmp_path / "agent/run/7-0").exists()
        assert session.request("clean", {"what": ["parts"]}, timeout_s=10)["freed_bytes"] == {
            "parts": 10
        }
    assert not part.exists()


def test_a_clocks_journal_of_this_boot_is_told(fake_archive: bytes, tmp_path: Path) -> None:
    from device_agents.board import clock_journal

    transport = LocalTransport(tmp_path / "agent")
    transport.open()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    for boot_id, told in ((boot, True), ("another", False)):
        journal = {"boot_id": boot_id, "power": "direct", "nodes": {"/sys/a": "1"}}
        clock_journal.save(transport.workdir, journal)
        with Session(transport, archive=fake_archive) as session:
            assert session.hello["clocks_journal"] is told


@pytest.mark.parametrize("name", ["deadline_s", "silence_s"])
def test_the_old_name_of_the_deadline_is_still_understood(
    make: Callable[..., Session], name: str
) -> None:
    assert make(**{name: 3.0}).deadline_s == 3.0


def test_a_board_that_boots_is_waited_for_but_not_for_ever() -> None:
    pauses: list[float] = []

    def absent() -> None:
        raise UnreachableError("connection refused")

    with pytest.raises(UnreachableError):
        with_retries(
            absent, attempts=3, on_retry=lambda error: None, sleep=pauses.append, away_s=90.0
        )
    assert 90 <= sum(pauses) <= 150
    pauses.clear()
    with pytest.raises(UnreachableError):
        with_retries(absent, attempts=3, on_retry=lambda error: None, sleep=pauses.append)
    assert pauses == [0.5, 1.0]


def test_a_link_that_is_lost_again_and_again_is_given_up_soon() -> None:
    pauses: list[float] = []

    def cut() -> None:
        raise LinkLostError("cut")

    with pytest.raises(LinkLostError):
        with_retries(cut, attempts=3, on_retry=lambda error: None, sleep=pauses.append, away_s=90.0)
    assert pauses == [0.5, 1.0]
