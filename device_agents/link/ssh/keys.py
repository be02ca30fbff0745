"""Install a public key on a board that still asks for a password, once."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from pathlib import Path

from device_agents.devices import SshAddress
from device_agents.link.client import clean_text
from device_agents.link.ssh.channel import SshChannel
from device_agents.link.ssh.config import resolve
from device_agents.link.ssh.connection import Connection, connect
from latency_tables.errors import DeviceError, LinkLostError, UsageError

KINDS = (
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
MAX_BYTES = 16 * 1024

# the key comes as an argument; kind and key are compared, its comment is not
INSTALL = (
    'umask 077; f=$HOME/.ssh/authorized_keys; mkdir -p "$HOME/.ssh" && touch "$f" '
    '&& chmod 700 "$HOME/.ssh" && chmod 600 "$f" || exit 1; '
    'grep -qF -- "$1" "$f" && { echo hilnas-key:there; exit 0; }; '
    '[ -s "$f" ] && [ -n "$(tail -c 1 "$f")" ] && echo >> "$f"; '
    'printf \'%s %s\\n\' "$1" "$2" >> "$f" && echo hilnas-key:added'
)


def install_key(
    address: SshAddress,
    public_key: Path,
    ask_password: Callable[[str], str],
    *,
    name: str = "",
    deadline_s: float = 10.0,
) -> bool:
    """Append a public key to the board's ``~/.ssh/authorized_keys``; False: it was there.

    The password is asked for once (password or keyboard-interactive), used and forgotten. The host
    key must be trusted already. Raises UsageError, HostKeyError, AuthError, UnreachableError.
    """
    kind, blob, comment = read_public_key(public_key)
    target = resolve(address)
    connection = connect(target, deadline_s=deadline_s, name=name, password=ask_password)
    try:
        return install_over(connection, f"{kind} {blob}", comment)
    finally:
        connection.close()


def read_public_key(file: Path) -> tuple[str, str, str]:
    """Kind, key and comment of a public key file. Raises UsageError."""
    try:
        text = file.expanduser().read_bytes()[:MAX_BYTES].decode("utf-8", "replace").strip()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    words = text.split(None, 2)
    if "PRIVATE KEY" in text:
        raise UsageError(f"{file} is a private key", hint=f"name the public one, {file}.pub")
    try:
        if len(text.splitlines()) != 1 or words[0] not in KINDS:
            raise ValueError
        base64.b64decode(words[1], validate=True)
    except (IndexError, ValueError, binascii.Error):
        raise UsageError(
            f"{file} is no public key; allowed: one line, {', '.join(KINDS)}"
        ) from None
    return words[0], words[1], clean_text(words[2], 200) if len(words) > 2 else ""


def install_over(connection: Connection, key: str, comment: str) -> bool:
    """Append ``key`` over an open connection, unless it is there. Raises DeviceError."""
    channel = SshChannel(connection, ["sh", "-c", INSTALL, "sh", key, comment])
    try:
        while line := channel.receive(connection.deadline_s):
            if line.startswith(b"hilnas-key:"):
                return line == b"hilnas-key:added\n"
        if line is None:
            raise LinkLostError(f"{connection.target} was lost while the key was installed")
        raise DeviceError(
            f"the key cannot be installed on {connection.target}: "
            + clean_text(channel.complaint(), 300)
        )
    finally:
        channel.kill()
