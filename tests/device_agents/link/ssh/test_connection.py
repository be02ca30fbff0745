"""Connecting: jump hosts, keys, passphrases, and what is said when it fails."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from device_agents.devices import SshAddress
from device_agents.link.ssh.config import resolve
from device_agents.link.ssh.connection import connect as connect_to
from device_agents.link.ssh.transport import SshTransport
from latency_tables.errors import AuthError, HostKeyError, UnreachableError
from tests.fakes.require import require_program
from tests.fakes.ssh_servers import OpenSsh, free_port, make_key, public, run


@pytest.fixture
def way(tmp_path: Path) -> Iterator[list[OpenSsh]]:
    """Three servers that know the same client key; the last one is the board."""
    servers = [OpenSsh(tmp_path / f"hop{index}") for index in range(3)]
    for server in servers:
        keys = server.folder / "authorized_keys"
        keys.write_text(public(servers[-1].client_key))
        with servers[-1].known_hosts.open("a") as stream:
            stream.write(server.known_line)
    yield servers
    for server in servers:
        server.kill_all()


def entry(name: str, server: OpenSsh, *more: str) -> str:
    key = server.folder.parent / "hop2" / "client_key"
    lines = ["HostName 127.0.0.1", f"Port {server.port}", f"User {server.user}"]
    return f"Host {name}\n" + "".join(f" {x}\n" for x in (*lines, f"IdentityFile {key}", *more))


def test_the_board_is_reached_through_nested_jump_hosts(way, connect):
    outer, inner, board = way
    board.config.write_text(
        entry("outer", outer)
        + entry("inner", inner, "ProxyJump outer")
        + entry("board", board, "ProxyJump inner")
    )
    address = SshAddress(host="board", config=board.config, known_hosts=(board.known_hosts,))
    transport = connect(board, address)
    assert transport.execute(["echo", "there"]).stdout == b"there\n"
    assert all("Accepted publickey" in server.log for server in way)
    assert transport.put_all([b"a", os.urandom(3_000_000)])


def test_a_list_of_jump_hosts_is_one_way(way, connect):
    outer, inner, board = way
    board.config.write_text(
        entry("outer", outer)
        + entry("inner", inner)
        + entry("board", board, "ProxyJump outer,inner")
    )
    address = SshAddress(host="board", config=board.config, known_hosts=(board.known_hosts,))
    assert connect(board, address).execute(["echo", "there"]).stdout == b"there\n"
    assert "Accepted publickey" in outer.log


def test_a_jump_host_whose_key_is_unknown_stops_the_way(way):
    outer, _, board = way
    board.config.write_text(entry("outer", outer) + entry("board", board, "ProxyJump outer"))
    board.known_hosts.write_text(board.known_line)
    address = SshAddress(host="board", config=board.config, known_hosts=(board.known_hosts,))
    with pytest.raises(HostKeyError, match=str(outer.port)):
        SshTransport(address).open()
    assert "Accepted" not in outer.log


def test_a_jump_host_that_cannot_reach_the_board_says_so(way):
    outer, _, board = way
    board.config.write_text(entry("outer", outer) + entry("board", board, "ProxyJump outer"))
    board.kill_all()
    address = SshAddress(host="board", config=board.config, known_hosts=(board.known_hosts,))
    with pytest.raises(UnreachableError, match="jump host cannot reach board"):
        SshTransport(address, deadline_s=5).open()


def test_a_proxy_command_of_the_users_own_file_makes_the_connection(shared_openssh, own_home):
    relay = own_home / "relay.py"
    relay.write_text(
        "import os, socket, sys, threading\n"
        "s = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def up():\n"
        "    while data := os.read(0, 65536):\n"
        "        s.sendall(data)\n"
        "    s.close()\n"
        "threading.Thread(target=up, daemon=True).start()\n"
        "while data := s.recv(65536):\n"
        "    os.write(1, data)\n"
    )
    config = own_home / ".ssh" / "config"
    config.write_text(
        f"Host board\n HostName 127.0.0.1\n Port {shared_openssh.port}\n"
        f" User {shared_openssh.user}\n"
        f" ProxyCommand {sys.executable} {relay} %h %p\n"
    )
    config.chmod(0o600)
    address = replace(shared_openssh.address, host="board", port=None, user=None, config=None)
    transport = SshTransport(address, workdir=shared_openssh.workdir)
    transport.open()
    assert transport.execute(["echo", "via"]).stdout == b"via\n"
    connection = transport._connection
    assert connection is not None
    assert connection.process is not None
    pid = connection.process.pid
    transport.close()
    assert not Path(f"/proc/{pid}").exists()


def test_a_wrong_key_is_refused_with_what_was_tried(any_server, tmp_path):
    wrong = make_key(tmp_path / "wrong")
    with pytest.raises(AuthError) as caught:
        SshTransport(replace(any_server.address, key=wrong)).open()
    assert f"{wrong}: refused" in caught.value.message
    assert "install-key" in (caught.value.hint or "")
    assert threading.active_count() == 1 or not [
        t for t in threading.enumerate() if "paramiko" in type(t).__module__
    ]


def test_a_key_file_that_is_missing_or_no_key_is_named(shared_openssh, tmp_path):
    with pytest.raises(AuthError, match="does not exist"):
        SshTransport(replace(shared_openssh.address, key=tmp_path / "nothing")).open()
    (tmp_path / "junk").write_text("no key")
    with pytest.raises(AuthError, match="cannot be read"):
        SshTransport(replace(shared_openssh.address, key=tmp_path / "junk")).open()


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_keys_of_every_kind_log_in(shared_openssh, tmp_path, kind, connect):
    key = make_key(tmp_path / "key", kind)
    with (shared_openssh.folder / "authorized_keys").open("a") as stream:
        stream.write(public(key))
    connect(shared_openssh, replace(shared_openssh.address, key=key)).execute(["true"])


def test_a_passphrase_is_asked_for_once_and_not_kept(shared_openssh, tmp_path, connect):
    key = make_key(tmp_path / "locked", passphrase="open sesame")
    with (shared_openssh.folder / "authorized_keys").open("a") as stream:
        stream.write(public(key))
    address = replace(shared_openssh.address, key=key)
    asked: list[str] = []

    def prompt(text: str) -> str:
        asked.append(text)
        return "open sesame"

    transport = connect(shared_openssh, address, prompt=prompt)
    assert asked == [f"passphrase of {key}: "]
    assert "sesame" not in repr(vars(transport))
    with pytest.raises(AuthError, match="nobody can be asked"):
        SshTransport(address).open()
    with pytest.raises(AuthError, match="passphrase is wrong"):
        SshTransport(address, prompt=lambda text: "wrong").open()


def test_keys_of_the_agent_log_in(shared_openssh, own_home, tmp_path, monkeypatch, connect):
    agent = require_program("ssh-agent")
    sock = tmp_path / "a"
    process = subprocess.Popen([agent, "-D", "-a", str(sock)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 5
        while not sock.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(sock))
        said = run([require_program("ssh-add"), str(shared_openssh.client_key)])
        assert "Identity added" in said
        address = replace(shared_openssh.address, key=None)
        connect(shared_openssh, address).execute(["true"])
    finally:
        process.terminate()
        process.wait()


def test_a_host_that_does_not_listen_is_unreachable():
    address = SshAddress(host="127.0.0.1", port=free_port(), config=Path("/dev/null"))
    with pytest.raises(UnreachableError, match="refused") as caught:
        SshTransport(address).open()
    assert caught.value.retryable


def test_a_name_that_does_not_exist_is_unreachable():
    address = SshAddress(host="no-such-board.invalid", config=Path("/dev/null"))
    with pytest.raises(UnreachableError, match="cannot be resolved"):
        SshTransport(address).open()


def test_a_listener_that_is_silent_or_no_ssh_server_is_noticed():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = SshAddress(
            host="127.0.0.1", port=server.getsockname()[1], config=Path("/dev/null")
        )
        started = time.monotonic()
        with pytest.raises(UnreachableError, match="not answer like an SSH server"):
            SshTransport(address, deadline_s=1.0).open()
        assert time.monotonic() - started < 4


def test_a_server_with_only_old_algorithms_is_told_apart(tmp_path):
    settings = ["KexAlgorithms diffie-hellman-group1-sha1"]
    with OpenSsh(tmp_path / "server", settings=settings) as server:
        with pytest.raises(UnreachableError, match="no algorithm in common") as caught:
            SshTransport(server.address).open()
        assert "update the SSH server" in (caught.value.hint or "")


def test_our_sockets_send_at_once_and_notice_death(shared_openssh):
    connection = connect_to(resolve(shared_openssh.address), deadline_s=8.0)
    try:
        sock = connection.links[0]._sock
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 8000
    finally:
        connection.close()
