"""The same job over real SSH servers, one of which has no SFTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agents.bootstrap import bootstrap
from device_agents.devices import DeviceSpec
from device_agents.link.ssh.transport import SshTransport
from tests.fakes.ssh_servers import Dropbear, OpenSsh


@pytest.fixture(params=[OpenSsh, Dropbear])
def board(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SshTransport]:
    home = tmp_path / "user"
    (home / ".ssh").mkdir(mode=0o700, parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr(
        "device_agents.link.ssh.config.SYSTEM_CONFIG", tmp_path / "no system config"
    )
    with request.param(tmp_path / "server") as server:
        transport = SshTransport(
            server.address, workdir=server.workdir, python="python3", deadline_s=10.0
        )
        transport.open()
        yield transport
        transport.close()


def test_a_board_behind_ssh_gets_its_packages_once(
    board: SshTransport, wheelhouse: Path, cache: Path
) -> None:
    spec = DeviceSpec(name="board")
    first = bootstrap(board, spec, wheelhouse=wheelhouse, cache=cache)
    assert first.fresh
    assert first.imported == {"numpy": "2.0", "onnxruntime": "1.0"}
    assert (Path(board.workdir) / "site" / "current").read_text().strip() == first.lock_hash
    assert not bootstrap(board, spec, wheelhouse=wheelhouse, cache=cache).fresh
