"""Boot emulated boards, and do to them what happens to boards.

The guest's clock counts instructions (``-icount``): latencies taken inside repeat to about 0.1 %
whatever else this machine does, and ``shift`` more by one makes the board exactly twice as slow.

    with EmulatedBoard(image(), shift=1) as board:
        device = board.device("fast")
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

from device_agents.devices import DeviceSpec, SshAddress
from tests.fakes.emulated_board import qmp
from tests.fakes.emulated_board.build import BoardImage
from tests.fakes.emulated_board.machine import emulator, machine

HOST = "127.0.0.1"
READY = "ready"
BOOT_S = 180.0
"""A boot takes 6 s on an idle core, several times that beside others."""

_alive: weakref.WeakSet[EmulatedBoard] = weakref.WeakSet()


class BoardError(Exception):
    """An emulated board did not do what was asked of it; the message ends with its console."""


class EmulatedBoard:
    """A board of its own disk; a context manager that starts it and leaves nothing behind.

    ``snapshot``: start from a snapshot taken after the boot, made once per image and ``shift``.
    ``disk``: go on from a disk that :meth:`keep_disk` gave (with ``snapshot`` False) instead of
    the image's, or with ``tag`` from a snapshot inside it. Start boards from a thread that
    lives as long as they do: the kernel ends them with it.
    """

    def __init__(
        self,
        image: BoardImage,
        *,
        shift: int = 1,
        snapshot: bool = True,
        disk: Path | None = None,
        tag: str = "",
        memory_mib: int = 1024,
        user: str = "root",
    ) -> None:
        self.image, self.shift, self.user = image, shift, user
        self.snapshot, self.disk, self.tag = snapshot and disk is None, disk, tag
        self.memory_mib = memory_mib
        self.port = 0
        self.start_seconds = 0.0
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> EmulatedBoard:
        try:
            self._make_disk()
            self.start(READY if self.snapshot else self.tag)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ---- what a user of boards needs ----------------------------------------------------------

    @property
    def address(self) -> SshAddress:
        """How to reach it, trusting its host key and no configuration of the user."""
        return SshAddress(
            host=HOST,
            port=self.port,
            user=self.user,
            key=self.image.client_key,
            config=self.folder / "ssh_config",
            known_hosts=(self.folder / "known_hosts",),
        )

    def device(self, name: str, **changes: Any) -> DeviceSpec:
        """This board as an entry of an inventory.

        The deadline is long because several boards may share a busy core of this machine.
        """
        settings: dict[str, Any] = {"deadline_s": 30.0, **changes}
        return DeviceSpec(name=name, transport="ssh", ssh=self.address, **settings)

    @property
    def folder(self) -> Path:
        """Where its disk, console and socket lie while it is open."""
        if self._folder is None:
            raise BoardError("the board is not open; use it in a 'with' block")
        return self._folder

    @property
    def pid(self) -> int | None:
        """Process id of the emulator while it runs."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if self._process and running else None

    def console(self) -> str:
        """What the board wrote to its serial line."""
        path = self.folder / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    # ---- what happens to boards ---------------------------------------------------------------

    def stop(self) -> None:
        """Freeze it: nothing runs, its network still takes packets."""
        qmp.command(self._socket, "stop")

    def cont(self) -> None:
        """Go on after :meth:`stop`; its clock did not."""
        qmp.command(self._socket, "cont")

    def unplug(self) -> None:
        """Pull the network cable."""
        qmp.command(self._socket, "set_link", {"name": "n0", "up": False})

    def plug(self) -> None:
        """Put the cable back."""
        qmp.command(self._socket, "set_link", {"name": "n0", "up": True})

    def power_cut(self) -> None:
        """Cut the power: what was not synced is lost. :meth:`start` boots it again."""
        self._end()

    def reboot(self) -> None:
        """Press reset, and wait until it answers again."""
        qmp.command(self._socket, "system_reset", event="RESET")
        self._wait()

    def save_snapshot(self, tag: str = READY) -> None:
        """Keep memory and disk as they are under ``tag`` inside its disk."""
        if said := qmp.monitor(self._socket, f"savevm {tag}"):
            raise BoardError(f"snapshot {tag}: {said}")

    def keep_disk(self, path: Path) -> Path:
        """Switch it off and move its disk, snapshots included, to ``path``.

        Run ``sync`` on the board before, unless the snapshots are all that matters.
        """
        with contextlib.suppress(qmp.QmpError):  # it hangs up while it says goodbye
            qmp.command(self._socket, "quit")
        if self._process is not None:
            self._process.wait(60)
        self._process = None
        shutil.move(self._overlay, path)
        return path

    # ---- life ---------------------------------------------------------------------------------

    def start(self, tag: str = "") -> None:
        """Switch it on, or start from the snapshot ``tag``; returns when its ssh server greets.

        Raises BoardError after ``BOOT_S`` or when the emulator ends.
        """
        if self.pid is not None:
            raise BoardError("the board runs already")
        begin = time.monotonic()
        port = self.port or free_port()
        self._launch(port, tag)
        if port != self.port:
            self.port = port
            line = f"[{HOST}]:{port} {self.image.host_public_key}\n"
            (self.folder / "known_hosts").write_text(line)
        self._wait()
        self.start_seconds = time.monotonic() - begin

    def close(self) -> None:
        """End it and remove its disk; may be called twice."""
        self._end()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    @property
    def _overlay(self) -> Path:
        return self.folder / "disk.qcow2"

    @property
    def _socket(self) -> Path:
        return self.folder / "qmp"  # short: the path of a socket has at most 107 bytes

    def _make_disk(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="board-"))
        (self.folder / "ssh_config").write_text("")
        copied = self.disk if self.tag else None
        if self.snapshot:
            copied = warm_disk(self.image, self.shift, self.memory_mib)
        if copied is not None:  # a snapshot cannot be started from an overlay on it
            subprocess.run(["cp", "--sparse=auto", copied, self._overlay], check=True)
        else:
            backing = ["-b", str(self.disk or self.image.disk), "-F", "qcow2"]
            subprocess.run(
                ["qemu-img", "create", "-q", "-f", "qcow2", *backing, self._overlay], check=True
            )

    def _launch(self, port: int, tag: str) -> None:
        self._socket.unlink(missing_ok=True)
        command = [*machine(self.shift, self.memory_mib)]
        command += ["-kernel", str(self.image.kernel), "-initrd", str(self.image.initramfs)]
        command += ["-drive", f"if=none,id=d0,file={self._overlay},format=qcow2"]
        command += ["-netdev", f"user,id=n0,restrict=on,hostfwd=tcp:{HOST}:{port}-:22"]
        command += ["-serial", f"file:{self.folder / 'console.log'}"]
        command += ["-qmp", f"unix:{self._socket},server=on,wait=off"]
        command += ["-loadvm", tag] if tag else []
        with (self.folder / "qemu.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _alive.add(self)

    def _wait(self) -> None:
        """Wait for the greeting: the forwarded port alone takes connections before the boot."""
        deadline = time.monotonic() + BOOT_S
        while time.monotonic() < deadline:
            if self.pid is None:
                raise BoardError(f"the emulator ended: {self._said()}")
            if greeting(self.port, timeout_s=5.0).startswith(b"SSH-"):
                return
            time.sleep(0.05)
        raise BoardError(f"no ssh server after {BOOT_S:.0f} s: {self._said()}")

    def _said(self) -> str:
        log = (self.folder / "qemu.log").read_text(errors="replace")
        return f"{log[-1000:]} {self.console()[-2000:]}".strip()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def greeting(port: int, timeout_s: float) -> bytes:
    """The first bytes that a server on this machine sends; empty when it sends none."""
    try:
        with socket.create_connection((HOST, port), timeout_s) as link:
            link.settimeout(timeout_s)
            return link.recv(64)
    except OSError:
        return b""


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def warm_disk(image: BoardImage, shift: int, memory_mib: int) -> Path:
    """A disk with the snapshot ``READY`` of the freshly booted image, made on first use."""
    words = " ".join((emulator(), *machine(shift, memory_mib)))
    path = image.folder / f"ready-{shift}-{hashlib.sha256(words.encode()).hexdigest()[:12]}.qcow2"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            cold = EmulatedBoard(image, shift=shift, snapshot=False, memory_mib=memory_mib)
            with cold as board:
                board.save_snapshot()
                partial = board.keep_disk(path.with_suffix(f".{os.getpid()}"))
            partial.rename(path)
    return path


@atexit.register
def _end_all() -> None:
    for board in list(_alive):
        board.close()
