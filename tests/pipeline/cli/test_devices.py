"""``hilnas devices``: every verb as its user sees it, against real SSH servers on 127.0.0.1."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import click
import pytest

from device_agents.inventory import change_device
from pipeline.cli.main import run_cli
from tests.device_agents.agents import wait_until
from tests.device_agents.bootstrap.boards import ONNXRUNTIME, make_runtime
from tests.fakes.ssh_servers import Dropbear, OpenSsh, descendants, make_key, public

WRONG = "SHA256:" + "A" * 43
PROVIDERS = 'def get_available_providers():\n    return ["CPUExecutionProvider"]\n'
COMMENTED = '# boards of the lab\n[[device]]\nname = "old"   # retired\nssh = "old-board"\n'


class Finished:
    """Exit code and output of one command line, unwrapped."""

    def __init__(self, *arguments, code=0):
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            self.code = run_cli(["devices", *map(str, arguments)])
        self.out, self.err = out.getvalue(), err.getvalue()
        assert self.code == code, self.out + self.err

    @property
    def json(self):
        return json.loads(self.out)


def fingerprint(server):
    """What the board itself says of its key."""
    said = subprocess.run(
        ["ssh-keygen", "-lf", f"{server.host_key}.pub"], capture_output=True, text=True, check=True
    )
    return said.stdout.split()[1]


def address(server, **more):
    """The options of ``add`` that say where a server is."""
    options = {"host": "127.0.0.1", "port": server.port, "user": server.user,
               "key": server.client_key, "workdir": server.workdir, **more}  # fmt: skip
    return [word for name, value in options.items() for word in (f"--{name}", value)]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A user without keys, agent, settings or boards, in an empty folder."""
    (tmp_path / "home" / ".ssh").mkdir(mode=0o700, parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("CONFIG", "DATA", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr("device_agents.link.ssh.config.SYSTEM_CONFIG", tmp_path / "none")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A board that tests leave as it is."""
    with OpenSsh(tmp_path_factory.mktemp("board")) as server:
        yield server
        assert wait_until(lambda: server.session_pids() == []), "processes were left on the board"


@pytest.fixture
def own(tmp_path):
    """A board that a test may change."""
    with OpenSsh(tmp_path / "server") as server:
        yield server


@pytest.fixture
def board(shared):
    """The name of a board in the inventory, with the Python of these tests."""
    return known(shared)


def known(server, name="board"):
    """Add a server and give its entry our Python, which has onnxruntime."""
    Finished("add", name, *address(server), "--fingerprint", fingerprint(server))
    change_device(Path("devices.toml"), name, python=sys.executable)
    return name


# ---- add and trust ------------------------------------------------------------------------------


def test_a_board_with_an_unknown_key_is_refused_with_its_fingerprint_and_the_command(shared):
    done = Finished("add", "board", *address(shared), code=5)
    assert f"is unknown: it presents ssh-ed25519 {fingerprint(shared)}" in done.err
    assert f"hilnas devices add board … --fingerprint {fingerprint(shared)}" in done.err
    assert list(Path().iterdir()) == []


def test_a_wrong_fingerprint_trusts_nothing(shared):
    done = Finished("add", "board", *address(shared), "--fingerprint", WRONG, code=5)
    assert fingerprint(shared) in done.err
    assert WRONG in done.err
    assert list(Path().iterdir()) == []


def test_something_that_is_no_fingerprint_is_a_mistake_of_usage(shared):
    Finished("add", "board", *address(shared), "--fingerprint", "MD5:00:11", code=2)


def test_the_right_fingerprint_writes_the_entry_and_keeps_what_the_file_says(shared):
    Path("devices.toml").write_text(COMMENTED)
    done = Finished("add", "board", *address(shared), "--tag", "lab", "--tag", "arm",
                    "--fingerprint", fingerprint(shared))  # fmt: skip
    assert "wrote board to devices.toml" in done.out
    assert Path("devices.toml").read_text().startswith(COMMENTED)
    rows = {row["name"]: row for row in Finished("list", "--json").json}
    assert set(rows) == {"local", "old", "board"}
    assert rows["board"]["tags"] == ["lab", "arm"]
    assert rows["board"]["address"] == f"ssh {shared.user}@127.0.0.1:{shared.port}"


def test_a_board_without_a_runtime_gets_its_entry_and_the_next_command(shared):
    done = Finished("add", "board", *address(shared), "--fingerprint", fingerprint(shared))
    assert "hilnas devices bootstrap board" in done.out


def test_a_user_may_keep_boards_for_all_projects(shared, home):
    Finished("add", "mine", *address(shared), "--for-user", "--fingerprint", fingerprint(shared))
    assert not Path("devices.toml").exists()
    assert (home / "config/hilnas/devices.toml").exists()
    assert Finished("probe", "mine", "--json").json["machine"] == os.uname().machine


def test_a_project_entry_comes_before_the_users(shared, home):
    Finished("add", "board", *address(shared), "--for-user", "--fingerprint", fingerprint(shared))
    Path("devices.toml").write_text('[[device]]\nname = "board"\nssh = "other"\n')
    rows = {row["name"]: row["address"] for row in Finished("list", "--json").json}
    assert rows["board"] == "ssh other"


def test_a_name_that_is_taken_is_refused_before_anybody_is_asked(board):
    before = Path("devices.toml").read_text()
    done = Finished("add", board, "--host", "192.0.2.1", code=2)
    assert "exists already" in done.err
    assert Path("devices.toml").read_text() == before
    assert "exists already" in Finished("add", "local", "--host", "192.0.2.1", code=2).err


def test_nobody_who_listens_is_said_so(own):
    own.kill_all()
    done = Finished("add", "board", *address(own), "--fingerprint", WRONG, code=5)
    assert "Connection refused" in done.err


def test_a_key_that_the_board_does_not_know_writes_no_entry(shared, home):
    stranger = make_key(home / "stranger")
    done = Finished("add", "board", *address(shared, key=stranger), "--fingerprint",
                    fingerprint(shared), code=5)  # fmt: skip
    assert str(stranger) in done.err
    assert "--install-key" in done.err
    assert not Path("devices.toml").exists()


def test_an_entry_without_an_address_is_a_mistake_of_usage():
    assert "host" in Finished("add", "board", code=2).err


def test_a_password_that_the_board_does_not_take_is_told(shared, home, monkeypatch):
    asked = []
    monkeypatch.setattr(click, "prompt", lambda text, **how: asked.append(how) or "secret")
    public_key = Path(f"{make_key(home / 'new')}.pub")
    done = Finished("add", "board", *address(shared, key=home / "new"), "--fingerprint",
                    fingerprint(shared), "--install-key", public_key, code=5)  # fmt: skip
    assert "publickey" in done.err
    assert all(how["hide_input"] for how in asked)
    assert not Path("devices.toml").exists()


def test_a_key_with_a_passphrase_is_asked_for_it_and_the_passphrase_is_not_kept(own, monkeypatch):
    locked = make_key(own.folder / "locked", passphrase="open sesame")
    (own.folder / "authorized_keys").write_text(public(locked))
    monkeypatch.setattr(click, "prompt", lambda text, **how: "open sesame")
    Finished("add", "board", *address(own, key=locked), "--fingerprint", fingerprint(own))
    assert "sesame" not in Path("devices.toml").read_text()


def test_a_changed_host_key_is_refused_with_old_and_new_until_it_is_trusted(own):
    known(own)
    old = fingerprint(own)
    own.new_host_key()
    done = Finished("probe", "board", code=5)
    assert "changed" in done.err
    assert old in done.err
    assert f"hilnas devices trust board --fingerprint {fingerprint(own)}" in done.err
    Finished("trust", "board", "--fingerprint", old, code=5)
    Finished("probe", "board", code=5)
    assert fingerprint(own) in Finished("trust", "board", "--fingerprint", fingerprint(own)).out
    Finished("probe", "board")
    lines = Path("devices.known_hosts").read_text().splitlines()
    assert len(lines) == 1


def test_this_machine_has_no_host_key():
    assert "not reached over ssh" in Finished("trust", "local", "--fingerprint", WRONG, code=2).err


# ---- looking ------------------------------------------------------------------------------------


def test_a_probe_tells_the_runtime_and_reads_as_json(board):
    found = Finished("probe", board, "--json").json
    runtimes = {r["name"]: r for r in found["runtimes"]}
    assert "CPUExecutionProvider" in runtimes["onnxruntime"]["providers"]
    assert "onnxruntime" in Finished("probe", board).out


def test_a_device_that_does_not_exist_is_named_with_those_that_do(board):
    done = Finished("probe", "bord", code=2)
    assert "there are: board, local" in done.err


def test_doctor_passes_a_healthy_board_with_evidence_for_everything(board):
    checks = Finished("doctor", board, "--json").json
    assert {c["name"]: c["state"] for c in checks}["runtimes"] == "ok"
    assert all(c["evidence"] for c in checks)
    assert not any(c["state"] == "fail" for c in checks)


def test_doctor_fails_a_board_without_the_runtime_and_names_the_command(board):
    change_device(Path("devices.toml"), board, python="/usr/bin/python3", runtime="ncnn")
    done = Finished("doctor", board, code=5)
    assert "✗  runtimes" in done.out
    assert "hilnas devices bootstrap board" in done.out


def test_doctor_tells_of_a_board_without_python_what_to_do(board):
    change_device(Path("devices.toml"), board, python="/no/such/python")
    checks = {c["name"]: c for c in Finished("doctor", board, "--json", code=5).json}
    failed = [c for c in checks.values() if c["state"] == "fail"]
    assert failed
    assert any("bootstrap" in c["remedy"] for c in failed)


def test_doctor_of_a_board_that_is_off_is_a_device_error(own):
    known(own)
    own.kill_all()
    assert "Connection refused" in Finished("doctor", "board", code=5).err


# ---- leases -------------------------------------------------------------------------------------


@pytest.fixture
def become(monkeypatch):
    """Be another user to the board."""

    def be(user):
        for module in ("leases", "session"):
            monkeypatch.setattr(f"device_agents.link.{module}.default_user", lambda: user)

    return be


def test_a_locked_board_keeps_others_out_and_names_who_has_it(board, become):
    become("ann@desk")
    said = Finished("lock", board, "--minutes", "5", "--reason", "a demo").out
    assert "reserved by ann@desk" in said
    become("bob@desk")
    refused = Finished("lock", board, code=5).err
    assert "ann@desk" in refused
    assert "a demo" in refused
    assert "--force" in Finished("unlock", board, code=5).err
    become("ann@desk")
    Finished("lock", board, "--minutes", "1")
    assert "was reserved by ann@desk" in Finished("unlock", board).out


def test_somebody_elses_lock_is_broken_only_with_force(board, become):
    become("ann@desk")
    Finished("lock", board)
    become("bob@desk")
    assert "was reserved by ann@desk" in Finished("unlock", board, "--force").out
    Finished("lock", board, "--minutes", "1")
    Finished("unlock", board)


def test_a_lock_for_no_time_is_refused(board):
    assert "more than 0" in Finished("lock", board, "--minutes", "0", code=2).err


# ---- keeping it in order ------------------------------------------------------------------------


def test_clean_frees_what_was_uploaded_and_the_next_command_uploads_again(board, shared):
    blobs = Path(shared.workdir, "blobs")
    (blobs / ("0" * 64)).write_bytes(b"x" * (3 << 20))
    assert "3.0 MiB freed on board" in Finished("clean", board).out
    assert not (blobs / ("0" * 64)).exists()
    Finished("probe", board)


def test_clocks_that_nobody_changed_need_no_restoring(board):
    assert "no session left clocks changed" in Finished("restore", board).out


def test_bootstrap_from_a_wheelhouse_once_and_clean_keeps_the_runtime_in_use(tmp_path, monkeypatch):
    monkeypatch.setattr("device_agents.bootstrap.lock.shipped_locks", lambda: ())
    wheels = make_runtime(tmp_path / "wheels", code=ONNXRUNTIME + PROVIDERS)
    with Dropbear(tmp_path / "server") as server:
        said = server.known_hosts.read_text().split()[2]
        (server.folder / "host.pub").write_text(f"ssh-ed25519 {said}\n")
        server.host_key = server.folder / "host"
        Finished("add", "board", *address(server), "--fingerprint", fingerprint(server))
        assert "onnxruntime 1.0" in Finished("bootstrap", "board", "--wheelhouse", wheels).out
        again = Finished("bootstrap", "board", "--wheelhouse", wheels, "--json").json
        assert (again["fresh"], again["packages"]["numpy"]) == (False, "2.0")
        runtimes = {r["name"]: r for r in Finished("probe", "board", "--json").json["runtimes"]}
        assert runtimes["onnxruntime"]["version"] == "1.0"
        newer = make_runtime(tmp_path / "newer", version="2.0", code=ONNXRUNTIME + PROVIDERS)
        assert "onnxruntime 2.0" in Finished("bootstrap", "board", "--wheelhouse", newer).out
        assert len(list(Path(server.workdir, "site").glob("*/onnxruntime"))) == 2
        Finished("clean", "board", "--what", "site")
        (left,) = Path(server.workdir, "site").glob("*/onnxruntime")
        assert '"2.0"' in (left / "__init__.py").read_text()


def test_no_process_of_ours_is_left_here(board):
    Finished("probe", board)
    mine = [pid for pid in descendants(os.getpid()) if b"hilnas" in cmdline(pid)]
    assert mine == []


def cmdline(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
