"""Commands, blobs and the agent on a board behind a real SSH server."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path

import pytest

from device_agents.link.session import Session
from device_agents.link.ssh.transport import SshTransport
from device_agents.link.transport import Transport
from latency_tables.errors import LinkLostError, ProtocolError, UnreachableError
from latency_tables.files import sha256_bytes


def test_a_session_runs_the_agent_end_to_end(any_server):
    transport: Transport = SshTransport(any_server.address, workdir=any_server.workdir)
    with Session(transport, lease_wait_s=1) as session:
        assert session.boot_id
        said = session.probe([])
        assert said["cpu_count"] >= 1
        blob = session.put(b"a model")
        assert transport.get(blob, max_bytes=100) == b"a model"
        assert Path(any_server.workdir, "blobs", session.agent_sha256).exists()
    with Session(transport, lease_wait_s=1):
        pass  # the lease was freed
    with pytest.raises(LinkLostError, match="not open"):
        transport.put(b"x")


def test_the_agent_gets_its_arguments_and_no_telemetry(shared_openssh, connect):
    transport = connect(shared_openssh)
    told = "json.dumps([sys.argv[1:], os.environ['ORT_DISABLE_TELEMETRY']])"
    text = f"import json, os, sys; print({told})"
    channel = transport.run(transport.put(text.encode()), ["it's", "$HOME", ""])
    line = channel.receive(5.0)
    expected = [["--workdir", transport.workdir, "it's", "$HOME", ""], "1"]
    assert json.loads(line or b"") == expected
    assert channel.receive(5.0) == b""
    assert channel.receive(0.1) == b""
    assert channel.complaint() == "it ended with status 0"


@pytest.mark.parametrize(
    "word", ["a b", "'", '"', "$(touch x)", "`id`", "\\", "*", "", "-n", "é\n;"]
)
def test_words_of_a_command_arrive_unchanged(shared_openssh, connect, word):
    done = connect(shared_openssh).execute(["printf", "%s|", word, "end"])
    assert done.stdout.decode() == f"{word}|end|"
    assert done.status == 0
    assert done.stderr == ""


def test_status_streams_and_stdin_of_a_command_are_kept_apart(any_server, connect):
    transport = connect(any_server)
    done = transport.execute(["sh", "-c", "cat; echo oops >&2; exit 3"], stdin=b"in\0put")
    assert (done.status, done.stdout, done.stderr) == (3, b"in\0put", "oops\n")
    assert transport.execute(["no-such-program"]).status == 127
    big = os.urandom(1_000_000)
    assert transport.execute(["cat"], stdin=big).stdout == big
    # a program may leave its stdin unread
    assert transport.execute(["true"], stdin=big * 5).status == 0


def test_much_on_both_streams_at_once_does_not_lock_up(any_server, connect):
    script = (
        "import sys\nfor _ in range(400):\n sys.stdout.write('o'*9999)\n sys.stderr.write('e'*9999)"
    )
    done = connect(any_server).execute(["python3", "-c", script])
    assert len(done.stdout) == 400 * 9999
    assert set(done.stderr) == {"e"}
    assert len(done.stderr) == 4000


def test_a_command_that_takes_too_long_is_killed(any_server, connect):
    transport = connect(any_server)
    started = time.monotonic()
    with pytest.raises(LinkLostError, match=r"did not end within 0\.5 s"):
        transport.execute(["sh", "-c", "sleep 987654; true"], timeout_s=0.5)
    assert time.monotonic() - started < 5
    assert transport.execute(["pgrep", "-f", "sleep 98765[4]"]).stdout == b""


def test_a_command_that_says_too_much_is_killed(shared_openssh, connect):
    transport = connect(shared_openssh)
    with pytest.raises(LinkLostError, match="more than 16777216 bytes"):
        transport.execute(["cat", "/dev/zero"])
    assert transport.execute(["pgrep", "-f", "cat /dev/zer[o]"]).stdout == b""


def test_a_command_killed_on_the_board_is_a_lost_one(shared_openssh, connect):
    with pytest.raises(LinkLostError, match="was killed"):
        connect(shared_openssh).execute(["sh", "-c", "kill -9 $$"])


def test_the_work_folder_is_made_for_its_user_alone(shared_openssh, connect, tmp_path):
    folder = tmp_path / "new" / "work"
    transport = connect(shared_openssh, workdir=str(folder))
    assert transport.workdir == str(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / "blobs").is_dir()


def test_without_a_wish_the_work_folder_is_below_the_cache(openssh, connect):
    transport = connect(openssh, workdir=None)
    assert transport.workdir == f"{openssh.home}/.cache/hilnas/agent"


def test_a_work_folder_that_is_not_safe_is_refused(shared_openssh, tmp_path):
    real, open_to_all, file = tmp_path / "real", tmp_path / "open", tmp_path / "file"
    real.mkdir(mode=0o700)
    open_to_all.mkdir()
    open_to_all.chmod(0o755)
    file.write_text("")
    (tmp_path / "link").symlink_to(real)
    cases = {
        str(tmp_path / "link"): "is a symbolic link",
        str(open_to_all): "may be entered by others",
        str(file): "cannot be made",
        "relative/path": "is not an absolute path",
    }
    if os.getuid() == 0:
        other = tmp_path / "other"
        other.mkdir(mode=0o700)
        os.chown(other, 12345, 12345)
        cases[str(other)] = "belongs to somebody else"
    for folder, said in cases.items():
        with pytest.raises(UnreachableError, match=said):
            SshTransport(shared_openssh.address, workdir=folder).open()
    assert stat.S_IMODE(open_to_all.stat().st_mode) == 0o755


def test_a_blob_is_given_only_whole_known_and_small_enough(shared_openssh, connect):
    transport = connect(shared_openssh)
    name = transport.put(b"0123456789")
    assert transport.get(name, max_bytes=10) == b"0123456789"
    with pytest.raises(ProtocolError, match="more than the allowed 9 bytes"):
        transport.get(name, max_bytes=9)
    with pytest.raises(ProtocolError, match="cannot be read"):
        transport.get("0" * 64, max_bytes=9)
    with pytest.raises(ProtocolError, match="not the name of a blob"):
        transport.get("../../etc/passwd", max_bytes=9)
    Path(transport.workdir, "blobs", name).write_bytes(b"other")
    with pytest.raises(ProtocolError, match="damaged"):
        transport.get(name, max_bytes=10)


def test_opening_again_gives_a_working_connection_and_closing_twice_is_harmless(
    shared_openssh, connect
):
    transport = connect(shared_openssh)
    transport.open()
    assert transport.execute(["true"]).status == 0
    transport.close()
    transport.close()
    with pytest.raises(LinkLostError):
        transport.execute(["true"])


def test_noise_of_the_login_shell_disturbs_nothing(openssh, connect):
    for name in (".bashrc", ".profile", ".zshenv"):
        (openssh.home / name).write_text("printf 'welcome\\nto the board'; echo careful >&2\n")
    transport = connect(openssh)
    names = transport.put_all([b"one", os.urandom(2_000_000)])
    assert transport.get(names[0], 3) == b"one"
    with Session(SshTransport(openssh.address, workdir=openssh.workdir)) as session:
        assert session.boot_id


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (b"print('no json')", [b"no json\n", b""]),
        (b"import sys; sys.stdout.write('tail')", [b"tail", b""]),
        (b"import sys; sys.stdout.write('a\\rb\\n\\nc\\n')", [b"a\rb\n", b"\n", b"c\n", b""]),
    ],
)
def test_lines_of_an_agent_come_as_they_are(shared_openssh, connect, script, expected):
    transport = connect(shared_openssh)
    channel = transport.run(transport.put(script))
    assert [channel.receive(5.0) for _ in expected] == expected


def test_a_line_without_end_is_given_up_and_not_collected(shared_openssh, connect):
    transport = connect(shared_openssh)
    channel = transport.run(transport.put(b"import sys\nwhile True: sys.stdout.write('x' * 65536)"))
    line = channel.receive(10.0)
    assert line is not None
    assert (1 << 20) < len(line) < (1 << 21)
    assert channel.receive(5.0) == b""
    channel.kill()
    assert transport.execute(["pgrep", "-f", sha256_bytes(b"x")]).stdout == b""


@pytest.mark.long
def test_a_flood_of_lines_is_held_back_and_not_stored(shared_openssh, connect):
    transport = connect(shared_openssh)
    channel = transport.run(transport.put(b"while True: print('y' * 9999)"))
    deadline = time.monotonic() + 3
    while channel._unread < 30 << 20 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert channel._unread < 34 << 20
    assert channel.receive(1.0) == b"y" * 9999 + b"\n"
    started = time.monotonic()
    channel.kill()
    assert time.monotonic() - started < 5


def test_an_agent_that_reads_nothing_does_not_block_the_sender(any_server, connect):
    transport = connect(any_server)
    channel = transport.run(transport.put(b"import time; time.sleep(60)"))
    started = time.monotonic()
    with pytest.raises(LinkLostError, match="reads nothing"):
        channel.send(bytes(1 << 24), 1.0)
    assert time.monotonic() - started < 3


def test_killing_ends_an_agent_that_does_not_end_by_itself(any_server, connect):
    transport = connect(any_server)
    name = transport.put(b"import time; print('up')\nwhile True: time.sleep(60)")
    channel = transport.run(name)
    assert channel.receive(5.0) == b"up\n"
    channel.kill()
    channel.kill()
    assert transport.execute(["pgrep", "-f", f"blobs/{name[:63]}[{name[63]}]"]).stdout == b""
    assert channel.receive(0.5) == b""


def test_what_an_agent_says_to_stderr_is_its_complaint(any_server, connect):
    transport = connect(any_server)
    channel = transport.run(transport.put(b"import sys; sys.exit('it hurts')"))
    assert channel.receive(5.0) == b""
    assert channel.complaint() == "it ended with status 1; it said: it hurts"
    with pytest.raises(LinkLostError, match="is gone; it ended with status 1; it said: it hurts"):
        channel.send(b"hello\n", 1.0)
