"""Boards that die, freeze or vanish: everything ends within the deadline, typed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from device_agents.link.client import AgentClient
from device_agents.link.session import Session
from device_agents.link.ssh.transport import SshTransport
from latency_tables.errors import DeviceError, LinkLostError, UnreachableError
from tests.device_agents.agents import alive, wait_until
from tests.fakes.ssh_servers import signal_all

DEADLINE_S = 1.0
SLACK_S = 3.0

SILENT = b"import sys; print('hello', flush=True); sys.stdin.read()"
ECHO = b"import sys\nfor line in sys.stdin: print(line, end='', flush=True)"


@contextmanager
def noticed(within_s: float = DEADLINE_S + SLACK_S) -> Iterator[None]:
    started = time.monotonic()
    with pytest.raises(LinkLostError):
        yield
    assert time.monotonic() - started < within_s


def test_a_server_killed_during_a_request_is_a_lost_link(any_server, connect):
    transport = connect(any_server)
    channel = transport.run(transport.put(SILENT))
    assert channel.receive(5.0) == b"hello\n"
    timer = threading.Timer(0.2, any_server.kill_session)
    timer.start()
    with noticed(2.0):
        AgentClient(channel).request("hello", timeout_s=30)
    timer.join()
    assert channel.receive(0.1) == b""
    with noticed(2.0):
        channel.send(b"more\n", 1.0)
    with noticed(2.0):
        transport.execute(["true"])


def test_a_server_killed_while_a_command_runs_is_a_lost_link(any_server, connect):
    transport = connect(any_server)
    timer = threading.Timer(0.2, any_server.kill_session)
    timer.start()
    with noticed(2.0):
        transport.execute(["sleep", "30"])
    timer.join()
    transport.open()
    assert transport.execute(["true"]).status == 0


def actions(transport: SshTransport) -> dict[str, Callable[[], object]]:
    return {
        "execute": lambda: transport.execute(["true"], timeout_s=DEADLINE_S),
        "put small": lambda: transport.put(os.urandom(100)),
        "put large": lambda: transport.put(os.urandom(24 << 20)),
        "get": lambda: transport.get("0" * 64, 100),
        "run": lambda: transport.run("0" * 64),
    }


@pytest.mark.parametrize("action", ["execute", "put small", "put large", "get", "run"])
def test_a_frozen_board_is_noticed_by_whatever_is_asked(openssh, connect, action):
    transport = connect(openssh, deadline_s=DEADLINE_S)
    if action.startswith("put"):
        transport.put(os.urandom(2 << 20))  # the way of uploads is open then
    openssh.freeze()
    try:
        with noticed():
            actions(transport)[action]()
        started = time.monotonic()
        transport.close()
        assert time.monotonic() - started < DEADLINE_S + SLACK_S
    finally:
        openssh.thaw()


@pytest.mark.parametrize("fault", ["stall", "reset", "cut"])
def test_a_black_hole_and_a_cut_link_are_noticed(proxied, openssh, connect, fault):
    proxy, address = proxied
    transport = connect(openssh, address, deadline_s=DEADLINE_S)
    transport.put(b"x")
    channel = transport.run(transport.put(ECHO))
    channel.send(b"hello\n", 1.0)
    assert channel.receive(5.0) == b"hello\n"
    getattr(proxy, fault)()
    started = time.monotonic()
    assert channel.receive(DEADLINE_S) in (None, b"")
    with noticed():
        transport.put(os.urandom(24 << 20))
    with noticed():
        transport.execute(["true"], timeout_s=DEADLINE_S)
    channel.kill()
    transport.close()
    assert time.monotonic() - started < 4 * (DEADLINE_S + SLACK_S)


@pytest.mark.parametrize("fault", ["black hole", "frozen board", "frozen agent"])
def test_whoever_waits_for_a_board_that_fell_silent_is_told_within_a_second_of_the_deadline(
    proxied, openssh, fault
):
    proxy, address = proxied
    transport = SshTransport(address, workdir=openssh.workdir, deadline_s=10.0)
    session = Session(transport, deadline_s=2.0)
    session.open()
    session.put(b"the way of uploads is open, too")
    agents = [pid for pid in openssh.session_pids() if runs_agent(pid)]
    if fault == "black hole":
        proxy.stall()
    elif fault == "frozen board":
        openssh.freeze()
    else:
        signal_all(agents, signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(LinkLostError, match="no sign of life for 2 s"):
            session.request("lease_show", {}, timeout_s=60)
        assert time.monotonic() - started < 2.0 + 1.0
        assert not session.is_open
        session.close()
        assert time.monotonic() - started < 2.0 + 1.0
        if fault == "frozen agent":  # the board lives: what hangs there is killed
            assert wait_until(lambda: not any(map(alive, agents)), within_s=5)
    finally:
        openssh.thaw()


def test_an_idle_session_with_a_frozen_board_is_closed_within_seconds(openssh):
    session = Session(SshTransport(openssh.address, workdir=openssh.workdir, deadline_s=10.0))
    session.open()
    session.put(b"the way of uploads is open, too")
    openssh.freeze()
    try:
        started = time.monotonic()
        session.close()
        assert time.monotonic() - started < 5.5  # it used to be the whole deadline and more
    finally:
        openssh.thaw()


def test_a_session_that_ends_in_good_order_ends_at_once(openssh):
    took = []
    for _ in range(4):  # an agent that takes its time does not do so every time
        transport = SshTransport(openssh.address, workdir=openssh.workdir)
        session = Session(transport)
        session.open()
        started = time.monotonic()
        session.close()
        took.append(time.monotonic() - started)
    assert max(took) < 0.8
    assert wait_until(lambda: not any(map(runs_agent, openssh.session_pids())))


def runs_agent(pid: int) -> bool:
    try:
        return b"--workdir" in Path("/proc", str(pid), "cmdline").read_bytes()
    except OSError:
        return False


def test_a_link_cut_in_the_middle_of_an_upload_is_noticed(proxied, openssh, connect):
    proxy, address = proxied
    transport = connect(openssh, address, deadline_s=DEADLINE_S)
    transport.put(b"x")
    proxy.truncate_at = proxy.passed["up"] + 1_000_000
    with noticed():
        transport.put(os.urandom(5_000_000))


def test_a_board_frozen_before_it_greets_is_unreachable(openssh):
    openssh.freeze()
    try:
        started = time.monotonic()
        with pytest.raises(UnreachableError):
            SshTransport(openssh.address, deadline_s=1.0).open()
        assert time.monotonic() - started < 4
    finally:
        openssh.thaw()


def test_a_session_goes_on_after_its_server_came_back(openssh):
    transport = SshTransport(openssh.address, workdir=openssh.workdir, deadline_s=DEADLINE_S)
    with Session(transport, lease_wait_s=5) as session:
        session.probe([])
        openssh.kill_session()
        with pytest.raises(LinkLostError):
            session.probe([])
        session.open()
        assert session.probe([])["cpu_count"]


@pytest.mark.parametrize(
    "script",
    [
        b"print('garbage')\nimport time; time.sleep(9)",
        b"import os, time; os.write(1, b'\\xff\\x00{' * 999 + b'\\n'); time.sleep(9)",
        b"print('x' * (2 << 20))",
        b"while True: print('[' * 100000)",
    ],
)
def test_an_agent_that_talks_garbage_is_an_error_and_no_crash(shared_openssh, script):
    transport = SshTransport(shared_openssh.address, workdir=shared_openssh.workdir, deadline_s=5)
    with pytest.raises(DeviceError) as caught:
        Session(transport, archive=script, lease_wait_s=0).open()
    assert caught.value.code in ("PROTOCOL", "LINK_LOST")
    transport.close()
