"""Which host keys are trusted, and how one becomes so."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from device_agents.devices import SshAddress
from device_agents.link.ssh.known_hosts import keys_in, replace_keys, scan, trust, trusted
from device_agents.link.ssh.transport import SshTransport
from latency_tables.errors import HostKeyError, UsageError
from tests.fakes.ssh_servers import Dropbear, OpenSsh, make_key, public, run


def fingerprint(key: Path) -> str:
    return run(["ssh-keygen", "-lf", f"{key}.pub"]).split()[1]


def test_an_unknown_key_is_refused_and_its_fingerprint_shown(shared_openssh, tmp_path):
    address = replace(shared_openssh.address, known_hosts=(tmp_path / "none",))
    seen = fingerprint(shared_openssh.host_key)
    with pytest.raises(HostKeyError, match=re.escape(seen)) as caught:
        SshTransport(address, name="board-a").open()
    assert caught.value.hint == f"hilnas devices trust board-a --fingerprint {seen}"
    assert not (tmp_path / "none").exists()


def test_a_changed_key_is_refused_with_the_old_and_the_new_one(openssh: OpenSsh):
    old = fingerprint(openssh.host_key)
    openssh.new_host_key()
    new = fingerprint(openssh.host_key)
    with pytest.raises(HostKeyError) as caught:
        SshTransport(openssh.address, name="board-a").open()
    assert old in caught.value.message
    assert new in caught.value.message
    assert "changed" in caught.value.message
    assert not caught.value.retryable


def test_nothing_is_offered_to_a_server_whose_key_is_not_trusted(openssh: OpenSsh):
    openssh.new_host_key()
    with pytest.raises(HostKeyError):
        SshTransport(openssh.address).open()
    deadline = time.monotonic() + 5
    while "preauth" not in openssh.log and time.monotonic() < deadline:
        time.sleep(0.01)  # the server writes that we left before logging in
    assert "preauth" in openssh.log
    assert "userauth" not in openssh.log
    assert "Accepted" not in openssh.log


def test_a_key_is_trusted_by_its_fingerprint_and_replaces_the_old_one(any_server, connect):
    other = public(any_server.client_key).strip()
    name = f"[127.0.0.1]:{any_server.port}"
    wrong = " ".join(other.split()[:2])
    any_server.known_hosts.write_text(f"# mine\nelse,{name} {wrong}\nthird {wrong}\n")
    with pytest.raises(HostKeyError):
        SshTransport(any_server.address).open()
    key = scan(any_server.address)
    assert trust(any_server.address, key.fingerprint) == key
    assert trusted(any_server.address) == [key]
    text = any_server.known_hosts.read_text()
    assert text == f"# mine\nelse {wrong}\nthird {wrong}\n{key.line}\n"
    connect(any_server).execute(["true"])


def test_a_fingerprint_that_is_not_the_presented_one_is_not_trusted(shared_openssh, tmp_path):
    file = tmp_path / "hosts"
    address = replace(shared_openssh.address, known_hosts=(file,))
    with pytest.raises(HostKeyError, match="none of them is SHA256:AAAA"):
        trust(address, "SHA256:" + "A" * 43)
    assert not file.exists()
    with pytest.raises(UsageError, match="allowed: SHA256:"):
        trust(address, "MD5:00")
    with pytest.raises(UsageError, match="no file"):
        trust(replace(address, known_hosts=()), "SHA256:" + "A" * 43)


def test_every_key_kind_of_a_host_can_be_trusted_by_its_fingerprint(tmp_path, connect):
    rsa = make_key(tmp_path / "rsa", "rsa")
    with OpenSsh(tmp_path / "server", settings=[f"HostKey {rsa}"]) as server:
        assert scan(server.address).kind == "ssh-ed25519"
        assert trust(server.address, fingerprint(rsa)).kind == "ssh-rsa"
        assert [key.kind for key in trusted(server.address)] == ["ssh-rsa"]
        connect(server).execute(["true"])  # asks for the kind that is known


def test_hashed_names_and_the_users_own_file_are_read(shared_openssh, own_home, connect):
    file = own_home / ".ssh" / "known_hosts"
    file.write_text(shared_openssh.known_line)
    run(["ssh-keygen", "-H", "-f", str(file)])
    assert "127.0.0.1" not in file.read_text()
    address = replace(shared_openssh.address, known_hosts=())
    assert len(trusted(address)) == 1
    connect(shared_openssh, address).execute(["true"])


def test_a_revoked_key_is_refused_whatever_else_says(shared_openssh, tmp_path):
    file = tmp_path / "hosts"
    blob = shared_openssh.known_line.split(maxsplit=1)[1]
    file.write_text(f"{shared_openssh.known_line}@revoked * {blob}")
    address = replace(shared_openssh.address, known_hosts=(file,))
    assert trusted(address) == []
    with pytest.raises(HostKeyError, match="revoked"):
        SshTransport(address).open()


def test_patterns_and_negations_decide_whose_key_a_line_holds(tmp_path):
    file = tmp_path / "hosts"
    file.write_text(
        "*.lab,!bad.lab ssh-ed25519 AAAA\n[10.0.0.?]:2222 ssh-rsa AAAB\n"
        "@cert-authority * ssh-rsa AAAC\nx ssh-rsa not-base64\nshort line\n"
    )
    kinds = {
        name: [key.kind for key in keys_in([file], name)[0]]
        for name in ("a.lab", "bad.lab", "[10.0.0.5]:2222", "10.0.0.5", "x")
    }
    assert kinds == {
        "a.lab": ["ssh-ed25519"],
        "bad.lab": [],
        "[10.0.0.5]:2222": ["ssh-rsa"],
        "10.0.0.5": [],
        "x": [],
    }


def test_replacing_a_key_removes_its_hashed_lines_and_no_pattern(tmp_path, shared_openssh):
    file = tmp_path / "hosts"
    file.write_text(shared_openssh.known_line)
    run(["ssh-keygen", "-H", "-f", str(file)])
    file.write_text(file.read_text() + "[127.0.0.*]:* ssh-rsa AAAB\n")
    key = scan(replace(shared_openssh.address, known_hosts=(file,)))
    replace_keys(file, f"[127.0.0.1]:{shared_openssh.port}", key)
    assert file.read_text() == f"[127.0.0.*]:* ssh-rsa AAAB\n{key.line}\n"


def test_scanning_logs_in_nowhere(openssh: OpenSsh):
    bare = SshAddress(host="127.0.0.1", port=openssh.port, config=Path("/dev/null"))
    assert scan(bare).fingerprint == fingerprint(openssh.host_key)
    assert "Accepted" not in openssh.log


def test_dropbear_presents_a_key_that_openssh_tools_read(tmp_path):
    with Dropbear(tmp_path / "server") as server:
        assert scan(server.address).line + "\n" == server.known_hosts.read_text()
