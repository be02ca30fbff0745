"""Real SSH servers for the tests, and transports that are closed after them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from device_agents.devices import SshAddress
from device_agents.link.ssh.transport import SshTransport
from tests.fakes.ssh_servers import Dropbear, OpenSsh
from tests.fakes.tcp_proxy import TcpProxy


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No key, agent or configuration of whoever runs the tests."""
    home = tmp_path / "user"
    (home / ".ssh").mkdir(mode=0o700, parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr(
        "device_agents.link.ssh.config.SYSTEM_CONFIG", tmp_path / "no system config"
    )
    monkeypatch.setattr(
        "device_agents.link.ssh.channel.LINGER_S", 0.2
    )  # agents that sleep are killed
    return home


@pytest.fixture(scope="module")
def shared_openssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSsh]:
    """One server for the tests of a module that leave it as it is."""
    with OpenSsh(tmp_path_factory.mktemp("openssh")) as server:
        yield server


@pytest.fixture
def openssh(tmp_path: Path) -> Iterator[OpenSsh]:
    """A server that a test may break."""
    with OpenSsh(tmp_path / "server") as server:
        yield server


@pytest.fixture(params=[OpenSsh, Dropbear])
def any_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenSsh | Dropbear]:
    with request.param(tmp_path / "server") as server:
        yield server


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[..., SshTransport]]:
    """Open a transport to a server; keywords change it. No thread is left after the test."""
    opened: list[SshTransport] = []
    before = set(threading.enumerate())

    def make(
        server: OpenSsh | Dropbear, address: SshAddress | None = None, **settings: Any
    ) -> SshTransport:
        settings.setdefault("workdir", server.workdir)
        settings.setdefault("deadline_s", 5.0)
        transport = SshTransport(address or server.address, name="board-a", **settings)
        opened.append(transport)
        transport.open()
        return transport

    yield make
    for transport in opened:
        transport.close()
    left = [t for t in threading.enumerate() if t not in before and t.name != "tcp-proxy"]
    for thread in left:
        thread.join(2.0)
    assert not [thread for thread in left if thread.is_alive()]


@pytest.fixture
def proxied(openssh: OpenSsh) -> Iterator[tuple[TcpProxy, SshAddress]]:
    """The way to ``openssh`` through a proxy that can spoil it."""
    with TcpProxy(openssh.port) as proxy:
        line = openssh.known_line.replace(f":{openssh.port} ", f":{proxy.port} ")
        openssh.known_hosts.write_text(openssh.known_hosts.read_text() + line)
        yield proxy, replace(openssh.address, port=proxy.port)
