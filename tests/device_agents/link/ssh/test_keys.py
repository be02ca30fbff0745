"""Installing a public key on a board that asks for a password."""

from __future__ import annotations

import contextlib
import getpass
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import paramiko
import pytest

from device_agents.devices import SshAddress
from device_agents.link.ssh.config import resolve
from device_agents.link.ssh.connection import connect as connect_to
from device_agents.link.ssh.keys import install_key, install_over, read_public_key
from device_agents.link.ssh.known_hosts import make_host_key
from latency_tables.errors import AuthError, HostKeyError, UsageError
from tests.fakes.ssh_servers import make_key, public


class PasswordServer(paramiko.ServerInterface):
    """Takes one password and answers every command as the installer does."""

    def __init__(self, methods: str) -> None:
        self.methods = methods
        self.commands: list[str] = []

    def get_allowed_auths(self, username: str) -> str:
        return self.methods

    def check_auth_password(self, username: str, password: str) -> int:
        good = password == "secret" and "password" in self.methods
        return paramiko.AUTH_SUCCESSFUL if good else paramiko.AUTH_FAILED

    def check_auth_interactive(self, username: str, submethods: str) -> paramiko.InteractiveQuery:
        return paramiko.InteractiveQuery("", "", ("Password: ", False))

    def check_auth_interactive_response(self, responses: list[str]) -> int:
        return paramiko.AUTH_SUCCESSFUL if responses == ["secret"] else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        self.commands.append(command.decode())

        accepted = threading.Event()

        def answer() -> None:
            accepted.wait(0.2)  # the reply to the request goes first
            channel.sendall(b"hilnas-start\nhilnas-key:added\n")
            channel.send_exit_status(0)
            channel.close()

        threading.Thread(target=answer, daemon=True).start()
        return True


@pytest.fixture
def password_server(tmp_path: Path) -> Iterator[Callable[[str], tuple[PasswordServer, SshAddress]]]:
    """Start a server that takes only passwords, by the given methods."""
    opened: list[object] = []

    def start(methods: str) -> tuple[PasswordServer, SshAddress]:
        host_key = paramiko.Ed25519Key.from_private_key_file(str(make_key(tmp_path / "host")))
        server = PasswordServer(methods)
        listener = socket.create_server(("127.0.0.1", 0))
        opened.append(listener)

        def serve() -> None:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(sock)
            opened.append(transport)
            transport.add_server_key(host_key)
            with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                transport.start_server(server=server)  # a client that trusts us not leaves at once

        threading.Thread(target=serve, daemon=True).start()
        port = listener.getsockname()[1]
        hosts = tmp_path / "hosts"
        blob = host_key.asbytes()
        hosts.write_text(make_host_key(f"[127.0.0.1]:{port}", "ssh-ed25519", blob).line + "\n")
        config = Path("/dev/null")
        return server, SshAddress(host="127.0.0.1", port=port, config=config, known_hosts=(hosts,))

    yield start
    for thing in reversed(opened):
        thing.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("methods", ["password", "keyboard-interactive"])
def test_a_key_is_installed_with_one_password(password_server, tmp_path, methods):
    server, address = password_server(methods)
    key = make_key(tmp_path / "mine")
    asked: list[str] = []

    def ask(text: str) -> str:
        asked.append(text)
        return "secret"

    assert install_key(address, Path(f"{key}.pub"), ask) is True
    assert len(asked) == 1
    assert asked[0].startswith(f"password of {getpass.getuser()}@127.0.0.1")
    assert public(key).split()[1] in server.commands[0]
    assert "secret" not in server.commands[0]


def test_a_wrong_password_is_refused_without_repeating_it(password_server, tmp_path):
    _, address = password_server("password")
    key = make_key(tmp_path / "mine")
    with pytest.raises(AuthError, match="refuses the password") as caught:
        install_key(address, Path(f"{key}.pub"), lambda text: "hunter2")
    assert "hunter2" not in str(caught.value)


def test_no_password_goes_to_a_host_whose_key_is_unknown(password_server, tmp_path):
    _, address = password_server("password")
    key = make_key(tmp_path / "mine")
    with pytest.raises(HostKeyError):
        install_key(
            replace(address, known_hosts=()),
            Path(f"{key}.pub"),
            lambda text: pytest.fail("the password was asked for"),
        )


def test_a_server_that_takes_only_keys_says_so(shared_openssh, tmp_path):
    key = make_key(tmp_path / "mine")
    with pytest.raises(AuthError, match="takes no passwords, only publickey"):
        install_key(shared_openssh.address, Path(f"{key}.pub"), lambda text: "x")


@pytest.mark.parametrize("before", [None, "# old\nssh-rsa AAAA a", "ssh-rsa AAAA a\n"])
def test_the_key_is_appended_once_to_a_file_for_its_owner(any_server, tmp_path, before):
    key = make_key(tmp_path / "mine")
    kind, blob, comment = read_public_key(Path(f"{key}.pub"))
    file = any_server.home / ".ssh" / "authorized_keys"
    old = file.read_text() if file.exists() else ""
    if before is not None:
        file.parent.mkdir(exist_ok=True)
        file.write_text(old + before)
        file.chmod(0o644)
    connection = connect_to(resolve(any_server.address), deadline_s=5)
    try:
        assert install_over(connection, f"{kind} {blob}", comment) is True
        assert install_over(connection, f"{kind} {blob}", "another comment") is False
    finally:
        connection.close()
    kept = old + (before or "")
    assert file.read_text() == kept.rstrip("\n") + "\n" * bool(kept) + public(key)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_only_a_public_key_is_taken(tmp_path):
    key = make_key(tmp_path / "mine")
    with pytest.raises(UsageError, match="is a private key"):
        read_public_key(key)
    (tmp_path / "two.pub").write_text(public(key) * 2)
    (tmp_path / "junk.pub").write_text("ssh-ed25519 ***\n")
    for name in ("two.pub", "junk.pub"):
        with pytest.raises(UsageError, match="is no public key"):
            read_public_key(tmp_path / name)
    with pytest.raises(UsageError, match="cannot be read"):
        read_public_key(tmp_path / "none.pub")
