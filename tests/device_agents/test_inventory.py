"""``devices.toml``: read strictly, the project before the user, no secrets, comments kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_agents.inventory import add_device, change_device, read_inventory
from latency_tables.errors import ConfigError, UsageError

BOARD = """
# the one on the shelf
[[device]]
name = "rk3588-a"
ssh = "lab-rk3588"          # through the jump host
tags = ["rk3588"]
pin = "big"
threads = 2
clocks = { policy4 = 2208000 }
power = "sudo"
workdir = "/userdata/hilnas"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "devices.toml"
    path.write_text(BOARD)
    return path


def test_an_entry_becomes_a_device_with_its_address(file: Path, tmp_path: Path) -> None:
    device = read_inventory(file, work_dir=tmp_path).find("rk3588-a")
    assert device.ssh is not None
    assert device.ssh.host == "lab-rk3588"
    assert (device.transport, device.pin, device.threads) == ("ssh", "big", 2)
    assert device.clocks == {"policy4": 2208000}
    assert device.ssh.known_hosts == (tmp_path / "devices.known_hosts",)


def test_this_machine_is_always_there(tmp_path: Path) -> None:
    found = read_inventory(tmp_path / "none.toml", work_dir=tmp_path / "agent")
    assert found.find("local").workdir == tmp_path / "agent"


def test_the_file_of_the_project_comes_first(file: Path, tmp_path: Path) -> None:
    user = tmp_path / "user.toml"
    user.write_text('[[device]]\nname = "rk3588-a"\nhost = "10.0.0.9"\n\n'
                    '[[device]]\nname = "pi"\nhost = "10.0.0.8"\n')  # fmt: skip
    found = read_inventory(file, user, work_dir=tmp_path)
    ssh = found.find("rk3588-a").ssh
    assert ssh is not None
    assert ssh.host == "lab-rk3588"
    assert (found.files["rk3588-a"], found.files["pi"]) == (file, user)


def test_devices_are_found_by_tag(file: Path, tmp_path: Path) -> None:
    found = read_inventory(file, work_dir=tmp_path)
    assert [device.name for device in found.tagged("rk3588")] == ["rk3588-a"]
    assert found.tagged("none") == ()


def test_an_unknown_name_lists_those_that_exist(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'rk' does not exist; there are: local, rk3588-a"):
        read_inventory(file, work_dir=tmp_path).find("rk")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('password = "x"', "password has no place in an inventory"),
        ('Token = "x"', "Token has no place"),
        ("thread = 2", "did you mean 'threads'"),
        ("port = 0", "greater than or equal to 1"),
        ('host = "10.0.0.1"', r"either ssh \(an alias\) or host"),
        ("cores = [0, 0]", "must differ"),
        ("deadline_s = 0.1", "greater than or equal to 2"),
        ('optimization = "most"', "allowed: all, extended"),
    ],
)
def test_a_wrong_entry_names_the_file_and_the_fault(
    file: Path, tmp_path: Path, line: str, says: str
) -> None:
    file.write_text(BOARD.replace("pin =", "tags =").replace('tags = "big"', line))
    with pytest.raises(ConfigError, match=rf"devices\.toml: .*{says}"):
        read_inventory(file, work_dir=tmp_path)


@pytest.mark.parametrize("host", ["-oProxyCommand=id", "two words", ""])
def test_a_host_that_reads_like_an_option_is_refused(file: Path, tmp_path: Path, host: str) -> None:
    file.write_text(f'[[device]]\nname = "a"\nhost = "{host}"\n')
    with pytest.raises(ConfigError, match="host"):
        read_inventory(file, work_dir=tmp_path)


def test_a_relative_work_folder_is_refused(file: Path, tmp_path: Path) -> None:
    file.write_text(BOARD.replace("/userdata/hilnas", "userdata"))
    with pytest.raises(ConfigError, match="absolute"):
        read_inventory(file, work_dir=tmp_path)


def test_two_entries_of_one_name_are_refused(file: Path, tmp_path: Path) -> None:
    file.write_text(BOARD + BOARD)
    with pytest.raises(ConfigError, match="must differ"):
        read_inventory(file, work_dir=tmp_path)


def test_nobody_else_may_be_called_local(file: Path, tmp_path: Path) -> None:
    file.write_text(BOARD.replace("rk3588-a", "local"))
    with pytest.raises(ConfigError, match="taken by this machine"):
        read_inventory(file, work_dir=tmp_path)


def test_adding_keeps_what_is_there(file: Path, tmp_path: Path) -> None:
    add_device(file, {"name": "pi", "host": "10.0.0.8", "tags": ["arm"]})
    assert file.read_text().startswith(BOARD.rstrip("\n"))
    found = read_inventory(file, work_dir=tmp_path)
    assert sorted(found.devices) == ["local", "pi", "rk3588-a"]


def test_adding_makes_the_file(tmp_path: Path) -> None:
    file = tmp_path / "new" / "devices.toml"
    add_device(file, {"name": "pi", "host": "10.0.0.8"})
    assert read_inventory(file, work_dir=tmp_path).find("pi").transport == "ssh"


def test_a_name_cannot_be_added_twice(file: Path) -> None:
    with pytest.raises(UsageError, match="already; try"):
        add_device(file, {"name": "rk3588-a", "host": "10.0.0.8"})


def test_a_wrong_addition_leaves_the_file_alone(file: Path) -> None:
    with pytest.raises(ConfigError):
        add_device(file, {"name": "pi"})
    assert file.read_text() == BOARD


def test_changing_keeps_comments(file: Path, tmp_path: Path) -> None:
    change_device(file, "rk3588-a", python="/userdata/python/bin/python3")
    assert "# through the jump host" in file.read_text()
    device = read_inventory(file, work_dir=tmp_path).find("rk3588-a")
    assert device.python == "/userdata/python/bin/python3"
