"""The local transport: content-addressed files, pipes that never block, one lock per machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from device_agents.board.frames import MAX_FRAME_BYTES
from device_agents.board.workdir import trim
from device_agents.link.local import LINES_KEPT, LocalTransport, MachineLock, ProcessChannel
from latency_tables.errors import LinkLostError, ProtocolError, UnreachableError
from latency_tables.files import sha256_bytes

TRY_LOCK = """
import fcntl, sys
handle = open(sys.argv[1])
try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print("taken")
else:
    print("free")
"""


@pytest.fixture
def transport(tmp_path: Path) -> LocalTransport:
    made = LocalTransport(tmp_path / "agent")
    made.open()
    return made


def python(code: str) -> ProcessChannel:
    return ProcessChannel([sys.executable, "-c", code])


def test_a_blob_is_named_by_its_content_and_comes_back(transport: LocalTransport) -> None:
    name = transport.put(b"model")
    assert name == sha256_bytes(b"model")
    assert transport.get(name, max_bytes=5) == b"model"


def test_a_path_and_its_bytes_are_the_same_blob(transport: LocalTransport, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"model")
    assert transport.put(file) == transport.put(b"model")
    assert len(list((Path(transport.workdir) / "blobs").iterdir())) == 1


def test_a_present_blob_is_not_written_again(transport: LocalTransport) -> None:
    path = Path(transport.workdir) / "blobs" / transport.put(b"model")
    inode = path.stat().st_ino
    transport.put(b"model")
    assert path.stat().st_ino == inode


def test_a_missing_a_too_large_and_a_misnamed_blob_are_refused(transport: LocalTransport) -> None:
    name = transport.put(b"model")
    with pytest.raises(ProtocolError, match="allowed 4 bytes"):
        transport.get(name, max_bytes=4)
    with pytest.raises(ProtocolError, match="cannot be read"):
        transport.get("0" * 64, max_bytes=4)
    with pytest.raises(ProtocolError, match="not the name"):
        transport.get("../../etc/passwd", max_bytes=4)


def test_a_work_folder_that_cannot_be_made_is_unreachable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnreachableError, match="XDG_CACHE_HOME"):
        LocalTransport(tmp_path / "file" / "agent").open()


def test_the_work_folder_is_private(transport: LocalTransport) -> None:
    assert Path(transport.workdir).stat().st_mode & 0o777 == 0o700


def test_blobs_unused_for_longest_go_first_and_the_agent_stays(transport: LocalTransport) -> None:
    names = [transport.put(bytes([i]) * 100) for i in range(4)]
    folder = Path(transport.workdir) / "blobs"
    for age, name in enumerate(names):
        os.utime(folder / name, (1000 + age, 1000 + age))
    trim(transport.workdir, 250, keep=str(folder / names[0]))
    assert {path.name for path in folder.iterdir()} == {names[0], names[3]}


def test_a_flood_on_stdout_and_stderr_does_not_block_either_side() -> None:
    channel = python(
        "import sys\n"
        "for _ in range(300):\n"
        "    sys.stderr.write('e' * 10000 + '\\n'); sys.stdout.write('o' * 10000 + '\\n')\n"
    )
    lines = 0
    while line := channel.receive(20):
        lines += len(line) == 10_001
    assert (lines, line) == (300, b"")
    assert channel.complaint().startswith("it ended with status 0")
    assert len(channel._stderr) == 64 * 1024
    channel.kill()


def test_a_line_without_end_is_cut_soon_after_the_limit() -> None:
    channel = python("import sys\nwhile True: sys.stdout.write('x' * 65536)")
    line = channel.receive(20)
    assert line is not None
    assert MAX_FRAME_BYTES < len(line) < MAX_FRAME_BYTES + 200_000
    channel.kill()


def test_sending_to_a_process_that_does_not_read_ends_in_a_lost_link() -> None:
    channel = python("import time; time.sleep(60)")
    start = time.monotonic()
    with pytest.raises(LinkLostError, match="reads nothing"):
        channel.send(b"x" * (1 << 20), timeout_s=0.2)
    assert time.monotonic() - start < 5
    channel.kill()


def test_sending_to_a_process_that_ended_is_a_lost_link() -> None:
    channel = python("import sys; sys.exit(5)")
    assert channel.receive(20) == b""
    with pytest.raises(LinkLostError, match="status 5"):
        channel.send(b"x" * (1 << 20), timeout_s=5)
    channel.kill()


def test_the_machine_lock_keeps_other_processes_out_until_the_outermost_exit(
    tmp_path: Path,
) -> None:
    path = tmp_path / "compute.lock"

    def state() -> str:
        command = [sys.executable, "-c", TRY_LOCK, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    lock = MachineLock(path)
    with lock:
        with lock:
            assert state() == "taken"
        assert state() == "taken"
    assert (state(), lock.held) == ("free", False)


def test_a_command_gets_its_words_unchanged_and_its_status_is_told(
    transport: LocalTransport,
) -> None:
    done = transport.execute(
        ["sh", "-c", 'printf %s "$1"; cat; exit 3', "x", "a 'b' $c"], stdin=b"!"
    )
    assert (done.status, done.stdout) == (3, b"a 'b' $c!")


def test_a_command_that_does_not_end_is_given_up(transport: LocalTransport) -> None:
    with pytest.raises(LinkLostError, match=r"within 0\.1 s"):
        transport.execute(["sleep", "30"], timeout_s=0.1)


def test_an_agent_that_floods_waits_until_it_is_heard() -> None:
    channel = python("import sys\nfor i in range(200000): print(i)\nsys.stdin.read()")
    try:
        time.sleep(0.5)  # nobody receives: what it says must not pile up here
        assert channel._lines.qsize() <= LINES_KEPT
        received = [channel.receive(10.0) for _ in range(3000)]
        assert received == [b"%d\n" % i for i in range(3000)]
    finally:
        channel.kill()
