"""From evidence to verdicts, on invented /sys and /proc trees of a board."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from device_agents.board.system import Tree, identify, snapshot
from device_agents.identity import fingerprint
from device_agents.profiles import PROFILES, Profile
from device_agents.replies import ChildEvidence, NetRound
from device_agents.verdicts import (
    Finding,
    board_findings,
    drift,
    judge,
    net_findings,
    reboots,
    trend,
)

BIG = "sys/devices/system/cpu/cpufreq/policy4"
COOLER = "sys/class/thermal/cooling_device0"
ZONE = "sys/class/thermal/thermal_zone0"
QUIET_BOARD = {
    f"{BIG}/affected_cpus": "4 5",
    f"{BIG}/scaling_governor": "userspace",
    f"{BIG}/scaling_cur_freq": "2208000",
    f"{BIG}/scaling_min_freq": "408000",
    f"{BIG}/scaling_max_freq": "2400000",
    f"{BIG}/cpuinfo_max_freq": "2400000",
    f"{BIG}/stats/total_trans": "17",
    f"{COOLER}/type": "thermal-cpufreq-1",
    f"{COOLER}/cur_state": "0",
    f"{COOLER}/stats/total_trans": "3",
    f"{ZONE}/type": "bigcore0-thermal",
    f"{ZONE}/temp": "51000",
    f"{ZONE}/trip_point_0_type": "passive",
    f"{ZONE}/trip_point_0_temp": "85000",
    f"{ZONE}/trip_point_1_type": "critical",
    f"{ZONE}/trip_point_1_temp": "115000",
    "proc/sys/kernel/random/boot_id": "b1",
    "proc/loadavg": "0.10 0.20 0.30 1/80 99",
    "proc/stat": "cpu 0 0 0 0\ncpu4 100 0 0 900 0 0 0 0\ncpu5 100 0 0 900 0 0 0 0\n",
    "proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 7000000 kB\n",
    "proc/cpuinfo": "processor : 0\nCPU implementer : 0x41\nCPU part : 0xd0b\n",
    "proc/device-tree/model": "Radxa ROCK 5B\0",
    "proc/device-tree/compatible": "radxa,rock-5b\0rockchip,rk3588\0",
    "proc/device-tree/serial-number": "c0ffee\0",
}
Board = Callable[..., Tree]


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """Write a tree: the quiet board with some files changed (None removes one)."""

    def build(changes: Mapping[str, str | None] | None = None) -> Tree:
        for name, text in {**QUIET_BOARD, **(changes or {})}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if text is not None:
                path.write_text(text)
        return Tree(str(tmp_path))

    return build


def child(
    board: Board, changes: Mapping[str, str | None] | None = None, **fields: Any
) -> ChildEvidence:
    """Evidence of a child during which ``changes`` happened to the quiet board."""
    before = snapshot(board())
    after = snapshot(board(changes))
    defaults: dict[str, Any] = {"cpu_s": 0.0, "clock_khz": {}, "references": ()}
    return ChildEvidence(before=before, after=after, **{**defaults, **fields})


def codes(evidence: ChildEvidence, cores: tuple[int, ...] = (4, 5)) -> list[str]:
    return [finding.code for finding in board_findings(evidence, cores)]


def test_a_quiet_board_under_control_gives_no_finding(board: Board) -> None:
    assert codes(child(board)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {f"{COOLER}/cur_state": "1"},
        {f"{COOLER}/stats/total_trans": "4"},
        {f"{BIG}/scaling_max_freq": "1800000"},
        {f"{ZONE}/temp": "85000"},
    ],
    ids=["cooling now", "cooled meanwhile", "limit fell", "trip point"],
)
def test_every_sign_of_heat_is_throttling(board: Board, changes: dict[str, str]) -> None:
    assert codes(child(board, changes)) == ["THROTTLED"]


def test_a_clock_change_is_seen_by_the_counter_of_the_kernel(board: Board) -> None:
    assert codes(child(board, {f"{BIG}/stats/total_trans": "19"})) == ["FREQ_CHANGED"]


def test_a_clock_change_is_seen_by_samples_where_the_kernel_does_not_count(board: Board) -> None:
    uncounted = {f"{BIG}/stats/total_trans": None}
    assert codes(child(board, uncounted, clock_khz={"policy4": [408000, 2208000]})) == [
        "FREQ_CHANGED"
    ]


def test_clocks_of_cores_that_were_not_timed_do_not_matter(board: Board) -> None:
    moved = child(board, {f"{BIG}/stats/total_trans": "99"})
    assert "FREQ_CHANGED" not in codes(moved, cores=(0,))


@pytest.mark.parametrize("governor", ["ondemand", "schedutil", "powersave"])
def test_a_governor_that_may_move_the_clock_is_uncontrolled(board: Board, governor: str) -> None:
    assert codes(child(board, {f"{BIG}/scaling_governor": governor})) == ["UNCONTROLLED_GOV"]


def test_any_governor_is_controlled_while_its_limits_are_equal(board: Board) -> None:
    fixed = {f"{BIG}/scaling_governor": "ondemand", f"{BIG}/scaling_min_freq": "2400000"}
    assert codes(child(board, fixed)) == []


def test_a_machine_without_cpufreq_is_uncontrolled(tmp_path: Path) -> None:
    nothing = snapshot(Tree(str(tmp_path)))
    evidence = ChildEvidence(before=nothing, after=nothing, cpu_s=0, clock_khz={}, references=())
    assert codes(evidence) == ["UNCONTROLLED_GOV"]


def ticks(busy4: int, idle4: int, steal4: int = 0) -> dict[str, str]:
    return {
        "proc/stat": f"cpu4 {100 + busy4} 0 0 {900 + idle4} 0 0 0 {steal4}\n"
        "cpu5 100 0 0 1900 0 0 0 0\n"
    }


def test_our_own_processor_time_is_no_interference(board: Board) -> None:
    assert codes(child(board, ticks(950, 50), cpu_s=9.4), cores=(4,)) == []


def test_processor_time_of_others_on_the_timed_core_is_interference(board: Board) -> None:
    assert codes(child(board, ticks(950, 50), cpu_s=8.0), cores=(4,)) == ["INTERFERENCE"]


def test_time_taken_by_the_hypervisor_is_interference(board: Board) -> None:
    assert codes(child(board, ticks(900, 50, steal4=50), cpu_s=9.0), cores=(4,)) == ["INTERFERENCE"]


def test_busy_neighbours_are_interference(board: Board) -> None:
    evidence = child(board, ticks(900, 100), cpu_s=9.0)
    assert codes(evidence, cores=(5,)) == ["INTERFERENCE"]


def test_a_thread_outside_the_chosen_cores_is_migrated(round_of: Callable[..., NetRound]) -> None:
    found = net_findings(round_of([100], masks_outside=("0-7",)))
    assert [(f.code, f.evidence) for f in found] == [
        ("MIGRATED", "threads were allowed on cores 0-7")
    ]


@pytest.mark.parametrize(("switches", "expected"), [(1, []), (2, ["INTERFERENCE"])])
def test_more_than_one_forced_switch_in_a_hundred_runs_is_interference(
    round_of: Callable[..., NetRound], switches: int, expected: list[str]
) -> None:
    found = net_findings(round_of([100] * 100, involuntary_switches=switches))
    assert [f.code for f in found] == expected


def test_wrong_outputs_are_told_with_their_error(round_of: Callable[..., NetRound]) -> None:
    found = net_findings(round_of([100], golden_right=False, golden_error=0.25))
    assert [f.code for f in found] == ["WRONG_ANSWER"]
    assert "0.25" in found[0].evidence


def test_a_steady_climb_over_blocks_in_all_rounds_is_a_trend(
    round_of: Callable[..., NetRound],
) -> None:
    climbing = round_of([1000, 1010, 1020, 1031, 1040, 1050])
    assert [f.code for f in trend([climbing] * 3)] == ["TREND"]


def test_climbs_that_cancel_or_drown_in_scatter_are_no_trend(
    round_of: Callable[..., NetRound],
) -> None:
    up = round_of([1000, 1010, 1020, 1031, 1040, 1050])
    down = round_of([1050, 1040, 1031, 1020, 1010, 1000])
    noisy = round_of([1000, 1300, 900, 1350, 950, 1400])
    assert trend([up, down, up]) == []
    assert trend([noisy] * 3) == []


def test_a_drift_of_one_percent_is_silent_and_more_is_told() -> None:
    assert drift([990.5, 1009.0], 1000.0) == []
    assert [f.size for f in drift([1000.0, 1040.0], 1000.0)] == [pytest.approx(0.04)]


def test_rounds_of_two_boots_are_told() -> None:
    assert [f.code for f in reboots(["a", "a", "b"])] == ["BOARD_REBOOTED"]
    assert reboots(["a", "a"]) == []


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
@pytest.mark.parametrize("code", ["THROTTLED", "WRONG_ANSWER", "BOARD_REBOOTED"])
def test_these_always_fail(code: str, profile: Profile) -> None:
    verdicts, _ = judge([Finding(code=code, evidence="")], profile)
    assert [v.severity for v in verdicts] == ["fail"]


@pytest.mark.parametrize("code", ["INTERFERENCE", "DRIFT", "UNCONTROLLED_GOV"])
def test_these_fail_in_strict_and_warn_in_quick(code: str) -> None:
    finding = Finding(code=code, evidence="", size=0.04)
    assert judge([finding], PROFILES["strict"])[0][0].severity == "fail"
    assert judge([finding], PROFILES["quick"])[0][0].severity == "warn"


def test_a_small_drift_only_warns_even_in_strict() -> None:
    finding = Finding(code="DRIFT", evidence="", size=0.02)
    assert judge([finding], PROFILES["strict"])[0][0].severity == "warn"


def test_quick_widens_by_the_drift_and_strict_never_widens() -> None:
    findings = [Finding(code="DRIFT", evidence="", size=size) for size in (0.02, 0.04, 0.06)]
    assert judge(findings, PROFILES["quick"])[1] == pytest.approx(0.04)
    assert judge(findings, PROFILES["strict"])[1] == 0


def test_findings_of_many_rounds_become_one_verdict_with_the_worst_evidence() -> None:
    findings = [Finding(code="DRIFT", evidence=str(size), size=size) for size in (0.02, 0.05)]
    verdicts, _ = judge(findings, PROFILES["quick"])
    assert [v.evidence for v in verdicts] == ["0.05 (and 1 more)"]


def test_the_identity_of_a_board_names_its_soc_and_no_serial_in_the_clear(board: Board) -> None:
    tree = board()
    found = fingerprint({**identify(tree), "now": snapshot(tree)})
    assert found.identity["soc"] == "Radxa ROCK 5B"
    assert found.identity["compatible"] == ["radxa,rock-5b", "rockchip,rk3588"]
    assert found.state["thermal_zones"][0]["temperature_mc"] == 51000
    assert "c0ffee" not in str(found.to_dict())


def test_heat_governor_and_load_do_not_change_the_identity_but_another_board_does(
    board: Board,
) -> None:
    def identity(changes: dict[str, str | None]) -> str:
        tree = board(changes)
        return fingerprint({**identify(tree), "now": snapshot(tree)}).fingerprint

    usual = identity({})
    warm = {f"{ZONE}/temp": "80000", f"{BIG}/scaling_governor": "ondemand", "proc/loadavg": "9 9 9"}
    assert identity(dict(warm)) == usual
    assert identity({"proc/device-tree/serial-number": "decade"}) != usual
