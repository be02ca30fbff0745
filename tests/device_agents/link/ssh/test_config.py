"""The user's ssh configuration, read as OpenSSH reads it."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from device_agents.devices import SshAddress
from device_agents.link.ssh.config import resolve
from latency_tables.errors import UsageError


@pytest.fixture
def write(own_home: Path):
    """Write files below ~/.ssh; gives the path."""

    def write(name: str, text: str, mode: int = 0o600) -> Path:
        file = own_home / ".ssh" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
        return file

    return write


def test_a_host_that_no_file_mentions_is_used_as_it_is():
    target = resolve(SshAddress(host="10.1.2.3"))
    assert (target.hostname, target.port, target.user) == ("10.1.2.3", 22, getpass.getuser())
    assert target.jumps == ()
    assert target.lookup_name == "10.1.2.3"


def test_an_alias_gets_what_its_block_says(write, own_home):
    write(
        "config",
        "Host board\n HostName 10.0.0.7\n Port 2222\n User root\n"
        " IdentityFile ~/.ssh/%h_key\n IdentityFile /keys/b\n IdentitiesOnly yes\n"
        " ConnectTimeout 3\n HostKeyAlias the-board\n"
        "Host *\n User nobody\n IdentityFile ~/.ssh/general\n",
    )
    target = resolve(SshAddress(host="board"))
    assert (target.hostname, target.port, target.user) == ("10.0.0.7", 2222, "root")
    names = [str(path) for path in target.identities]
    assert names == [f"{own_home}/.ssh/10.0.0.7_key", "/keys/b", f"{own_home}/.ssh/general"]
    assert target.identities_only
    assert target.connect_timeout_s == 3
    assert target.lookup_name == "the-board"


def test_what_the_address_says_wins_over_the_configuration(write):
    write("config", "Host board\n Port 2222\n User root\nMatch user me\n HostName 10.9.9.9\n")
    target = resolve(SshAddress(host="board", port=2022, user="me", key=Path("/k")))
    assert (target.port, target.user, target.hostname) == (2022, "me", "10.9.9.9")
    assert target.identities == (Path("/k"),)
    assert target.lookup_name == "[10.9.9.9]:2022"


def test_included_files_are_found_by_pattern_beside_the_configuration(write):
    write("config", "Include conf.d/*.conf\nHost *\n User late\n")
    write("conf.d/a.conf", "Host one\n User first\n")
    write("conf.d/b.conf", "Host two\n HostName 10.0.0.2\n")
    assert resolve(SshAddress(host="one")).user == "first"
    assert resolve(SshAddress(host="two")).hostname == "10.0.0.2"
    assert resolve(SshAddress(host="two")).user == "late"


def test_an_include_inside_a_block_counts_only_for_its_hosts(write):
    write("config", "Host lab-*\n Include lab.conf\n Port 2200\nHost *\n User other\n")
    write("lab.conf", "User lab\nHost lab-2\n HostName 10.0.0.22\n")
    inside, outside = resolve(SshAddress(host="lab-2")), resolve(SshAddress(host="office"))
    assert (inside.user, inside.hostname, inside.port) == ("lab", "10.0.0.22", 2200)
    assert (outside.user, outside.port) == ("other", 22)
    # a block of the included file must not let its host in from outside
    write("lab.conf", "Host office\n HostName 6.6.6.6\n")
    assert resolve(SshAddress(host="office")).hostname == "office"


def test_an_include_inside_a_match_block_counts_only_where_it_matches(write):
    write("config", "Match originalhost a,b\n Include ab.conf\nMatch all\n Port 99\n")
    write("ab.conf", "Port 77\n")
    assert [resolve(SshAddress(host=name)).port for name in "abc"] == [77, 77, 99]


def test_a_file_that_includes_itself_is_refused(write):
    write("config", "Include loop.conf\n")
    write("loop.conf", "Include loop.conf\n")
    with pytest.raises(UsageError, match="includes itself"):
        resolve(SshAddress(host="x"))


def test_more_than_sixteen_levels_of_includes_are_refused(write):
    write("config", "Include c0\n")
    for level in range(20):
        write(f"c{level}", f"Include c{level + 1}\n")
    with pytest.raises(UsageError, match="levels deep, allowed are 16"):
        resolve(SshAddress(host="x"))


@pytest.mark.parametrize("name", ["config", "more.conf"])
def test_a_configuration_that_others_may_write_is_refused(write, name):
    write("config", "Include more.conf\n")
    write("more.conf", "User x\n")
    write(name, "Include more.conf\n" if name == "config" else "User x\n", mode=0o620)
    with pytest.raises(UsageError, match=r"0620.*nobody else may write it.*chmod go-w"):
        resolve(SshAddress(host="x"))


def test_jump_hosts_are_travelled_in_order_with_their_own_settings(write):
    write(
        "config",
        "Host gate\n HostName 10.0.0.1\n User g\n ProxyJump outer\n"
        "Host outer\n Port 2201\n"
        "Host board\n ProxyJump gate,me@inner:2203\n",
    )
    target = resolve(SshAddress(host="board"))
    way = [(hop.alias, hop.hostname, hop.port) for hop in target.jumps]
    assert way == [
        ("outer", "outer", 2201),
        ("gate", "10.0.0.1", 22),
        ("inner", "inner", 2203),
    ]
    assert [hop.user for hop in target.jumps][1:] == ["g", "me"]
    assert all(
        hop.jumps == () or hop.alias == "gate" or hop.alias == "inner" for hop in target.jumps
    )


def test_jump_hosts_in_a_ring_are_refused(write):
    write("config", "Host a\n ProxyJump b\nHost b\n ProxyJump a\n")
    with pytest.raises(UsageError, match="a -> b -> a form a ring"):
        resolve(SshAddress(host="a"))


def test_of_proxy_jump_and_proxy_command_the_first_counts(write):
    write("config", "Host a\n ProxyCommand nc %h %p\n ProxyJump b\n")
    target = resolve(SshAddress(host="a"))
    assert target.proxy_command == "nc a 22"
    assert target.jumps == ()
    write("config", "Host a\n ProxyJump none\n ProxyCommand nc %h %p\n")
    assert resolve(SshAddress(host="a")).proxy_command is None


def test_programs_run_only_from_the_users_own_configuration(write, tmp_path):
    other = tmp_path / "project_ssh_config"
    other.write_text("Host a\n ProxyCommand touch /tmp/owned\n")
    other.chmod(0o600)
    with pytest.raises(UsageError, match="only from the user's own"):
        resolve(SshAddress(host="a", config=other))
    marker = tmp_path / "ran"
    other.write_text(f'Match exec "touch {marker}"\n User x\n')
    with pytest.raises(UsageError, match="Match exec"):
        resolve(SshAddress(host="a", config=other))
    assert not marker.exists()
    write("config", f'Match exec "touch {marker}"\n User fromexec\n')
    assert resolve(SshAddress(host="a")).user == "fromexec"
    assert marker.exists()
    write("config", 'Match exec "false"\n User no\nMatch !exec "test %n = a"\n User not-a\n')
    assert resolve(SshAddress(host="a")).user == getpass.getuser()
    assert resolve(SshAddress(host="b")).user == "not-a"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Match tagged x\n User y\n", "'Match tagged' is not supported"),
        ("Port many\n", "Port 'many'; allowed: 1 to 65535"),
        ("HostName -oProxyCommand=x\n", "HostName '-oProxyCommand=x' holds characters"),
        ("User $(reboot)\n", "user '\\$\\(reboot\\)' holds characters"),
        ("ConnectTimeout soon\n", "ConnectTimeout 'soon'"),
        ("ProxyJump a:b:c\n", "not \\[user@\\]host"),
        ("gibberish\n", "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_value(write, text, said):
    write("config", text)
    with pytest.raises(UsageError, match=said):
        resolve(SshAddress(host="board"))


@pytest.mark.parametrize("host", ["-oProxyCommand=x", "a b", "a;b", "", "a\nUser root"])
def test_a_host_that_is_no_name_is_refused(host):
    with pytest.raises(UsageError, match="holds characters"):
        resolve(SshAddress(host=host))


def test_a_named_configuration_must_exist(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        resolve(SshAddress(host="a", config=tmp_path / "nowhere"))
