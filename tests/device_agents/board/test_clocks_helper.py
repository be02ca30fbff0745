"""The script that root installs: it writes what is on its list and nothing else."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from device_agents.board import clock_journal
from device_agents.board.clocks import HELPER as BOARD_HELPER
from device_agents.board.clocks import operations
from device_agents.clocks import HELPER, helper_script, sudoers_line
from latency_tables.errors import UsageError
from tests.fakes.board_tree import BoardTree

POLICY = "/sys/devices/system/cpu/cpufreq/policy4"
NPU = "/sys/class/devfreq/fdab0000.npu"
IDLE = "/sys/devices/system/cpu/cpu4/cpuidle/state1/disable"


@pytest.fixture
def board(tmp_path: Path) -> BoardTree:
    return BoardTree(tmp_path / "root")


@pytest.fixture
def helper(board: BoardTree, tmp_path: Path) -> Path:
    """A copy whose fixed root is the invented tree: the shipped one takes it from nowhere."""
    text = helper_script().decode()
    assert text.count("\nroot=\n") == 1
    copy = tmp_path / "hilnas-clocks"
    copy.write_text(text.replace("\nroot=\n", f"\nroot={shlex.quote(str(board.root))}\n"))
    copy.chmod(0o755)
    return copy


def run(helper: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(helper), *arguments], capture_output=True, text=True, timeout=20)


@pytest.mark.parametrize(
    ("node", "value"),
    [
        (f"{POLICY}/scaling_governor", "performance"),
        (f"{POLICY}/scaling_max_freq", "2208000"),
        (f"{POLICY}/scaling_min_freq", "408000"),
        (f"{POLICY}/scaling_setspeed", "1200000"),
        (f"{NPU}/governor", "userspace"),
        (f"{NPU}/userspace/set_freq", "1000000000"),
        (f"{NPU}/min_freq", "300000000"),
        (IDLE, "1"),
    ],
)
def test_a_node_of_the_list_is_written(
    board: BoardTree, helper: Path, node: str, value: str
) -> None:
    done = run(helper, node, value)
    assert (done.returncode, done.stderr) == (0, "")
    assert board.read(node[1:]) == value


@pytest.mark.parametrize(
    ("node", "value"),
    [
        ("/proc/loadavg", "1"),
        ("/sys/class/thermal/thermal_zone0/temp", "1"),
        (f"{POLICY}/scaling_governor/../affected_cpus", "1"),
        (f"{POLICY}/../../cpu0/cpu_capacity", "1"),
        (f"{POLICY}/cpuinfo_max_freq", "408000"),
        (f"{POLICY}x/scaling_max_freq", "408000"),
        ("/sys/devices/system/cpu/cpufreq/policy4/stats/scaling_max_freq", "408000"),
        ("/sys/devices/system/cpu/cpufreq/policy9/scaling_governor", "performance"),
        (f"{NPU}/trans_stat", "0"),
        (f"{NPU}/userspace/governor", "userspace"),
        ("/sys/devices/system/cpu/cpu4/cpuidle/state1/latency", "1"),
        ("/sys/devices/system/cpu/cpu4/online", "0"),
        (f"{POLICY}/scaling_governor", "turbo"),
        (f"{POLICY}/scaling_governor", "*"),
        (f"{POLICY}/scaling_governor", "userspace performance"),
        (f"{POLICY}/scaling_governor", ""),
        (f"{POLICY}/scaling_max_freq", "9999999"),
        (f"{POLICY}/scaling_max_freq", "1"),
        (f"{POLICY}/scaling_max_freq", "-408000"),
        (f"{POLICY}/scaling_max_freq", "408000 "),
        (f"{POLICY}/scaling_max_freq", "4080000000000000000"),
        (f"{NPU}/userspace/set_freq", "2000000000"),
        (IDLE, "2"),
        (f"{IDLE}\n/etc/passwd", "1"),
        ("", ""),
    ],
)
def test_nothing_else_is_written(board: BoardTree, helper: Path, node: str, value: str) -> None:
    before = {p: p.read_bytes() for p in board.root.rglob("*") if p.is_file()}
    done = run(helper, node, value)
    assert done.returncode == 1
    assert done.stderr.startswith("hilnas-clocks: ")
    assert {p: p.read_bytes() for p in board.root.rglob("*") if p.is_file()} == before


def test_a_node_that_the_kernel_does_not_have_is_not_made(board: BoardTree, helper: Path) -> None:
    node = board.root / POLICY[1:] / "scaling_setspeed"
    node.unlink()
    assert run(helper, f"{POLICY}/scaling_setspeed", "1200000").returncode == 1
    assert not node.exists()


def test_the_number_of_arguments_is_fixed(helper: Path) -> None:
    assert run(helper).returncode == 1
    assert run(helper, f"{POLICY}/scaling_governor", "performance", "more").returncode == 1


def test_no_variable_of_the_caller_moves_its_root(board: BoardTree, tmp_path: Path) -> None:
    shipped = tmp_path / "shipped"
    shipped.write_bytes(helper_script())
    shipped.chmod(0o755)
    node = "/sys/devices/system/cpu/cpufreq/policy4444/scaling_governor"  # on no machine
    board.write(node[1:], "schedutil")
    environment = {**os.environ, "root": str(board.root), "ENV": str(tmp_path), "IFS": "/"}
    done = subprocess.run([str(shipped), node, "performance"], env=environment, timeout=20)
    assert done.returncode == 1
    assert board.read(node[1:]) == "schedutil"


def test_clocks_are_set_and_put_back_by_sudo_without_a_password(
    board: BoardTree, helper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    sudo = tools / "sudo"
    sudo.write_text(
        f'#!/bin/sh\n[ "$1 $2" = "-n {HELPER}" ] || exit 9\nshift 2\nexec {helper} "$@"\n'
    )
    sudo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    before = board.read(f"{POLICY[1:]}/scaling_governor")
    agent = SimpleNamespace(tree=board.tree, workdir=str(tmp_path))
    said = operations(agent)["clocks_set"]({"clocks": {"policy4": 2208000}, "power": "sudo"})
    assert (said["got"], said["refused"]) == ({"policy4": 2208000}, {})
    journal = clock_journal.load(str(tmp_path))
    assert journal is not None
    assert journal["power"] == "sudo"
    assert operations(agent)["clocks_restore"]({})["failed"] == {}
    assert board.read(f"{POLICY[1:]}/scaling_governor") == before


def test_what_sudo_says_is_the_reason_of_a_refusal(
    board: BoardTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sudo = tmp_path / "sudo"
    sudo.write_text("#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    sudo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    agent = SimpleNamespace(tree=board.tree, workdir=str(tmp_path))
    said = operations(agent)["clocks_set"]({"clocks": {"policy4": 2208000}, "power": "sudo"})
    assert said["refused"] == {
        "policy4": "the helper refuses: sudo: a password is required",
    }


def test_host_and_board_name_the_same_helper() -> None:
    assert HELPER == BOARD_HELPER


def test_a_sudoers_line_is_made_for_names_of_users_only() -> None:
    assert sudoers_line("pi_4").split() == ["pi_4", "ALL=(root)", "NOPASSWD:", HELPER]
    for user in ("ALL", "a b", "x ALL=(ALL) ALL\n", "%wheel", ""):
        with pytest.raises(UsageError):
            sudoers_line(user)
