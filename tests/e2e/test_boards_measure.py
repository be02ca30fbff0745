"""``hilnas measure`` on a board behind SSH, also through a jump host."""

import json

import pytest

from device_agents.measuring.reference import reference_model
from tests.e2e.board_home import BoardHome, entry, is_idle
from tests.fakes.ssh_servers import OpenSsh, free_port, public

QUICK = ("measure", "net.onnx", "--measuring", "quick", "--json")


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    with OpenSsh(tmp_path_factory.mktemp("board")) as server:
        yield server
        assert is_idle(server), "processes were left on the board"


@pytest.fixture
def home(tmp_path, board):
    """A model, and a board whose key is trusted."""
    home = BoardHome(path=tmp_path)
    home.write_devices(board=entry(board))
    home.trust(board)
    (home.path / "net.onnx").write_bytes(reference_model("tiny"))
    return home


def fields(value, path=""):
    """Paths of all fields of a report; what counts devices' parts is left out."""
    if not isinstance(value, dict) or path.endswith(("identity", "state", "got")):
        return {path}
    return {f for name, inner in value.items() for f in fields(inner, f"{path}.{name}")}


def test_a_board_is_told_of_in_the_same_fields_as_this_machine(home):
    limit = ("--check", "latency_ms<=1000")
    here = json.loads(home.hilnas(*QUICK, *limit))
    there = json.loads(home.hilnas(*QUICK, *limit, "--device", "board"))
    assert fields(there) == fields(here)
    assert there["measurement"]["device_name"] == "board"
    assert there["outputs"]["right"] is True
    assert there["budget"]["outcome"] == "pass"
    assert there["measurement"]["onnx_sha256"] == here["measurement"]["onnx_sha256"]


def test_a_limit_that_the_board_breaks_fails(home):
    limit = "latency_ms<=0.0001"
    said = home.hilnas(
        *QUICK[:-1], "--device", "board", "--no-check-outputs", "--check", limit, code=9
    )
    assert f"limit not kept: {limit}" in said


def test_a_board_that_is_off_is_told_with_what_to_look_at(home):
    home.write_devices(board={"host": "127.0.0.1", "port": free_port()})
    said = home.hilnas(*QUICK, "--device", "board", code=5)
    assert "Connection refused" in said
    assert "try: check that its SSH server runs" in said


@pytest.mark.long  # tests of the transport go through jump hosts, too
def test_a_board_behind_a_jump_host_is_measured_through_it(home, board, tmp_path):
    with OpenSsh(tmp_path / "jump") as jump:
        (home.path / "home/.ssh/config").write_text(
            f"Host jump\n  HostName 127.0.0.1\n  Port {jump.port}\n  User {jump.user}\n"
            f"  IdentityFile {jump.client_key}\n"
            f"Host inner\n  HostName 127.0.0.1\n  Port {board.port}\n  User {board.user}\n"
            f"  IdentityFile {board.client_key}\n  ProxyJump jump\n"
        )
        more = entry(board, ssh="inner")
        home.write_devices(board={k: more[k] for k in ("ssh", "workdir", "python")})
        refused = home.hilnas(*QUICK, "--device", "board", code=5)
        assert "is unknown" in refused
        assert f"127.0.0.1:{jump.port}" in refused
        (home.path / "home/.ssh/known_hosts").write_text(jump.known_line)
        report = json.loads(home.hilnas(*QUICK, "--device", "board"))
        assert report["measurement"]["device_name"] == "board"
        assert "Accepted publickey" in jump.log
        assert is_idle(jump)


def test_a_board_that_takes_no_key_of_the_user_is_told_which_were_tried(home, board):
    (board.folder / "authorized_keys").rename(board.folder / "elsewhere")
    try:
        said = home.hilnas(*QUICK, "--device", "board", code=5)
    finally:
        (board.folder / "elsewhere").rename(board.folder / "authorized_keys")
    assert f"{board.client_key}: refused" in said
    assert public(board.client_key) not in said
