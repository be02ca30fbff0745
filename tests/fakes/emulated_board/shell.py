"""Commands on an emulated board by plain SSH, for what has to be known without hilnas."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import paramiko

from tests.fakes.emulated_board.boot import EmulatedBoard

PATIENCE_S = 60.0

Shell = Callable[[str], str]


@contextlib.contextmanager
def shell(board: EmulatedBoard) -> Iterator[Shell]:
    """Give a function that runs one command line and gives its output, stderr included."""
    address = board.address
    client = paramiko.SSHClient()
    client.load_host_keys(str(address.known_hosts[0]))
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    link = socket.create_connection((address.host, board.port), PATIENCE_S)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with link, client:
        client.connect(
            address.host,
            board.port,
            username=address.user,
            key_filename=str(address.key),
            sock=link,
            look_for_keys=False,
            allow_agent=False,
            banner_timeout=PATIENCE_S,
            auth_timeout=PATIENCE_S,
        )

        def run(command: str) -> str:
            stdin, stdout, _ = client.exec_command(f"({command}) 2>&1", timeout=PATIENCE_S)
            with stdin, stdout:
                return stdout.read().decode(errors="replace").strip()

        yield run
