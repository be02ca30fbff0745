"""From evidence to verdicts, on invented /sys and /proc trees of a board."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_agents.board.system import Tree, identify, snapshot
from device_agents.board.witness import Witness
from device_agents.identity import fingerprint
from device_agents.measuring.profiles import PROFILES, SEVERITY, Profile
from device_agents.measuring.replies import ChildEvidence, NetRound
from device_agents.measuring.verdicts import (
    Finding,
    bimodal,
    board_findings,
    clocks_refused,
    drift,
    judge,
    net_findings,
    npu_fluctuation,
    reboots,
    to_quarantine,
    trend,
)
from device_agents.measuring.verdicts.load import other_load
from device_agents.measuring.verdicts.numbers import two_groups
from tests.device_agents.rounds import make_round

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


STATES = f"{BIG}/stats/time_in_state"


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ("408000 100\n2208000 1200\n", []),
        ("408000 101\n2208000 1299\n", []),
        ("408000 102\n2208000 1299\n", ["FREQ_CHANGED"]),
    ],
    ids=["none", "0.5 %", "1 %"],
)
def test_time_at_another_clock_than_the_usual_one_is_a_clock_change(
    board: Board, after: str, expected: list[str]
) -> None:
    before = snapshot(board({STATES: "408000 100\n2208000 1000\n"}))
    evidence = ChildEvidence(
        before=before, after=snapshot(board({STATES: after})), cpu_s=0, clock_khz={}, references=()
    )
    assert codes(evidence) == expected


def test_time_at_another_clock_than_the_one_that_was_set_is_a_clock_change(board: Board) -> None:
    before = snapshot(board({STATES: "2208000 1000\n2400000 0\n"}))
    after = snapshot(board({STATES: "2208000 1100\n2400000 0\n"}))
    evidence = ChildEvidence(before=before, after=after, cpu_s=0, clock_khz={}, references=())
    wished = board_findings(evidence, (4, 5), clocks={"policy4": 2_400_000})
    assert [f.code for f in wished] == ["FREQ_CHANGED"]
    assert "100.0%" in wished[0].evidence
    assert board_findings(evidence, (4, 5), clocks={"policy4": 2_208_000}) == []


def test_time_in_a_cooling_state_is_throttling_also_when_it_ended(board: Board) -> None:
    states = f"{COOLER}/stats/time_in_state_ms"
    before = snapshot(board({states: "state0\t5000\nstate1\t20\n"}))
    after = snapshot(board({states: "state0\t6000\nstate1\t70\n"}))
    evidence = ChildEvidence(before=before, after=after, cpu_s=0, clock_khz={}, references=())
    found = board_findings(evidence, (4, 5))
    assert [f.code for f in found] == ["THROTTLED"]
    assert "acted for 50 ms" in found[0].evidence


def test_a_fan_that_turns_is_no_throttling(board: Board) -> None:
    assert codes(child(board, {f"{COOLER}/type": "pwm-fan", f"{COOLER}/cur_state": "3"})) == []


@pytest.mark.parametrize(("cycles", "expected"), [(2.19e9, []), (2.15e9, ["CLOCK_MISMATCH"])])
def test_a_clock_that_counted_cycles_contradict_by_two_percent_is_told(
    board: Board, cycles: float, expected: list[str]
) -> None:
    assert codes(child(board, cycles_per_s=cycles)) == expected


DMC, NPU = "sys/class/devfreq/dmc", "sys/class/devfreq/fdab0000.npu"
FIXED = {
    f"{DMC}/governor": "userspace", f"{DMC}/cur_freq": "2112000000",
    f"{NPU}/governor": "userspace", f"{NPU}/cur_freq": "1000000000",
}  # fmt: skip


def devfreq_codes(board: Board, changes: Mapping[str, str | None], *, npu: bool) -> list[str]:
    before = snapshot(board({**FIXED}))
    after = snapshot(board({**FIXED, **changes}))
    evidence = ChildEvidence(before=before, after=after, cpu_s=0, clock_khz={}, references=())
    return [f.code for f in board_findings(evidence, (4, 5), npu=npu)]


def test_memory_and_npu_under_control_give_no_finding(board: Board) -> None:
    assert devfreq_codes(board, {}, npu=True) == []


def test_a_memory_governor_that_may_move_is_uncontrolled(board: Board) -> None:
    free = {f"{DMC}/governor": "dmc_ondemand"}
    assert devfreq_codes(board, free, npu=False) == ["UNCONTROLLED_DMC"]


def test_the_npu_matters_only_where_it_is_timed(board: Board) -> None:
    free = {f"{NPU}/governor": "rknpu_ondemand"}
    assert devfreq_codes(board, free, npu=True) == ["UNCONTROLLED_NPU"]
    assert devfreq_codes(board, free, npu=False) == []


def test_a_memory_clock_that_moved_is_a_clock_change(board: Board) -> None:
    moved = {f"{DMC}/cur_freq": "528000000"}
    assert devfreq_codes(board, moved, npu=False) == ["FREQ_CHANGED"]


def test_a_board_that_hides_the_clock_of_its_memory_is_uncontrolled_and_a_computer_is_not(
    board: Board,
) -> None:
    hidden = {f"{DMC}/governor": None, f"{DMC}/cur_freq": None}
    after = snapshot(board({**FIXED, **hidden}))
    after["devfreq"] = [d for d in after["devfreq"] if d["name"] != "dmc"]
    evidence = ChildEvidence(before=after, after=after, cpu_s=0, clock_khz={}, references=())
    assert codes(evidence) == ["UNCONTROLLED_DMC"]
    after["devfreq"] = []
    assert codes(evidence) == []


def test_a_clock_that_was_not_taken_is_refused() -> None:
    evidence = {
        "asked": {"policy4": 2_208_000, "npu": 1_000_000_000, "dmc": 2_112_000_000},
        "got": {"policy4": 2_208_000, "npu": 900_000_000},
        "refused": {"dmc": "no such device"},
    }
    assert [f.evidence for f in clocks_refused(evidence)] == [
        "npu: asked for 1000000000, got 900000000",
        "dmc: asked for 2112000000, refused: no such device",
    ]
    assert clocks_refused({}) == []


def test_a_clock_that_the_hardware_rounds_is_taken() -> None:
    assert clocks_refused({"asked": {"npu": 1_000_000_000}, "got": {"npu": 998_000_000}}) == []


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


def witnessed(board: Board, **witness: Any) -> list[str]:
    evidence = child(board, witness={"wall_s": 10.0, **witness})
    return [f.evidence for f in board_findings(evidence, (4, 5))]


@pytest.mark.parametrize(
    ("cpu_s", "expected"), [(0.4, []), (0.7, ["process kworker/u8:1 used 7% of a core"])]
)
def test_another_process_that_uses_five_percent_of_a_core_is_interference(
    board: Board, cpu_s: float, expected: list[str]
) -> None:
    processes = [{"name": "kworker/u8:1", "cpu_s": cpu_s}]
    assert witnessed(board, processes=processes) == expected


@pytest.mark.parametrize(
    ("stalled_s", "expected"),
    [
        ({"cpu": 0.4, "io": 0.4, "memory": 0.05}, []),
        ({"cpu": 0.6}, ["tasks waited for cpu during 6% of the time"]),
        ({"memory": 0.2}, ["tasks waited for memory during 2% of the time"]),
    ],
)
def test_tasks_that_had_to_wait_are_interference(
    board: Board, stalled_s: dict[str, float], expected: list[str]
) -> None:
    assert witnessed(board, stalled_s=stalled_s) == expected


def test_the_witness_sees_what_a_process_used_and_how_long_tasks_waited(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def process(ticks: int) -> str:
        return f"7 (odd) name) S 1 1 1 0 -1 0 0 0 0 0 {ticks} 3 0 0 20 0 1 0 555 0"

    write("proc/7/stat", process(100))
    write("proc/pressure/io", "some avg10=0.00 avg60=0.00 avg300=0.00 total=1000000")
    witness = Witness(Tree(str(tmp_path)))
    write("proc/7/stat", process(150))
    write("proc/pressure/io", "some avg10=0.00 avg60=0.00 avg300=0.00 total=1250000")
    told = witness.tell()
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    assert told["processes"] == [{"name": "odd) name", "cpu_s": 50 / ticks_per_s}]
    assert told["stalled_s"] == {"io": 0.25}
    assert 0 < told["wall_s"] < 60


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


def noise(kind: str, rng: np.random.Generator, n: int) -> np.ndarray:
    """Latencies of one state, with the tails that quiet machines show."""
    return {
        "normal": lambda: rng.normal(1e6, 1e4, n),
        "skewed": lambda: 1e6 * rng.lognormal(0, 0.03, n),
        "exponential tail": lambda: 1e6 + rng.exponential(3e4, n),
        "outliers": lambda: rng.normal(1e6, 5e3, n) * (1 + 0.5 * (rng.random(n) < 0.03)),
        "counted in steps": lambda: np.round(rng.normal(1e6, 1e4, n), -4),
    }[kind]()


KINDS = ("normal", "skewed", "exponential tail", "outliers", "counted in steps")


def rounds_like(make: Callable[[], np.ndarray], n_rounds: int = 5) -> list[NetRound]:
    """Rounds of ten blocks of twenty runs."""
    return [make_round(np.round(make()).astype(int).reshape(10, 20)) for _ in range(n_rounds)]


@pytest.mark.parametrize("kind", KINDS)
def test_clean_noise_is_hardly_ever_called_two_groups_or_a_trend(kind: str) -> None:
    rng = np.random.default_rng(7)
    alarms = {"BIMODAL": 0, "TREND": 0}
    for _ in range(200):
        series = rounds_like(lambda: noise(kind, rng, 200))
        for finding in [*bimodal(series), *trend(series)]:
            alarms[finding.code] += 1
    assert alarms["BIMODAL"] <= 2  # 1 %
    assert alarms["TREND"] <= 4


def test_two_states_that_runs_jump_between_are_two_groups() -> None:
    rng = np.random.default_rng(8)
    for _ in range(20):
        series = rounds_like(
            lambda: noise("normal", rng, 200) * np.where(rng.random(200) < 0.4, 1.15, 1.0)
        )
        assert [f.code for f in bimodal(series)] == ["BIMODAL"]
        assert bimodal(series)[0].size == pytest.approx(0.15, abs=0.03)


def test_values_all_the_way_between_make_one_wide_group() -> None:
    ends = np.array([100.0] * 40 + [200.0] * 40)
    assert two_groups(ends) == pytest.approx(0.67, abs=0.01)
    assert two_groups(np.concatenate([ends, np.linspace(130, 170, 20)])) is None


def test_rounds_that_differ_from_each_other_are_not_two_groups() -> None:
    rng = np.random.default_rng(9)
    assert (
        bimodal(
            [
                *rounds_like(lambda: noise("normal", rng, 200)),
                *rounds_like(lambda: 1.2 * noise("normal", rng, 200)),
            ]
        )
        == []
    )


@pytest.mark.parametrize("slope", [0.01, 0.03])
def test_a_clock_that_sinks_within_every_round_is_a_trend(slope: float) -> None:
    rng = np.random.default_rng(10)
    climb = np.repeat(np.linspace(1, 1 + slope, 10), 20)
    found = trend(rounds_like(lambda: climb * rng.normal(1e6, 2e3, 200)))
    assert [f.code for f in found] == ["TREND"]
    assert found[0].size == pytest.approx(slope, rel=0.2)


def npu_round(npu_ns: np.ndarray, rest_ns: np.ndarray) -> NetRound:
    run_ns = npu_ns + rest_ns
    evidence = {"npu_ns": [int(v) for v in npu_ns], "run_ns": [int(v) for v in run_ns]}
    return make_round([run_ns.astype(int)], runtime_evidence=evidence)


def test_an_npu_that_scatters_while_the_rest_is_steady_fluctuates() -> None:
    rng = np.random.default_rng(11)
    steady = rng.normal(1e6, 5e3, 100)
    loose = [npu_round(rng.normal(5e6, 2e5, 100), steady) for _ in range(3)]
    found = npu_fluctuation(loose)
    assert [f.code for f in found] == ["NPU_FLUCTUATION"]
    assert "between" in found[0].evidence
    assert npu_fluctuation([npu_round(rng.normal(5e6, 2e4, 100), steady)]) == []


def test_a_busy_processor_is_not_the_npus_fluctuation() -> None:
    rng = np.random.default_rng(12)
    busy = [npu_round(rng.normal(5e6, 2e5, 100), rng.normal(1e6, 3e5, 100)) for _ in range(3)]
    assert npu_fluctuation(busy) == []


def test_a_runtime_without_npu_times_has_no_npu_fluctuation() -> None:
    assert npu_fluctuation([make_round([[100] * 50])]) == []


def test_a_large_drift_asks_for_a_look_at_the_device() -> None:
    small, large = drift([1020.0], 1000.0)[0], drift([1040.0], 1000.0)[0]
    assert "look at the device" not in small.evidence
    assert "look at the device" in large.evidence
    assert not to_quarantine(judge([small], PROFILES["strict"])[0])
    assert to_quarantine(judge([large], PROFILES["strict"])[0])


def test_the_guide_shows_the_severities_that_the_code_has() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "measuring.md").read_text("utf-8")
    shown = {}
    for line in guide.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0].isupper() and cells[0] != "":
            shown[cells[0]] = tuple(cells[2:])
    words = {None: "–", "warn": "warn", "fail": "fail"}
    expected = {code: tuple(words[s] for s in row) for code, row in SEVERITY.items()}
    expected["DRIFT"] = ("warn", "warn", "fail above 3 %")
    assert shown == expected


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


@pytest.mark.parametrize(
    "code",
    [
        "INTERFERENCE", "DRIFT", "UNCONTROLLED_GOV", "UNCONTROLLED_DMC", "UNCONTROLLED_NPU",
        "FREQ_CHANGED", "CLOCKS_REFUSED", "CLOCK_MISMATCH", "HOT",
    ],
)  # fmt: skip
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


def test_quick_widens_by_what_others_took_and_by_clocks_that_nobody_holds() -> None:
    found = [
        Finding(code="INTERFERENCE", evidence="others", size=0.08),
        Finding(code="UNCONTROLLED_GOV", evidence="ondemand", size=0.01),
    ]
    assert judge(found, PROFILES["quick"])[1] == pytest.approx(0.09)
    assert judge(found, PROFILES["screening"])[1] == 0


def test_time_that_others_took_of_the_timed_cores_is_the_size_of_interference() -> None:
    evidence = ChildEvidence(
        before={"cpu_ticks": {"0": {"busy": 0, "steal": 0, "total": 0}}, "ticks_per_s": 100},
        after={"cpu_ticks": {"0": {"busy": 600, "steal": 0, "total": 1000}}, "ticks_per_s": 100},
        cpu_s=5.0,
        clock_khz={},
        references=(),
    )
    (finding,) = other_load(evidence, [0])
    assert finding.size == pytest.approx(0.1)
