"""Real SSH servers on 127.0.0.1: OpenSSH and Dropbear, with keys and settings of their own.

Run as root or as any user (who then logs in as himself). ``HOME`` of their sessions is an empty
folder, so that nobody's start-up files run; tests give an explicit work folder all the same.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from device_agents.devices import SshAddress
from tests.fakes.require import refuse, require_program

READY_S = 10.0
_OWN_NAMESPACE = ["-m"] if os.getuid() == 0 else ["-U", "--map-current-user", "--keep-caps", "-m"]


class _Server:
    """What both servers share: a folder, keys, a process, and ways to end its sessions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.user = getpass.getuser()
        self.port = free_port()
        self.client_key = make_key(folder / "client_key")
        self.known_hosts = folder / "known_hosts"
        self.config = folder / "ssh_config"
        self.workdir = str(folder / "board")
        self.home = folder / "home"
        self.home.mkdir(mode=0o700, exist_ok=True)
        self.process: subprocess.Popen[bytes] | None = None
        self.listen = "127.0.0.1"
        self.within: tuple[str, ...] = ()
        """Words before the server's command, to run it in another namespace."""

    @property
    def address(self) -> SshAddress:
        """How to reach it; its host key is trusted already."""
        return SshAddress(
            host="127.0.0.1",
            port=self.port,
            user=self.user,
            key=self.client_key,
            config=self.config,
            known_hosts=(self.known_hosts,),
        )

    @property
    def log(self) -> str:
        """What the server said so far."""
        return (self.folder / "log").read_text(errors="replace")

    def session_pids(self) -> list[int]:
        """Processes of the sessions: everything below the listener."""
        assert self.process is not None
        return descendants(self.process.pid)

    def kill_session(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End all sessions and what runs in them; the listener stays."""
        signal_all(self.session_pids(), number)

    def freeze(self) -> None:
        """Stop listener and sessions without ending them, as a hanging board does."""
        assert self.process is not None
        signal_all([self.process.pid, *self.session_pids()], signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        assert self.process is not None
        signal_all([self.process.pid, *self.session_pids()], signal.SIGCONT)

    def kill_all(self) -> None:
        """End listener and sessions; may be called twice."""
        if self.process is not None:
            self.thaw()
            pids = self.session_pids()
            self.process.kill()
            self.process.wait()
            signal_all(pids, signal.SIGKILL)
            self.process = None

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()

    def _listens(self) -> bool:
        return "Server listening" in self.log  # its port cannot be tried from this namespace

    def _launch(self, command: Sequence[str]) -> None:
        # sessions inherit this environment on some systems: nothing of the test run in it
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.within, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        deadline = time.monotonic() + READY_S
        while not (self._listens() if self.within else _has_banner(self.port)):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                self.process.wait()
                raise RuntimeError(f"{command[0]} does not start: {self.log[-2000:]}")
            time.sleep(0.02)


class OpenSsh(_Server):
    """An OpenSSH server; ``settings`` are more lines of its configuration.

    ``sftp`` False: without the subsystem, as small systems are.
    """

    def __init__(
        self, folder: Path, *, sftp: bool = True, settings: Sequence[str] = (), start: bool = True
    ) -> None:
        self.program = require_program("sshd")
        require_program("ssh-keygen")
        super().__init__(folder)
        self.host_key = make_key(folder / "host_key")
        self.sftp, self.settings = sftp, tuple(settings)
        (folder / "authorized_keys").write_text(public(self.client_key))
        self.known_hosts.write_text(self.known_line)
        self.config.write_text(f"# {type(self).__name__}\n")
        self.config.chmod(0o600)
        if start:
            self.start()

    @property
    def known_line(self) -> str:
        """Its line for a file of known hosts."""
        kind, blob = public(self.host_key).split()[:2]
        return f"[127.0.0.1]:{self.port} {kind} {blob}\n"

    def start(self) -> None:
        """Start, on the same port as before. Raises RuntimeError with what it said."""
        if os.getuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        lines = [
            f"Port {self.port}",
            f"ListenAddress {self.listen}",
            f"HostKey {self.host_key}",
            f"PidFile {self.folder / 'sshd.pid'}",
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "UsePAM no",
            "StrictModes no",
            "PermitRootLogin prohibit-password",
            "MaxStartups 100",
            "LogLevel VERBOSE",
            f"SetEnv HOME={self.home}",
            *(["Subsystem sftp internal-sftp"] if self.sftp else []),
            *self.settings,
        ]
        file = self.folder / "sshd_config"
        file.write_text("\n".join(lines) + "\n")
        self._launch([self.program, "-D", "-e", "-f", str(file)])

    def new_host_key(self) -> None:
        """Come back with another host key, as a board does after it was flashed."""
        self.kill_all()
        for name in ("host_key", "host_key.pub"):
            (self.folder / name).unlink()
        self.host_key = make_key(self.folder / "host_key")
        self.start()


class Dropbear(_Server):
    """A Dropbear server. It takes keys from the home that the user database names.

    So it runs in a mount namespace where that home is an empty folder with our key.
    """

    def __init__(self, folder: Path, *, start: bool = True) -> None:
        self.program = require_program("dropbear")
        self.keygen = require_program("dropbearkey")
        super().__init__(folder)
        self.host_key = folder / "dropbear_key"
        said = run([self.keygen, "-t", "ed25519", "-f", str(self.host_key)])
        found = [line for line in said.splitlines() if line.startswith("ssh-ed25519 ")]
        kind, blob = found[0].split()[:2]
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {kind} {blob}\n")
        self.config.write_text("# Dropbear\n")
        self.config.chmod(0o600)
        if start:
            self.start()

    def start(self) -> None:
        """Start, on the same port as before. Raises RuntimeError with what it said."""
        command = [self.program, "-F", "-E", "-s"]
        command += ["-r", str(self.host_key), "-p", f"127.0.0.1:{self.port}"]
        command += ["-P", str(self.folder / "dropbear.pid")]
        keys = self.home / ".ssh" / "authorized_keys"
        keys.parent.mkdir(mode=0o700, exist_ok=True)
        keys.write_text(public(self.client_key))
        keys.chmod(0o600)
        inside = require_program("unshare"), *_OWN_NAMESPACE
        if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
            refuse("Dropbear needs a mount namespace here, which is not permitted")
        home = pwd.getpwuid(os.getuid()).pw_dir
        script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
        self._launch([*inside, "sh", "-c", script, "sh", str(self.home), home, *command])


def make_key(file: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    """Make a key pair, ``file`` and ``file.pub``."""
    program = require_program("ssh-keygen")
    size = ["-b", "2048"] if kind == "rsa" else []  # made quickly
    run([program, "-q", "-t", kind, *size, "-N", passphrase, "-C", "test", "-f", str(file)])
    return file


def public(key: Path) -> str:
    """The public line of a key pair."""
    return Path(f"{key}.pub").read_text()


def run(command: Sequence[str]) -> str:
    """Output of a program, both streams."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout + done.stderr


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def descendants(pid: int) -> list[int]:
    """Processes below ``pid``, oldest first, sessions of their own included."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                stat = Path("/proc", name, "stat").read_text()
                parent = int(stat.rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(name))
    return list(_below(pid, parents))


def _below(pid: int, parents: dict[int, list[int]]) -> Iterator[int]:
    for child in parents.get(pid, []):
        yield child
        yield from _below(child, parents)


def signal_all(pids: Sequence[int], number: signal.Signals) -> None:
    """Send a signal to those that still exist."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _has_banner(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 0.5) as sock:
            return sock.recv(4) == b"SSH-"
    except OSError:
        return False
