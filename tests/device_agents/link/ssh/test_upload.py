"""Files on their way to a board: once, whole, verified, and with room for them."""

from __future__ import annotations

import ast
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from device_agents.link.ssh import upload
from device_agents.link.ssh.transport import SshTransport
from device_agents.link.ssh.upload import Uploader
from latency_tables.errors import (
    BootstrapError,
    DeviceDiskFullError,
    LinkLostError,
    UnreachableError,
    UploadError,
)
from latency_tables.files import sha256_bytes
from tests.fakes.require import refuse
from tests.fakes.ssh_servers import OpenSsh

BIG = 3 << 20


def blobs(server: Any) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in Path(server.workdir, "blobs").iterdir()}


def parts(server: Any) -> list[Path]:
    return [path for path in Path(server.workdir).rglob("*.part")]


def test_blobs_of_every_size_arrive_whole(any_server, connect, tmp_path):
    sources = [b"", b"x", os.urandom((1 << 18) + 1), os.urandom(BIG)]
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(BIG + 7))
    transport = connect(any_server)
    names = transport.put_all([*sources, file, b"x"])
    assert names == [sha256_bytes(data) for data in [*sources, file.read_bytes(), b"x"]]
    assert blobs(any_server) == dict(zip(names, [*sources, file.read_bytes()], strict=False))
    assert parts(any_server) == []
    transport.close()
    assert list(Path(any_server.workdir, "incoming").iterdir()) == []


def test_a_server_without_sftp_gets_everything_over_stdin(tmp_path, connect):
    with OpenSsh(tmp_path / "server", sftp=False) as server:
        transport = connect(server)
        data = os.urandom(BIG)
        name = transport.put(data)
        assert blobs(server)[name] == data
        assert transport._uploader is not None
        assert transport._uploader._may_sftp is False
        transport.close()


def test_large_blobs_go_by_sftp_where_there_is_one(shared_openssh, connect, monkeypatch):
    sent: list[str] = []
    before = Uploader._by_sftp
    monkeypatch.setattr(
        Uploader,
        "_by_sftp",
        lambda self, s, item: (sent.append(item.name), before(self, s, item))[1],
    )
    names = connect(shared_openssh).put_all([os.urandom(BIG), os.urandom(1000)])
    assert sent == names[:1]


def test_what_is_present_is_not_sent_again_but_marked_as_used(shared_openssh, connect):
    transport = connect(shared_openssh)
    data = os.urandom(BIG)
    file = Path(transport.workdir, "blobs", transport.put(data))
    inode = file.stat().st_ino
    os.utime(file, (1, 1))
    connect(shared_openssh).put(data)
    assert file.stat().st_ino == inode
    assert time.time() - file.stat().st_mtime < 60


def test_a_blob_of_the_wrong_size_is_replaced(shared_openssh, connect):
    transport = connect(shared_openssh)
    file = Path(transport.workdir, "blobs", transport.put(b"whole"))
    file.write_bytes(b"ha")
    transport.put(b"whole")
    assert file.read_bytes() == b"whole"


@pytest.mark.parametrize("size", [1000, BIG])
def test_a_file_damaged_on_the_way_is_sent_once_more(shared_openssh, connect, monkeypatch, size):
    real = upload._chunks
    broken: list[str] = []

    def damage(item: Any) -> Iterator[bytes]:
        for data in real(item):
            first = not broken
            broken.append(item.name)
            yield bytes(len(data)) if first else data

    monkeypatch.setattr(upload, "_chunks", damage)
    data = os.urandom(size)
    assert blobs(shared_openssh) | {connect(shared_openssh).put(data): data} == blobs(
        shared_openssh
    )


@pytest.mark.parametrize("size", [1000, BIG])
def test_a_file_damaged_twice_is_refused_and_leaves_nothing(
    shared_openssh, connect, monkeypatch, size
):
    real = upload._chunks
    monkeypatch.setattr(upload, "_chunks", lambda item: (bytes(len(d)) for d in real(item)))
    transport = connect(shared_openssh)
    before = blobs(shared_openssh)
    with pytest.raises(UploadError, match="damaged") as caught:
        transport.put(os.urandom(size))
    assert caught.value.code == "UPLOAD_CORRUPT"
    assert blobs(shared_openssh) == before
    assert parts(shared_openssh) == []
    monkeypatch.undo()
    transport.put(os.urandom(size))  # the connection still works


def test_a_file_that_shrinks_while_it_is_sent_is_refused(
    shared_openssh, connect, monkeypatch, tmp_path
):
    file = tmp_path / "model"
    file.write_bytes(os.urandom(5000))
    transport = connect(shared_openssh)
    real = Uploader._missing

    def shrink(self: Uploader, wanted: Any) -> Any:
        file.write_bytes(b"less")
        return real(self, wanted)

    monkeypatch.setattr(Uploader, "_missing", shrink)
    with pytest.raises(UploadError):
        transport.put(file)
    with pytest.raises(UnreachableError, match="cannot be read"):
        transport.put(tmp_path / "no such file")


def test_fifty_blobs_need_few_round_trips(proxied, openssh, connect):
    proxy, address = proxied
    transport = connect(openssh, address)
    transport.put(b"warm")
    proxy.delay_s = 0.05  # a round trip takes 0.1 s
    started = time.monotonic()
    names = transport.put_all([os.urandom(20_000) for _ in range(50)])
    took = time.monotonic() - started
    print(f"put_all of 50 x 20 KB with 100 ms round trips: {took:.2f} s")
    assert len(set(names)) == 50
    assert took < 1.2  # one by one it would be 5 s and more


