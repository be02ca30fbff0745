"""What an agent tells about a board, read from an invented RK3588 and from this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from device_agents.board.hardware import find_devfreq
from device_agents.board.system import Tree, identify, snapshot
from device_agents.identity import fingerprint
from tests.fakes.board_tree import CPU, BoardTree


@pytest.fixture
def board(tmp_path: Path) -> BoardTree:
    return BoardTree(tmp_path / "root")


def test_an_rk3588_has_a_big_and_a_little_cluster_although_its_big_ones_are_binned(
    board: BoardTree,
) -> None:
    clusters = identify(board.tree)["clusters"]
    assert [(c["name"], c["cores"], c["part"], c["max_khz"]) for c in clusters] == [
        ("big", [4, 5, 6, 7], "0xd0b", 2400000),
        ("little", [0, 1, 2, 3], "0xd05", 1800000),
    ]


def test_one_kind_of_core_is_one_cluster_called_big(board: BoardTree) -> None:
    text = board.read("proc/cpuinfo").replace("0xd05", "0xd0b")
    board.write("proc/cpuinfo", text)
    board.write(f"{CPU}/cpufreq/policy0/cpuinfo_max_freq", 2400000)
    for core in range(4):
        board.write(f"{CPU}/cpu{core}/cpu_capacity", 1024)
    assert [(c["name"], len(c["cores"])) for c in identify(board.tree)["clusters"]] == [("big", 8)]


def test_equal_cores_with_a_far_higher_clock_are_a_cluster_of_their_own(board: BoardTree) -> None:
    board.write(f"{CPU}/cpufreq/policy6/cpuinfo_max_freq", 2840000)
    clusters = identify(board.tree)["clusters"]
    assert [(c["name"], c["cores"]) for c in clusters] == [
        ("big", [6, 7]),
        ("mid", [4, 5]),
        ("little", [0, 1, 2, 3]),
    ]


def test_parts_come_from_the_register_where_cpuinfo_has_none(board: BoardTree) -> None:
    board.write("proc/cpuinfo", "\n".join(f"processor : {core}\n" for core in range(8)))
    for core in range(8):
        part = 0xD05 if core < 4 else 0xD0B
        midr = 0x41 << 24 | part << 4
        board.write(f"{CPU}/cpu{core}/regs/identification/midr_el1", f"{midr:#018x}")
    assert [c["part"] for c in identify(board.tree)["clusters"]] == ["0xd0b", "0xd05"]


def test_without_part_numbers_cores_are_told_apart_by_capacity(tmp_path: Path) -> None:
    board = BoardTree(tmp_path / "hybrid")
    board.write("proc/cpuinfo", "\n".join(f"processor : {core}\n" for core in range(8)))
    for folder in (board.root / CPU / "cpufreq").iterdir():
        (folder / "cpuinfo_max_freq").unlink()
    board.write(f"{CPU}/cpu7/cpu_capacity", 1009)  # favoured cores differ a little
    clusters = identify(board.tree)["clusters"]
    assert [c["cores"] for c in clusters] == [[4, 5, 6, 7], [0, 1, 2, 3]]


def test_devfreq_devices_are_found_by_their_short_names(board: BoardTree) -> None:
    assert find_devfreq(board.tree, "npu") == "fdab0000.npu"
    assert find_devfreq(board.tree, "fb000000.gpu") == "fb000000.gpu"
    assert find_devfreq(board.tree, "dmc") == "dmc"
    assert find_devfreq(board.tree, "vpu") is None


def test_a_numbered_devfreq_device_is_found_by_what_it_belongs_to(board: BoardTree) -> None:
    (board.root / "sys/class/devfreq/fdab0000.npu").rename(
        board.root / "sys/class/devfreq/devfreq0"
    )
    assert find_devfreq(board.tree, "npu") == "devfreq0"


def test_governors_clocks_and_idle_states_are_listed(board: BoardTree) -> None:
    found = identify(board.tree)
    assert found["choices"][1]["available_khz"][-1] == 2352000
    assert "schedutil" in found["choices"][1]["governors"]
    npu = next(d for d in found["devfreq"] if d["name"] == "fdab0000.npu")
    assert (npu["min_hz"], npu["max_hz"]) == (300_000_000, 1_000_000_000)
    assert [(s["name"], s["cores"]) for s in found["cpuidle"]] == [("WFI", 8), ("cpu-sleep", 8)]
    assert found["os"] == "Fake Linux 1"
    assert found["disk_free_bytes"] > 0


def test_every_copy_of_the_npu_library_is_told_with_its_hash(board: BoardTree) -> None:
    text = "librknnrt version: 2.3.0 (c949ad889d@2024-11-07)"
    board.write("usr/lib/librknnrt.so", f"\x00{text}\x00")
    board.write("usr/lib64/librknnrt.so", "another")
    (board.root / "usr/local/lib").mkdir(parents=True)
    (board.root / "usr/local/lib/librknnrt.so").symlink_to(board.root / "usr/lib/librknnrt.so")
    npu = identify(board.tree)["npu"]
    assert (npu["stack"], npu["driver"]) == ("rknpu", "RKNPU driver: v0.9.8")
    assert [(c["path"], c["version"]) for c in npu["libraries"]] == [
        ("/usr/lib/librknnrt.so", "2.3.0 (c949ad889d@2024-11-07)"),
        ("/usr/lib64/librknnrt.so", None),
    ]
    assert len({c["sha256"] for c in npu["libraries"]}) == 2


def test_the_mainline_npu_driver_is_another_stack(tmp_path: Path) -> None:
    (tmp_path / "dev/accel/accel0").mkdir(parents=True)
    npu = identify(Tree(str(tmp_path)))["npu"]
    assert (npu["stack"], npu["accelerators"]) == ("rocket", ["accel0"])


def test_a_snapshot_tells_pressure_devfreq_and_time_in_state(board: BoardTree) -> None:
    board.press(12.5)
    board.throttle()
    found = snapshot(board.tree)
    assert found["psi"] == {"cpu": 12.5, "io": 12.5, "memory": 12.5}
    assert found["cooling_devices"][1]["time_in_state_ms"] == {"0": 100000, "1": 700}
    assert found["policies"][0]["time_in_state_ms"]["408000"] == 1000  # the kernel counts in 10 ms
    assert {d["name"] for d in found["devfreq"]} == {"dmc", "fb000000.gpu", "fdab0000.npu"}
    assert found["devfreq"][0]["transitions"] == 12


def test_an_empty_tree_has_nothing_and_raises_nothing(tmp_path: Path) -> None:
    found = {**identify(Tree(str(tmp_path))), **snapshot(Tree(str(tmp_path)))}
    assert found["clusters"] == found["devfreq"] == found["cpuidle"] == found["power_sensors"] == []
    assert found["npu"] is None
    assert found["psi"] is None
    assert found["os"] == ""


def test_garbage_in_the_kernels_files_is_no_number(board: BoardTree) -> None:
    board.write(f"{CPU}/cpufreq/policy4/cpuinfo_max_freq", "fast")
    board.write("proc/pressure/cpu", "some avg10=high")
    board.write("sys/class/thermal/cooling_device0/stats/time_in_state_ms", "a b c")
    assert identify(board.tree)["clusters"]
    found = snapshot(board.tree)
    assert found["psi"]["cpu"] is None
    assert found["cooling_devices"][0]["time_in_state_ms"] is None


def test_the_identity_does_not_move_with_heat_clocks_or_load(board: BoardTree) -> None:
    def name() -> str:
        return fingerprint({**identify(board.tree), "now": snapshot(board.tree)}).fingerprint

    before = name()
    board.throttle()
    board.press(80.0)
    board.load(7.0)
    board.reboot()
    assert name() == before


def test_this_machine_is_described_in_plain_json() -> None:
    tree = Tree("/")
    assert json.loads(json.dumps({**identify(tree), "now": snapshot(tree)}))["cpu_count"] >= 1
