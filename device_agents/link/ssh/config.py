"""Where a board is, by the rules of OpenSSH's client configuration.

Hosts and conditions are matched by paramiko; ``Include``, the order of jump hosts and the checks
of who may write a file are done here. Programs (``ProxyCommand``, ``Match exec``) run only from the
user's own ``~/.ssh/config`` and the system's file, never from one that an inventory names.
"""

from __future__ import annotations

import getpass
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from device_agents.devices import SshAddress
from device_agents.link.ssh.includes import Flattened, flatten
from latency_tables.errors import UsageError

SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
SYSTEM_KNOWN_HOSTS = (Path("/etc/ssh/ssh_known_hosts"), Path("/etc/ssh/ssh_known_hosts2"))
DEFAULT_IDENTITIES = ("id_ed25519", "id_ecdsa", "id_rsa")
MAX_JUMPS = 8

# what reaches a local or a remote command line; a leading dash would be read as an option
_HOST = re.compile(r"[A-Za-z0-9_.:%\[\]][A-Za-z0-9_.:%\[\]-]*")
_USER = re.compile(r"[A-Za-z0-9_.@+\\][A-Za-z0-9_.@+\\$-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One host to connect to, and through which others: ``jumps`` come in order of travel.

    ``proxy_command`` makes the connection to the first host of the way instead of TCP.
    ``known_hosts`` are the files whose keys are trusted.
    """

    alias: str
    hostname: str
    port: int
    user: str
    identities: tuple[Path, ...]
    identities_only: bool
    known_hosts: tuple[Path, ...]
    host_key_alias: str | None = None
    connect_timeout_s: float | None = None
    proxy_command: str | None = None
    jumps: tuple[Target, ...] = ()

    @property
    def lookup_name(self) -> str:
        """The name under which files of known hosts keep its key."""
        if self.host_key_alias:
            return self.host_key_alias
        return self.hostname if self.port == 22 else f"[{self.hostname}]:{self.port}"

    def __str__(self) -> str:
        where = f"{self.hostname}:{self.port}"
        return where if self.alias == self.hostname else f"{self.alias} ({where})"


def resolve(address: SshAddress) -> Target:
    """Find out where ``address`` is; a host that no file mentions is used as it is.

    Raises UsageError where a file is unsafe, unreadable or asks for what is not supported.

    >>> resolve(SshAddress(host="10.0.0.5", user="board", config=Path("/dev/null"))).port
    22
    """
    return _Resolver(address).target(
        address.host, user=address.user, port=address.port, key=address.key, chain=()
    )


class _Resolver:
    def __init__(self, address: SshAddress) -> None:
        self.address = address
        own = Path.home() / ".ssh" / "config"
        given = None if address.config is None else address.config.expanduser()
        self.files = [own, SYSTEM_CONFIG] if given is None else [given]
        self.own = given is None or given.absolute() == own
        if given is not None and not given.exists():
            raise UsageError(f"the ssh configuration {given} does not exist")

    def target(
        self,
        host: str,
        *,
        user: str | None,
        port: int | None,
        key: Path | None,
        chain: tuple[str, ...],
        jumps: tuple[Target, ...] | None = None,
    ) -> Target:
        """One host with its way; ``jumps`` given: its own ProxyJump and ProxyCommand are void."""
        _check(host, _HOST, "host")
        if host in chain or len(chain) >= MAX_JUMPS:
            way = " -> ".join((*chain, host))
            raise UsageError(f"the jump hosts {way} form a ring or are more than {MAX_JUMPS}")
        options = self._lookup(host, user=user, port=port)
        hostname = _check(str(options.get("hostname", host)), _HOST, "HostName")
        name = _check(str(options.get("user") or getpass.getuser()), _USER, "user")
        proxy = None
        if jumps is None:
            jumps, proxy = self._way(options, (*chain, host))
        return Target(
            alias=host,
            hostname=hostname.strip("[]"),
            port=_number(options.get("port", "22"), "Port", 65535),
            user=name,
            identities=(key.expanduser(),) if key else _identities(options.get("identityfile")),
            identities_only=key is not None or options.get("identitiesonly", "no") == "yes",
            known_hosts=self._known_hosts(options),
            host_key_alias=options.get("hostkeyalias"),
            connect_timeout_s=_seconds(options.get("connecttimeout")),
            proxy_command=proxy,
            jumps=jumps,
        )

    def _way(
        self, options: dict[str, str], chain: tuple[str, ...]
    ) -> tuple[tuple[Target, ...], str | None]:
        # of ProxyJump and ProxyCommand the one that was read first counts
        first = next((key for key in options if key in ("proxyjump", "proxycommand")), None)
        value = options.get(first or "")
        if not value or value.lower() == "none":
            return (), None
        if first == "proxycommand":
            if not self.own:
                raise UsageError(
                    f"{self.files[0]} asks to run a program (ProxyCommand {value!r}); that is done "
                    "only from the user's own ~/.ssh/config",
                    hint="move the entry there, or use ProxyJump",
                )
            return (), value
        way: tuple[Target, ...] = ()
        for index, part in enumerate(value.split(",")):
            user, host, port = _split_jump(part.strip())
            # the first jump host is reached by its own rules, each later one through those before
            hop = self.target(
                host, user=user, port=port, key=None, chain=chain, jumps=None if index == 0 else way
            )
            if hop.proxy_command and index:
                raise UsageError(f"jump host {host} cannot use ProxyCommand behind another one")
            way = (*hop.jumps, hop)
        if len(way) > MAX_JUMPS:
            raise UsageError(f"{len(way)} jump hosts, allowed are {MAX_JUMPS}")
        return way, None

    def _lookup(self, host: str, *, user: str | None, port: int | None) -> dict[str, str]:
        flat = Flattened(host=host, may_run=self.own)
        # what the address says comes first and so wins, also for 'Match user' and tokens
        if user is not None:
            flat.lines.append(f"User {_check(user, _USER, 'user')}")
        if port is not None:
            flat.lines.append(f"Port {_number(str(port), 'port', 65535)}")
        for file in self.files:
            flatten(file, flat)
        return flat.lookup()

    def _known_hosts(self, options: dict[str, str]) -> tuple[Path, ...]:
        home = Path.home()
        named = options.get("userknownhostsfile")
        if named is None:
            users = [home / ".ssh" / "known_hosts", home / ".ssh" / "known_hosts2"]
        else:
            users = [_expand(part) for part in shlex.split(named) if part.lower() != "none"]
        return (*self.address.known_hosts, *users, *SYSTEM_KNOWN_HOSTS)


def _identities(files: object) -> tuple[Path, ...]:
    if isinstance(files, list):
        return tuple(_expand(str(file)) for file in files if str(file).lower() != "none")
    folder = Path.home() / ".ssh"
    return tuple(folder / name for name in DEFAULT_IDENTITIES if (folder / name).exists())


def _expand(text: str) -> Path:
    path = Path(text.replace("%d", str(Path.home()))).expanduser()
    return path if path.is_absolute() else Path.home() / path


def _split_jump(text: str) -> tuple[str | None, str, int | None]:
    text = text.removeprefix("ssh://")
    user, _, rest = text.rpartition("@")
    found = re.fullmatch(r"(\[[^\]]+\]|[^:]+)(?::(\d+))?", rest)
    if found is None:
        raise UsageError(f"ProxyJump {text!r} is not [user@]host[:port]")
    port = None if found[2] is None else _number(found[2], "port", 65535)
    return user or None, found[1].strip("[]"), port


def _check(text: str, allowed: re.Pattern[str], what: str) -> str:
    if not allowed.fullmatch(text) or len(text) > 255:
        raise UsageError(f"{what} {text[:80]!r} holds characters that are not allowed there")
    return text


def _number(text: str, what: str, most: int) -> int:
    if not text.isdigit() or not 1 <= int(text) <= most:
        raise UsageError(f"{what} {text!r}; allowed: 1 to {most}")
    return int(text)


def _seconds(text: str | None) -> float | None:
    if text is None or text.lower() == "none":
        return None
    found = re.fullmatch(r"(\d+)([sSmM]?)", text)
    if found is None:
        raise UsageError(f"ConnectTimeout {text!r}; allowed: seconds, or minutes like 1m")
    return float(found[1]) * (60 if found[2] in ("m", "M") else 1) or None
