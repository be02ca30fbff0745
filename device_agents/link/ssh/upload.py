"""Bring files to the board, once each: named by content, verified there, few round trips.

One receiver (``receiver.py``) runs on the board while the transport is open. It is asked for all
names at once; what is missing follows without waiting for answers: small files over its stdin,
large ones by pipelined SFTP where the server has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import paramiko

from device_agents.link.client import clean_text
from device_agents.link.ssh.channel import SshChannel
from device_agents.link.ssh.connection import Connection
from latency_tables.errors import (
    BootstrapError,
    DeviceDiskFullError,
    DeviceError,
    LinkLostError,
    ProtocolError,
    UnreachableError,
    UploadError,
)
from latency_tables.files import sha256_bytes, sha256_file

BY_SFTP_BYTES = 1 << 20
MARGIN_BYTES = 4 << 20
CHUNK = 1 << 18
NAMES_AT_ONCE = 4000
SENT_AHEAD = 64

# python reads the program from its stdin: command lines of Dropbear may be 1 KiB short
_START = "import sys;exec(compile(sys.stdin.buffer.read({size}),'receiver','exec'))"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    name: str
    size: int
    source: bytes | Path

    def open(self) -> BinaryIO:
        return BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")


@cache
def _program() -> bytes:
    return files("device_agents.link.ssh").joinpath("receiver.py").read_bytes()


class Uploader:
    """Puts files into ``<workdir>/blobs`` over one connection.

    ``name`` is what the user calls the device; ``keep`` are blobs never removed to make room.
    """

    def __init__(
        self, connection: Connection, *, workdir: str, python: str, name: str, sftp: bool = True
    ) -> None:
        self._connection, self._workdir, self._name = connection, workdir, name
        self._deadline_s = connection.deadline_s
        self.keep: set[str] = set()
        program = _program()
        start = [python, "-u", "-c", _START.format(size=len(program)), workdir]
        self._channel = SshChannel(connection, start)
        self._sftp: paramiko.SFTPClient | None = None
        self._may_sftp = sftp
        self._folder = ""
        try:
            self._channel.send(program, self._deadline_s)
        except BaseException:
            self.close()
            raise

    def put_all(self, sources: Sequence[bytes | Path]) -> list[str]:
        """Make all present; gives their names in order.

        Raises DeviceDiskFullError, UploadError, LinkLostError, UnreachableError.
        """
        items = [_item(source) for source in sources]
        wanted = {item.name: item for item in items}
        missing = self._missing(wanted)
        if missing:
            self._make_room(missing, set(wanted))
            failed = self._send_all(missing)
            failed = self._send_all(failed) if failed else []  # one more time
            if failed:
                raise UploadError(
                    f"{len(failed)} of {len(missing)} files arrive damaged on {self._target}, "
                    f"twice; the first is {failed[0].name[:12]} of {failed[0].size} bytes"
                )
        return [item.name for item in items]

    def close(self) -> None:
        """End the receiver; may be called twice."""
        if self._sftp is not None:
            self._connection.finish(self._sftp)
            self._sftp = None
        self._channel.kill()

    @property
    def _target(self) -> str:
        return str(self._connection.target)

    def _missing(self, wanted: dict[str, _Item]) -> list[_Item]:
        names = list(wanted)
        present: set[str] = set()
        for start in range(0, len(names), NAMES_AT_ONCE):
            part = {name: wanted[name].size for name in names[start : start + NAMES_AT_ONCE]}
            self._say({"op": "have", "names": part})
            said = self._answer()
            found, folder = said.get("present"), said.get("folder")
            if not isinstance(found, list) or not isinstance(folder, str):
                raise ProtocolError(f"the receiver on {self._target} does not say what is there")
            present.update(str(name) for name in found)
            self._folder, self._free = folder, _count(said.get("free"))
        return [item for name, item in wanted.items() if name not in present]

    def _make_room(self, missing: Sequence[_Item], keep: set[str]) -> None:
        needed = sum(item.size for item in missing) + MARGIN_BYTES
        if self._free < needed:
            self._say({"op": "room", "bytes": needed, "keep": sorted(keep | self.keep)})
            self._free = _count(self._answer().get("free"))
        if self._free < needed:
            raise self._full(needed, self._free)

    def _full(self, needed: int, free: int) -> DeviceDiskFullError:
        return DeviceDiskFullError(
            f"{needed / 1e6:.1f} MB are needed in {self._workdir} on {self._target}, "
            f"{free / 1e6:.1f} MB are free",
            hint=f"hilnas devices clean {self._name}",
        )

    def _send_all(self, items: Sequence[_Item]) -> list[_Item]:
        """Send all, some ahead of their answers; gives those that arrived damaged."""
        failed: list[_Item] = []
        waiting: list[_Item] = []
        for item in items:
            if len(waiting) >= SENT_AHEAD:
                self._settle(waiting.pop(0), failed)
            sftp = self._open_sftp() if item.size >= BY_SFTP_BYTES else None
            if sftp is not None:
                self._by_sftp(sftp, item)
            else:
                self._by_stdin(item)
            waiting.append(item)
        for item in waiting:
            self._settle(item, failed)
        return failed

    def _settle(self, item: _Item, failed: list[_Item]) -> None:
        said = self._answer()
        error = said.get("error")
        if error is None:
            return
        message = clean_text(said.get("message", ""), 200)
        if error == "DISK_FULL":
            raise self._full(item.size, _count(said.get("free")))
        if error != "DAMAGED":
            raise DeviceError(f"{item.name[:12]} cannot be stored on {self._target}: {message}")
        free = _count(said.get("free"))
        if free < item.size:  # SFTP servers do not say that a disk is full
            raise self._full(item.size, free)
        failed.append(item)

    def _by_stdin(self, item: _Item) -> None:
        self._say({"op": "write", "name": item.name, "size": item.size})
        for data in _chunks(item):
            self._channel.send(data, self._deadline_s)

    def _by_sftp(self, sftp: paramiko.SFTPClient, item: _Item) -> None:
        path = f"{self._folder}/{item.name}.part"
        try:
            with sftp.open(path, "wb") as stream:
                stream.set_pipelined(True)
                for data in _chunks(item):
                    stream.write(data)
        except TimeoutError:
            raise self._lost(f"it took no data for {self._deadline_s:g} s") from None
        except (paramiko.SSHException, OSError, EOFError) as error:
            if not self._connection.alive or isinstance(error, EOFError):
                raise self._lost(str(error)) from None
            # the server's answer to a write: a full disk, or a view of other folders than ours;
            # the receiver finds the file incomplete and says which
            if isinstance(error, FileNotFoundError):
                self._may_sftp = False
                self._sftp = None
                self._by_stdin(item)
                return
        self._say({"op": "adopt", "name": item.name, "size": item.size})

    def _lost(self, why: str) -> LinkLostError:
        return LinkLostError(f"{self._target} was lost during an upload: {clean_text(why, 200)}")

    def _open_sftp(self) -> paramiko.SFTPClient | None:
        if self._sftp is None and self._may_sftp:
            channel = self._connection.open_channel()
            channel.settimeout(self._deadline_s)
            try:
                with self._connection.bounded("starting SFTP"):
                    channel.invoke_subsystem("sftp")
                    self._sftp = paramiko.SFTPClient(channel)
            except LinkLostError:
                self._connection.finish(channel)
                if not self._connection.alive:
                    raise
                self._may_sftp = False  # small systems have none: everything goes over stdin
        return self._sftp

    def _say(self, request: dict[str, Any]) -> None:
        try:
            self._channel.send(json.dumps(request).encode() + b"\n", self._deadline_s)
        except LinkLostError as lost:
            if self._channel.ended:  # why, its last words tell better than a write that failed
                raise self._ended() from lost
            raise

    def _answer(self) -> dict[str, Any]:
        """The next answer; the receiver beats while it works, silence means that it is lost."""
        while True:
            line = self._channel.receive(self._deadline_s)
            if line is None:
                raise self._lost(f"no answer within {self._deadline_s:g} s")
            if not line:
                raise self._ended()
            try:
                said = json.loads(line)
            except (ValueError, RecursionError):
                continue  # a greeting of the login shell
            if isinstance(said, dict) and "beat" not in said:
                return said

    def _ended(self) -> DeviceError:
        why = clean_text(self._channel.complaint(), 300)
        if "status 127" in why or "not found" in why:
            return BootstrapError(
                f"there is no Python on {self._target}: {why}",
                hint=f"hilnas devices bootstrap {self._name}",
            )
        return self._lost(why)


def _item(source: bytes | Path) -> _Item:
    if isinstance(source, bytes):
        return _Item(name=sha256_bytes(source), size=len(source), source=source)
    try:
        return _Item(name=sha256_file(source), size=source.stat().st_size, source=source)
    except OSError as error:
        raise UnreachableError(f"{source} cannot be read: {error.strerror}") from None


def _chunks(item: _Item) -> Iterator[bytes]:
    """Exactly ``size`` bytes, whatever happened to the file since it was hashed."""
    left = item.size
    with item.open() as stream:
        while left:
            data = stream.read(min(left, CHUNK))
            data = data or bytes(min(left, CHUNK))  # it shrank: the hash will not fit
            left -= len(data)
            yield data


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ProtocolError("the receiver does not say how much room there is")
    return value
