from __future__ import annotations

import ast
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from device_agents.bootstrap.job import select
from device_agents.bootstrap.target import board_program, elf_machine, probe
from device_agents.link.local import LocalTransport
from latency_tables.errors import BootstrapError, ProtocolError
from tests.device_agents.bootstrap.boards import Scripted

ELF_ARM = "7f454c4601010100000000000000000002002800"
ELF_AARCH64 = "7f454c460201010000000000000000000300b700"
SHELL = f"""machine=aarch64
libc=glibc 2.31
elf={ELF_AARCH64}
tool=tar
tool=gzip
df=/dev/root 30000 20000 10000 67% /home
python=/usr/bin/python3
"""
FACTS: dict[str, Any] = {
    "version": [3, 8, 10],
    "implementation": "cpython",
    "abi": "cp38",
    "elf": ELF_AARCH64,
    "libc": "glibc 2.31",
    "glibcxx": [3, 4, 28],
    "missing": [],
    "pip": False,
    "venv": False,
}


def scripted(shell: str = SHELL, **facts: Any) -> Any:
    return Scripted(shell.encode(), json.dumps({**FACTS, **facts}).encode())


def test_this_machine_describes_itself(board: LocalTransport) -> None:
    found = probe(board, sys.executable)
    first = found.targets[0]
    assert first.python == sys.version_info[:2]
    assert first.abi == f"cp{sys.version_info[0]}{sys.version_info[1]}"
    assert first.machine == found.machine == os.uname().machine
    assert first.libc == found.libc
    assert first.libc[0] in ("glibc", "musl")
    assert first.missing_modules == ()
    free = shutil.disk_usage(board.workdir).free
    assert found.free_bytes is not None
    assert abs(found.free_bytes - free) < 4 << 30
    assert "tar" in found.tools


def test_a_board_is_read_from_what_it_prints() -> None:
    board = probe(scripted())
    assert str(board.targets[0]) == "Python 3.8 on aarch64 with glibc 2.31"
    assert board.targets[0].glibcxx == (3, 4, 28)
    assert board.free_bytes == 10000 * 1024
    assert board.tools == {"tar", "gzip"}


def test_32_bit_programs_on_a_64_bit_kernel_are_seen() -> None:
    board = probe(scripted(elf=ELF_ARM))
    assert (board.targets[0].machine, board.targets[0].kernel_machine) == ("armv7l", "aarch64")


@pytest.mark.parametrize(
    "lines",
    [
        "libc=musl libc (aarch64) Version 1.2.4 Dynamic Program Loader",
        "libc=sh: ldd: not found\nmusl=musl libc (aarch64) Version 1.2.4 Dynamic",
    ],
)
def test_musl_is_recognised(lines: str) -> None:
    board = probe(scripted(SHELL.replace("libc=glibc 2.31", lines), libc="musl"))
    assert board.libc == ("musl", (1, 2))
    assert board.targets[0].libc == ("musl", (1, 2))


@pytest.mark.parametrize(
    "line",
    [
        "libc=glibc 2.31",
        "libc=ldd (Ubuntu GLIBC 2.31-0ubuntu9.9) 2.31 Copyright (C) 2020",
        "libc=ldd (Debian GLIBC 2.31-13) 2.31 Copyright (C) 2020",
    ],
)
def test_glibc_is_read_from_getconf_and_from_ldd(line: str) -> None:
    assert probe(scripted(SHELL.replace("libc=glibc 2.31", line))).libc == ("glibc", (2, 31))


@pytest.mark.parametrize(
    "facts",
    [
        b"hello",
        b"[]",
        b'{"version": 3}',
        json.dumps({**FACTS, "abi": "cp38; rm -rf /"}).encode(),
        json.dumps({**FACTS, "glibcxx": "x"}).encode(),
        json.dumps({**FACTS, "version": ["3", None]}).encode(),
    ],
)
def test_what_a_board_says_of_itself_is_checked(facts: bytes) -> None:
    with pytest.raises(ProtocolError, match="/usr/bin/python3 on the board"):
        probe(Scripted(SHELL.encode(), facts))  # type: ignore[arg-type]


def test_paths_with_anything_odd_are_not_run() -> None:
    odd = SHELL.replace("/usr/bin/python3", "/tmp/a b; reboot")
    assert probe(scripted(odd)).targets == ()


def test_a_board_without_python_is_told_the_two_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "uname", "head", "tail", "tr", "od", "df", "readlink", "tar", "getconf"):
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    script = board_program("probe.sh").decode()
    without = script.replace("$PATH /usr/bin /usr/local/bin /opt/python/bin", "$PATH")
    assert without != script
    monkeypatch.setattr(
        "device_agents.bootstrap.target.board_program", lambda name: without.encode()
    )
    transport = LocalTransport(tmp_path / "agent")
    transport.open()
    monkeypatch.setenv("PATH", str(tools))
    board = probe(transport)
    assert board.targets == ()
    assert board.machine == os.uname().machine
    assert board.tools == {"tar"}
    with pytest.raises(BootstrapError, match="no Python 3 that runs") as caught:
        select(board, "onnxruntime")
    assert "--python-tar" in str(caught.value)


def test_a_python_that_does_not_run_is_passed_over(board: LocalTransport, tmp_path: Path) -> None:
    broken = tmp_path / "python3"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    found = probe(board, str(broken))
    assert str(broken) not in [target.executable for target in found.targets]


def test_a_shell_that_fails_is_no_board() -> None:
    with pytest.raises(BootstrapError, match="status 127: sh: broken"):
        probe(Scripted(b"", status=127))  # type: ignore[arg-type]


def test_the_preferred_python_is_left_only_for_one_that_has_wheels() -> None:
    shell = SHELL + "python=/usr/bin/python3.11\n"
    transport = scripted(shell)
    real = transport.execute

    def execute(command: Any, **more: Any) -> Any:
        old = command[0] == "/usr/bin/python3"
        changes = {"version": [3, 6, 9], "abi": "cp36m"} if old else {}
        transport.facts = json.dumps({**FACTS, **changes}).encode()
        return real(command, **more)

    transport.execute = execute
    target, plan = select(probe(transport), "onnxruntime")
    assert target.executable == "/usr/bin/python3.11"
    assert plan.packages[0].version == "1.19.2"


@pytest.mark.parametrize("name", ["facts.py", "unpack.py"])
def test_programs_for_the_board_parse_on_python_3_6(name: str) -> None:
    ast.parse(board_program(name), feature_version=(3, 6))


def test_an_elf_header_tells_the_processor() -> None:
    assert elf_machine(bytes.fromhex(ELF_AARCH64)) == "aarch64"
    assert elf_machine(bytes.fromhex(ELF_ARM)) == "arm"
    assert elf_machine(Path(os.path.realpath(sys.executable)).read_bytes()) == os.uname().machine
    assert elf_machine(b"#!/bin/sh\n" + bytes(20)) == ""
