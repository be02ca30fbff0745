"""Clocks of an invented RK3588: set in the kernel's order, read back, put back whatever happens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from device_agents.board import clock_journal
from device_agents.board.clocks import operations, restore, set_clocks
from tests.fakes.board_tree import BoardTree, RuledTree

CPUFREQ = "sys/devices/system/cpu/cpufreq"
NPU = "sys/class/devfreq/fdab0000.npu"


@pytest.fixture
def board(tmp_path: Path) -> BoardTree:
    return BoardTree(tmp_path / "root")


@pytest.fixture
def workdir(tmp_path: Path) -> str:
    folder = tmp_path / "work"
    folder.mkdir()
    return str(folder)


def ruled(board: BoardTree, **faults: Any) -> RuledTree:
    return RuledTree(str(board.root), **faults)


def state(board: BoardTree) -> dict[str, str]:
    """Every node that clocks may change."""
    patterns = (f"{CPUFREQ}/*/scaling_[gm]*", "sys/class/devfreq/*/governor", "sys/**/disable")
    found = [path for pattern in patterns for path in board.root.glob(pattern)]
    return {str(path): path.read_text().strip() for path in found}


def test_a_clock_is_set_read_back_and_put_back(board: BoardTree, workdir: str) -> None:
    before, tree = state(board), ruled(board)
    said = set_clocks(tree, workdir, {"clocks": {"policy4": 2208000, "npu": 1_000_000_000}})
    assert said["got"] == said["asked"] == {"policy4": 2208000, "npu": 1_000_000_000}
    assert said["refused"] == {}
    assert board.read(f"{CPUFREQ}/policy4/scaling_governor") == "userspace"
    assert board.read(f"{NPU}/userspace/set_freq") == "1000000000"
    assert restore(tree, workdir)["failed"] == {}
    assert state(board) == before
    assert clock_journal.load(workdir) is None


def test_the_journal_is_on_the_disk_before_the_first_write(board: BoardTree, workdir: str) -> None:
    journals: list[Any] = []
    tree = ruled(board, before_write=lambda: journals.append(clock_journal.load(workdir)))
    set_clocks(tree, workdir, {"clocks": {"policy4": 2208000}})
    folder = f"/{CPUFREQ}/policy4"
    assert journals[0]["nodes"] == {
        f"{folder}/scaling_governor": "schedutil",
        f"{folder}/scaling_max_freq": "2352000",
        f"{folder}/scaling_min_freq": "408000",
    }


@pytest.mark.parametrize("writes", range(7))
def test_a_crash_after_any_write_is_mended_at_the_next_connection(
    board: BoardTree, workdir: str, writes: int
) -> None:
    before = state(board)
    request = {"clocks": {"policy4": 1200000, "policy6": 1200000}}
    with pytest.raises(KeyboardInterrupt):
        set_clocks(ruled(board, crash_after=writes), workdir, request)
    said = restore(ruled(board), workdir)
    assert state(board) == before
    assert len(said["restored"]) == 6
    assert not Path(clock_journal.path(workdir)).exists()


@pytest.mark.parametrize("first", [408000, 1200000, 2352000])
@pytest.mark.parametrize("second", [408000, 1200000, 2352000])
def test_limits_never_cross_on_the_way_between_any_two_clocks(
    board: BoardTree, workdir: str, first: int, second: int
) -> None:
    before, tree = state(board), ruled(board)
    for clock in (first, second):
        said = set_clocks(tree, workdir, {"clocks": {"policy4": clock}})
        assert said["refused"] == {}
        assert said["got"] == {"policy4": clock}
    assert restore(tree, workdir)["failed"] == {}
    assert state(board) == before


def test_without_a_userspace_governor_the_limits_hold_the_clock(
    board: BoardTree, workdir: str
) -> None:
    board.write(f"{CPUFREQ}/policy4/scaling_available_governors", "schedutil performance")
    tree = ruled(board)
    said = set_clocks(tree, workdir, {"clocks": {"policy4": 2208000}})
    assert said["got"] == {"policy4": 2208000}
    assert board.read(f"{CPUFREQ}/policy4/scaling_governor") == "performance"
    assert not any(name.endswith("setspeed") for name, _ in tree.writes)


def test_a_clock_that_an_owner_had_set_by_hand_is_put_back(board: BoardTree, workdir: str) -> None:
    board.write(f"{NPU}/governor", "userspace")
    board.write(f"{NPU}/userspace/set_freq", 600_000_000)
    tree = ruled(board)
    set_clocks(tree, workdir, {"clocks": {"npu": 1_000_000_000}})
    restore(tree, workdir)
    assert board.read(f"{NPU}/cur_freq") == "600000000"


def test_a_governor_that_may_not_be_set_is_refused_and_the_others_are_set(
    board: BoardTree, workdir: str
) -> None:
    tree = ruled(board, refused=("policy4/scaling_governor",))
    said = set_clocks(tree, workdir, {"clocks": {"policy4": 2208000, "policy6": 2208000}})
    assert set(said["refused"]) == {"policy4"}
    assert "Permission denied" in said["refused"]["policy4"]
    assert said["got"]["policy6"] == 2208000


def test_a_write_that_is_ignored_shows_in_what_is_read_back(board: BoardTree, workdir: str) -> None:
    tree = ruled(board, ignored=("policy4/scaling_governor",))
    said = set_clocks(tree, workdir, {"clocks": {"policy4": 2208000}})
    assert said["refused"]["policy4"].endswith("wrote userspace, reads back schedutil")


def test_a_driver_that_takes_the_limits_and_keeps_its_clock_is_found_out(
    board: BoardTree, workdir: str
) -> None:
    board.change_clock("policy4", 1200000)
    said = set_clocks(ruled(board), workdir, {"clocks": {"policy4": 2208000}})
    assert said["got"] == {"policy4": 1200000}
    assert said["refused"]["policy4"] == "asked for 2208000, reads back 1200000"


@pytest.mark.parametrize(
    ("clocks", "reason"),
    [
        ({"policy4": 2_300_000}, "is not one of 408000"),
        ({"policy9": 408_000}, "it has: policy0, policy4, policy6, dmc"),
        ({"../../../etc/passwd": 1}, "no clock of that name"),
        ({"npu": 5}, "5 Hz is not one of 300000000"),
    ],
)
def test_what_the_kernel_does_not_list_is_never_written(
    board: BoardTree, workdir: str, clocks: dict[str, int], reason: str
) -> None:
    tree = ruled(board)
    said = set_clocks(tree, workdir, {"clocks": clocks})
    assert reason in said["refused"][next(iter(clocks))]
    assert tree.writes == []
    assert clock_journal.load(workdir) is None


def test_a_board_without_a_memory_clock_says_so(tmp_path: Path, workdir: str) -> None:
    board = BoardTree(tmp_path / "without", dmc=False)
    said = set_clocks(ruled(board), workdir, {"clocks": {"dmc": 2_112_000_000}})
    assert "no clock of that name" in said["refused"]["dmc"]


def test_a_governor_for_all_policies_and_idle_states(board: BoardTree, workdir: str) -> None:
    before, tree = state(board), ruled(board)
    said = set_clocks(tree, workdir, {"clocks": {}, "governor": "performance", "idle": False})
    assert said["got"] == said["asked"] == {"governor": "performance", "idle": False}
    disabled = [name for name, value in tree.writes if name.endswith("disable") and value == "1"]
    assert len(disabled) == 8
    assert not any("state0" in name for name in disabled)
    restore(tree, workdir)
    assert state(board) == before


def test_a_governor_that_no_policy_knows_is_refused(board: BoardTree, workdir: str) -> None:
    said = set_clocks(ruled(board), workdir, {"governor": "turbo"})
    assert "is not one of ondemand" in said["refused"]["policy4"]


def test_while_heat_holds_a_clock_down_nothing_is_set(board: BoardTree, workdir: str) -> None:
    board.throttle()  # its limit reads 1800000: restoring that would keep it for ever
    tree = ruled(board)
    said = set_clocks(tree, workdir, {"clocks": {"policy4": 1200000}})
    assert "being throttled by cpufreq-cpu4 (state 2)" in said["refused"]["policy4"]
    assert tree.writes == []


def test_after_a_reboot_the_journal_is_dropped_without_a_write(
    board: BoardTree, workdir: str
) -> None:
    set_clocks(ruled(board), workdir, {"clocks": {"policy4": 1200000}})
    board.reboot()
    tree = ruled(board)
    assert clock_journal.describe(workdir, tree.text("/proc/sys/kernel/random/boot_id") or "") == {
        "present": True,
        "same_boot": False,
        "nodes": clock_journal.load(workdir)["nodes"],
    }
    said = restore(tree, workdir)
    assert "rebooted" in said["dropped"]
    assert tree.writes == []
    assert clock_journal.load(workdir) is None


def test_what_cannot_be_put_back_stays_in_the_journal(board: BoardTree, workdir: str) -> None:
    before = state(board)
    set_clocks(ruled(board), workdir, {"clocks": {"policy4": 1200000}})
    said = restore(ruled(board, refused=("scaling_max_freq",)), workdir)
    node = f"/{CPUFREQ}/policy4/scaling_max_freq"
    assert list(said["failed"]) == [node]
    assert clock_journal.load(workdir)["nodes"] == {node: "2352000"}
    assert restore(ruled(board), workdir)["restored"] == [node]
    assert state(board) == before


def test_a_forged_journal_cannot_write_elsewhere(board: BoardTree, workdir: str) -> None:
    tree = ruled(board)
    boot = tree.text("/proc/sys/kernel/random/boot_id")
    nodes = {
        "/proc/loadavg": "1",
        "/sys/class/devfreq/../../../proc/loadavg": "1",
        f"/{CPUFREQ}/policy4/scaling_governor": "userspace; reboot",
        f"/{CPUFREQ}/policy4/scaling_max_freq": "high",
    }
    clock_journal.save(workdir, {"boot_id": boot, "power": "direct", "nodes": nodes})
    said = restore(tree, workdir)
    assert set(said["failed"]) == set(nodes)
    assert tree.writes == []


def test_a_link_in_the_place_of_the_journal_is_not_followed(tmp_path: Path, workdir: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text(json.dumps({"v": 1, "boot_id": "x", "nodes": {}}))
    Path(clock_journal.path(workdir)).symlink_to(elsewhere)
    assert clock_journal.load(workdir) is None
    clock_journal.save(workdir, {"boot_id": "y", "power": "direct", "nodes": {}})
    assert "y" not in elsewhere.read_text()


def test_without_a_place_for_the_journal_nothing_is_written(
    board: BoardTree, tmp_path: Path
) -> None:
    tree = ruled(board)
    with pytest.raises(OSError, match="No such file"):
        set_clocks(tree, str(tmp_path / "missing"), {"clocks": {"policy4": 1200000}})
    assert tree.writes == []


@pytest.mark.parametrize(
    "request_",
    [
        {"clocks": {"policy4": "fast"}},
        {"clocks": {"policy4": True}},
        {"clocks": [1]},
        {"power": "root"},
        {"idle": 0},
    ],
)
def test_a_request_that_makes_no_sense_is_refused_whole(
    board: BoardTree, workdir: str, request_: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="allowed"):
        set_clocks(ruled(board), workdir, request_)


def test_the_agent_gets_three_operations(board: BoardTree, workdir: str) -> None:
    found: dict[str, Callable[[Any], Any]] = operations(
        SimpleNamespace(tree=ruled(board), workdir=workdir)
    )
    assert set(found) == {"clocks_set", "clocks_restore", "clocks_journal"}
    assert found["clocks_restore"]({}) == {"restored": [], "failed": {}}