def test_the_receiver_keeps_to_the_grammar_of_python_3_7():
    ast.parse(upload._program(), feature_version=(3, 7))


def test_a_board_without_python_asks_for_bootstrap(shared_openssh, connect):
    transport = connect(shared_openssh, python="python-of-nowhere")
    with pytest.raises(BootstrapError, match="no Python") as caught:
        transport.put(b"x")
    assert caught.value.hint == "hilnas devices bootstrap board-a"


def test_parts_of_dead_uploads_are_removed_and_those_of_living_ones_kept(openssh, connect):
    first = connect(openssh)
    first.put(b"x")
    assert first._uploader is not None
    alive = Path(first._uploader._folder)
    (alive / "growing.part").write_bytes(b"half")
    dead = alive.parent / "tmpdead"
    dead.mkdir()
    (dead / "old.part").write_bytes(b"half")
    connect(openssh).put(b"y")
    assert not dead.exists()
    assert (alive / "growing.part").exists()


@pytest.mark.parametrize("size", [200_000, BIG])
def test_a_server_killed_in_the_middle_of_an_upload_is_a_lost_link(
    openssh, connect, monkeypatch, size
):
    real = upload._chunks

    def chunks(item: Any) -> Iterator[bytes]:
        for data in real(item):
            yield data[: len(data) // 2]
            openssh.kill_session()
            yield data[len(data) // 2 :]

    transport = connect(openssh)
    transport.put(b"x")
    monkeypatch.setattr(upload, "_chunks", chunks)
    data = os.urandom(size)
    with pytest.raises(LinkLostError):
        transport.put(data)
    monkeypatch.undo()
    transport.open()
    name = transport.put(data)
    assert blobs(openssh)[name] == data
    assert parts(openssh) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A work folder on a file system of 24 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "none", str(folder)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        refuse("mounting a small tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_told_with_numbers_before_anything_is_sent(
    shared_openssh, connect, small_disk
):
    transport = connect(shared_openssh, workdir=str(small_disk))
    with pytest.raises(DeviceDiskFullError, match=r"34\.\d MB are needed.*25\.\d MB are free") as e:
        transport.put(bytes(30_000_000))
    assert e.value.hint == "hilnas devices clean board-a"
    assert list((small_disk / "blobs").iterdir()) == []


def test_blobs_unused_for_longest_make_room(shared_openssh, connect, small_disk):
    transport = connect(shared_openssh, workdir=str(small_disk))
    names = transport.put_all([os.urandom(5_000_000) for _ in range(3)])
    transport.close()
    for age, name in zip((3000, 9000, 6000), names, strict=True):
        when = time.time() - age
        os.utime(small_disk / "blobs" / name, (when, when))
    transport.open()
    transport.put_all([os.urandom(9_000_000), b"x"])
    left = {path.name for path in (small_disk / "blobs").iterdir()}
    assert names[1] not in left
    assert {names[0], names[2]} <= left


def test_what_is_in_use_is_not_removed_to_make_room(shared_openssh, connect, small_disk):
    transport = connect(shared_openssh, workdir=str(small_disk))
    names = transport.put_all([os.urandom(5_000_000) for _ in range(3)])
    for name in names:
        os.utime(small_disk / "blobs" / name, (1, 1))
    with pytest.raises(DeviceDiskFullError):
        transport.put(os.urandom(9_000_000))
    assert {path.name for path in (small_disk / "blobs").iterdir()} == set(names)


@pytest.mark.parametrize("sftp", [True, False])
def test_a_disk_that_fills_up_meanwhile_leaves_no_part(
    shared_openssh, connect, small_disk, monkeypatch, sftp
):
    transport = connect(shared_openssh, workdir=str(small_disk))
    transport.put(b"x")
    assert transport._uploader is not None
    transport._uploader._may_sftp = sftp
    real = Uploader._make_room

    def fill(self: Uploader, *arguments: Any) -> None:
        real(self, *arguments)
        (small_disk / "other").write_bytes(bytes(20_000_000))

    monkeypatch.setattr(Uploader, "_make_room", fill)
    with pytest.raises(DeviceDiskFullError):
        transport.put_all([os.urandom(9_000_000), os.urandom(7_000_000)])
    assert list(small_disk.rglob("*.part")) == []
    assert len(list((small_disk / "blobs").iterdir())) == 1


@pytest.mark.long
def test_pipelined_sftp_is_much_faster_than_waiting_for_each_write(proxied, openssh, connect):
    proxy, address = proxied
    transport: SshTransport = connect(openssh, address)
    transport.put(os.urandom(BIG))
    assert transport._uploader is not None
    sftp = transport._uploader._sftp
    assert sftp is not None
    proxy.delay_s = 0.005
    data = os.urandom(4_000_000)
    took = {}
    for pipelined in (True, False):
        started = time.monotonic()
        with sftp.open(f"{transport.workdir}/test", "wb") as stream:
            stream.set_pipelined(pipelined)
            stream.write(data)
        took[pipelined] = time.monotonic() - started
    print(f"4 MB over a 10 ms link: {took[True]:.2f} s pipelined, {took[False]:.2f} s not")
    assert took[True] < took[False] / 3
