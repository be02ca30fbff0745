from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from device_agents.bootstrap import bootstrap
from device_agents.bootstrap.python_tar import install_python, pack_python
from device_agents.bootstrap.target import Board, probe
from device_agents.devices import DeviceSpec
from device_agents.link.local import LocalTransport
from latency_tables.errors import BootstrapError, DeviceDiskFullError, UploadError
from tests.device_agents.bootstrap.boards import Told

REAL = Path(os.path.realpath(sys.executable))


def make_tar(
    path: Path, files: Mapping[str, bytes], links: Mapping[str, str] | None = None
) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
        for name, goal in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, goal
            archive.addfile(entry)
    return path


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    """A Python in the usual layout; its library is found where this one was built for."""
    program = f"python/bin/python3.{sys.version_info[1]}"
    files = {program: REAL.read_bytes(), "python/lib/libx.so": b"x", "python/include/a.h": b"h"}
    return make_tar(tmp_path / "python.tar.gz", files, {"python/bin/python3": Path(program).name})


@pytest.fixture
def told(tmp_path: Path) -> Told:
    transport = Told(tmp_path / "agent", edit=lambda command, done: done)
    transport.open()
    return transport


def here(transport: LocalTransport) -> Board:
    """The board, without looking for more than one Python."""
    return probe(transport, sys.executable, enough=lambda target: True)


def ignore(note: str) -> None:
    """Take no note."""


def test_a_python_is_unpacked_checked_and_named(told: Told, tar: Path, cache: Path) -> None:
    notes: list[str] = []
    python = install_python(told, here(told), tar, cache, notes.append)
    assert python.startswith(f"{told.workdir}/python-")
    version = "{}.{}".format(*sys.version_info[:2])
    assert notes[-1].startswith(f"{python}: {version}")
    folder = Path(python).parents[1]
    assert (folder / "lib" / "libx.so").read_bytes() == b"x"
    assert not (folder / "include").exists()
    done = subprocess.run([python, "-I", "-c", "print(6*7)"], capture_output=True, check=True)
    assert done.stdout == b"42\n"


def test_the_second_time_it_is_there(told: Told, tar: Path, cache: Path) -> None:
    first = install_python(told, here(told), tar, cache, ignore)
    told.sent.clear()
    notes: list[str] = []
    assert install_python(told, here(told), tar, cache, notes.append) == first
    assert notes == [f"{first} is already there"]
    assert told.sent == []


def test_packages_are_installed_for_the_python_that_was_brought(
    told: Told, tar: Path, cache: Path, wheelhouse: Path
) -> None:
    spec = DeviceSpec(name="board", python="/nowhere/python3")
    done = bootstrap(told, spec, wheelhouse=wheelhouse, python_tar=tar, cache=cache)
    assert done.python.startswith(f"{told.workdir}/python-")
    assert done.python_changed
    assert done.imported["onnxruntime"] == "1.0"


def test_a_python_for_another_processor_is_refused_before_it_is_sent(
    told: Told, tmp_path: Path, cache: Path
) -> None:
    program = bytearray(REAL.read_bytes()[:8192])
    program[18:20] = (183 if program[18] != 183 else 62).to_bytes(2, "little")
    foreign = make_tar(tmp_path / "foreign.tar.gz", {"bin/python3": bytes(program)})
    with pytest.raises(BootstrapError, match=r"is for (aarch64|x86_64), the board's programs"):
        install_python(told, here(told), foreign, cache, ignore)
    assert told.sent == []


def test_a_python_for_another_c_library_is_refused(told: Told, tmp_path: Path, cache: Path) -> None:
    program = REAL.read_bytes()[:8192] + b"\0/lib/ld-musl-x86_64.so.1\0"
    foreign = make_tar(tmp_path / "musl.tar.gz", {"bin/python3": program})
    with pytest.raises(BootstrapError, match="is for musl, the board has glibc"):
        install_python(told, here(told), foreign, cache, ignore)


def test_a_python_that_does_not_run_leaves_nothing(told: Told, tmp_path: Path, cache: Path) -> None:
    broken = make_tar(tmp_path / "broken.tar.gz", {"bin/python3": REAL.read_bytes()[:8192]})
    with pytest.raises(BootstrapError, match="does not run on the board"):
        install_python(told, here(told), broken, cache, ignore)
    assert not list(Path(told.workdir).glob("python-*"))


def test_a_board_with_little_disk_is_told(told: Told, tar: Path, cache: Path) -> None:
    found = here(told)
    fields = {name: getattr(found, name) for name in Board.__slots__}
    small = Board(**{**fields, "free_bytes": 1 << 20})
    with pytest.raises(DeviceDiskFullError, match="this Python needs"):
        install_python(told, small, tar, cache, ignore)
    assert told.sent == []


@pytest.mark.parametrize(
    ("files", "links", "said"),
    [
        ({"bin/python3": b"#!/bin/sh\n" * 10}, {}, "no ELF header"),
        ({"python/readme": b""}, {}, "no bin/python3"),
        ({"../bin/python3": b""}, {}, "outside its folder"),
        ({"/bin/python3": b""}, {}, "outside its folder"),
        ({}, {"bin/python3": "/usr/bin/python3"}, "leaves its folder"),
        ({}, {"bin/python3": "../../python3"}, "leaves its folder"),
        ({}, {"bin/python3": "python3.11"}, "a link to what is not there"),
    ],
)
def test_a_tar_that_holds_something_else_is_refused(
    tmp_path: Path, cache: Path, files: dict[str, bytes], links: dict[str, str], said: str
) -> None:
    with pytest.raises(BootstrapError, match=said):
        pack_python(make_tar(tmp_path / "t.tar.gz", files, links), cache)


@pytest.mark.parametrize("damage", [b"", b"hello", None])
def test_a_damaged_tar_is_refused(
    tar: Path, tmp_path: Path, cache: Path, damage: bytes | None
) -> None:
    path = tmp_path / "damaged.tar.gz"
    whole = tar.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    with pytest.raises(BootstrapError, match="cannot be read as a tar"):
        pack_python(path, cache)


def test_a_device_in_a_tar_is_refused(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "device.tar"
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo("bin/python3")
        entry.type = tarfile.CHRTYPE
        archive.addfile(entry)
    with pytest.raises(BootstrapError, match="no plain file"):
        pack_python(path, cache)


def test_a_python_that_arrived_damaged_is_not_unpacked(
    tmp_path: Path, tar: Path, cache: Path
) -> None:
    class Damaging(Told):
        def put(self, source: bytes | Path) -> str:
            name = super().put(source)
            (Path(self.workdir) / "blobs" / name).write_bytes(b"half")
            return name

    board: LocalTransport = Damaging(tmp_path / "b", edit=lambda command, done: done)
    board.open()
    with pytest.raises(UploadError, match="arrived damaged"):
        install_python(board, here(board), tar, cache, ignore)
    assert not list(Path(board.workdir).glob("python-*"))
