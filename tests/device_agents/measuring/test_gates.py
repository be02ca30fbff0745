"""What keeps a round from starting, on invented snapshots and a clock that only sleeping moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from device_agents.board.gate import npu_load_percent
from device_agents.board.system import Tree, snapshot
from device_agents.devices import DeviceSpec
from device_agents.measuring.gates import HARD_WAIT_S, Gatekeeper, Limits, load_after, obstacles
from device_agents.measuring.profiles import PROFILES, Profile
from device_agents.measuring.verdicts import Finding
from latency_tables.errors import DeviceDiskFullError, DeviceError, LinkLostError

STRICT = PROFILES["strict"]


def board(
    celsius: float | None = 50.0, *, cooling: int = 0, fan: int = 0, **changes: Any
) -> dict[str, Any]:
    """A calm board; None for ``celsius`` means that it has no thermal zone."""
    zone = {"name": "thermal_zone0", "type": "soc", "passive_trip_mc": 85_000}
    zones = [] if celsius is None else [{**zone, "temperature_mc": round(celsius * 1000)}]
    calm = {
        "boot_id": "b1",
        "load_average": 0.1,
        "thermal_zones": zones,
        "cooling_devices": [
            {"name": "cooling_device0", "type": "thermal-cpufreq-0", "state": cooling},
            {"name": "cooling_device1", "type": "pwm-fan", "state": fan},
        ],
        "psi": {"cpu": 0.0, "io": 0.0, "memory": 0.0},
        "disk_free_bytes": 1 << 30,
        "memory_available_bytes": 1 << 30,
    }
    return {**calm, **changes}


class Scripted:
    """A session whose device is in the given states, one after the other; the last one stays."""

    boot_id = "b1"

    def __init__(self, states: Sequence[dict[str, Any]]) -> None:
        self.states, self.asked, self.closed = list(states), 0, False

    def request(self, operation: str, parameters: Any, *, timeout_s: float) -> dict[str, Any]:
        assert operation == "snapshot"
        self.asked += 1
        return self.states[min(self.asked, len(self.states)) - 1]

    def close(self) -> None:
        self.closed = True


class Gates:
    """A gatekeeper with its notes and the seconds it slept."""

    def __init__(self, *, profile: Profile = STRICT, **device: Any) -> None:
        self.notes: list[str] = []
        self.slept_s = 0.0
        self.keeper = Gatekeeper(
            DeviceSpec(name="board", **device),
            profile,
            tell=self.notes.append,
            sleep=self._sleep,
            clock=lambda: self.slept_s,
        )

    def _sleep(self, seconds: float) -> None:
        self.slept_s += seconds

    def wait(self, *states: dict[str, Any]) -> list[Finding]:
        return self.keeper.wait(Scripted(states))  # type: ignore[arg-type]


def codes(findings: Sequence[Finding]) -> list[str]:
    return [finding.code for finding in findings]


def closed(now: dict[str, Any], **limits: Any) -> list[str]:
    return [o.code for o in obstacles(now, Limits(threads=1, **limits))]


def test_a_calm_board_is_measured_at_once() -> None:
    gates = Gates()
    assert gates.wait(board()) == []
    assert (gates.slept_s, gates.notes) == (0, [])


def test_what_a_virtual_machine_does_not_tell_never_blocks(tmp_path: Path) -> None:
    nothing = {**snapshot(Tree(str(tmp_path))), "boot_id": "b1", "disk_free_bytes": None}
    gates = Gates(max_temperature_c=70.0)
    assert gates.wait(nothing) == []
    assert gates.slept_s == 0


@pytest.mark.parametrize(
    ("now_c", "expected"),
    [(45.0, []), (53.0, []), (53.1, ["HOT"]), (44.9, ["COLD"])],
)
def test_the_window_of_temperatures_is_five_below_to_three_above_the_start(
    now_c: float, expected: list[str]
) -> None:
    assert closed(board(now_c), start_c=50.0) == expected


def test_a_round_waits_until_the_board_cooled_down_and_says_why() -> None:
    gates = Gates()
    assert gates.wait(board(50.0)) == []
    assert gates.wait(board(57.0), board(55.0), board(52.0)) == []
    assert gates.slept_s == 4
    assert gates.notes[0].startswith("waiting: soc is at 57 °C, the session began at 50 °C")


def test_a_board_that_stays_hot_is_measured_after_two_minutes_with_a_finding() -> None:
    gates = Gates()
    gates.wait(board(50.0))
    found = gates.wait(board(60.0))
    assert gates.slept_s == STRICT.gate_wait_s == 120
    assert codes(found) == ["HOT"]
    assert "after waiting 120 s" in found[0].evidence


def test_a_gate_that_never_opened_is_not_waited_for_at_every_round() -> None:
    gates = Gates()
    for _ in range(4):
        assert codes(gates.wait(board(psi={"cpu": 50.0}))) == ["BUSY_BOARD"]
    assert gates.slept_s == 120
    gates.slept_s += 600
    gates.wait(board(psi={"cpu": 50.0}))
    assert gates.slept_s == 120 + 600 + 120


def test_quick_waits_for_no_window_but_says_that_it_was_left() -> None:
    gates = Gates(profile=PROFILES["quick"])
    gates.wait(board(50.0))
    assert codes(gates.wait(board(60.0))) == ["HOT"]
    assert gates.slept_s == 0


def test_a_cold_board_is_waited_for_only_while_it_warms_up() -> None:
    gates = Gates()
    gates.wait(board(60.0))
    assert gates.wait(board(50.0), board(53.0), board(56.0)) == []
    assert gates.slept_s == 4
    assert codes(gates.wait(board(50.0), board(49.0))) == ["COLD"]
    assert gates.slept_s == 6


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_no_round_starts_above_the_devices_own_limit(profile: Profile) -> None:
    gates = Gates(profile=profile, max_temperature_c=70.0)
    with pytest.raises(DeviceError, match="soc is at 71 °C, the device's limit is 70 °C") as caught:
        gates.wait(board(71.0))
    assert (caught.value.code, caught.value.retryable) == ("HOT", False)
    assert gates.slept_s == HARD_WAIT_S


def test_cooling_that_heat_does_not_explain_stops_the_session_for_good() -> None:
    gates = Gates()
    with pytest.raises(DeviceError, match="though the device is cool at 48 °C") as caught:
        gates.wait(board(48.0, cooling=2))
    assert (caught.value.code, caught.value.retryable) == ("STUCK_THROTTLE", False)
    assert caught.value.hint is not None
    assert gates.slept_s == 120


def test_cooling_that_ends_while_we_wait_is_not_stuck() -> None:
    gates = Gates()
    assert gates.wait(board(48.0, cooling=1), board(48.0, cooling=1), board(48.0)) == []
    assert gates.slept_s == 4


def test_cooling_near_the_trip_point_is_heat_and_not_stuck() -> None:
    assert closed(board(81.0, cooling=1), start_c=80.0) == ["HOT"]


def test_a_fan_that_turns_is_no_throttling() -> None:
    assert closed(board(48.0, fan=3)) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"load_average": 0.4}, "load average is 0.4"),
        ({"psi": {"cpu": 35.0}}, "tasks waited for cpu in 35 %"),
        ({"psi": {"memory": 6.0}}, "tasks waited for memory"),
        ({"npu_load_percent": [0, 40, 0]}, "another client uses 40 % of the NPU"),
        ({"memory_available_bytes": 10 << 20}, "10 MiB of memory"),
    ],
)
def test_a_busy_board_is_waited_for_and_then_told(changes: dict[str, Any], reason: str) -> None:
    gates = Gates()
    found = gates.wait(board(**changes))
    assert gates.slept_s == 120
    assert codes(found) == ["BUSY_BOARD"]
    assert reason in gates.notes[0]


def test_our_own_rounds_are_no_load_of_others() -> None:
    gates = Gates(profile=PROFILES["screening"], threads=2)
    gates.wait(board())
    gates.slept_s += 60  # a round
    assert gates.wait(board(load_average=1.5)) == []  # 2 threads for a minute: 1.26 + 0.3
    gates.slept_s += 60
    assert codes(gates.wait(board(load_average=2.4))) == ["BUSY_BOARD"]
    assert gates.notes != []


def test_waiting_is_no_load_of_ours() -> None:
    gates = Gates()
    gates.wait(board())
    found = gates.wait(board(load_average=0.5))
    assert gates.slept_s == 120
    assert codes(found) == ["BUSY_BOARD"]
    assert codes(gates.wait(board(load_average=0.8))) == ["BUSY_BOARD"]  # allowed: still 0.3


def test_a_long_run_of_ours_allows_a_load_of_its_threads() -> None:
    assert load_after(0.0, 4, 600.0) == pytest.approx(4, abs=1e-3)
    assert closed(board(load_average=1.2)) == ["BUSY_BOARD"]
    assert closed(board(load_average=1.2), own_load=1.0) == []


def test_a_full_disk_is_told_at_once() -> None:
    gates = Gates()
    with pytest.raises(DeviceDiskFullError, match="3 MiB are free") as caught:
        gates.wait(board(disk_free_bytes=3 << 20))
    assert caught.value.hint == "hilnas devices clean board"
    assert gates.slept_s == 0


def test_another_boot_closes_the_session_so_that_it_is_opened_anew() -> None:
    session = Scripted([board(boot_id="b2")])
    with pytest.raises(LinkLostError, match="rebooted"):
        Gates().keeper.wait(session)  # type: ignore[arg-type]
    assert session.closed


def test_a_snapshot_that_is_garbage_is_a_protocol_error() -> None:
    with pytest.raises(DeviceError, match="snapshot") as caught:
        Gates().wait(board(load_average="low"))
    assert caught.value.code == "PROTOCOL"


def test_the_load_of_each_npu_core_is_read_where_it_can_be(tmp_path: Path) -> None:
    tree = Tree(str(tmp_path))
    assert npu_load_percent(tree) is None
    path = tmp_path / "sys/kernel/debug/rknpu/load"
    path.parent.mkdir(parents=True)
    path.write_text("NPU load:  Core0:  0%, Core1: 37%, Core2:  0%,\n")
    assert npu_load_percent(tree) == [0, 37, 0]


def test_the_agent_is_asked_before_each_round_and_a_hot_tree_is_waited_for(
    fake_measurer: Callable[..., Any], fake_job: Callable[..., Any], tmp_path: Path
) -> None:
    zone = tmp_path / "tree/sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("soc")
    (zone / "temp").write_text("50000")
    notes: list[str] = []

    def on_progress(progress: Any) -> None:
        if progress.note:
            notes.append(progress.note)
            (zone / "temp").write_text("51000")  # it cools down while we wait
        elif progress.done == 1:
            (zone / "temp").write_text("60000")  # the first round heats it

    profile = replace(STRICT, **_tiny())
    measurer = fake_measurer(profile=profile, on_progress=on_progress)
    measurer.transport.arguments = ("--root", str(tmp_path / "tree"))
    record = measurer.measure([fake_job("n")])[0]
    assert record.statistics is not None
    assert any("soc is at 60 °C, the session began at 50 °C" in note for note in notes)
    assert "HOT" not in {verdict.code for verdict in record.verdicts}


def _tiny() -> dict[str, Any]:
    """Two rounds of four runs."""
    return {
        "min_rounds": 2, "max_rounds": 2, "blocks": 2, "block_runs": (2, 2), "warmup_min_runs": 1,
        "warmup_cap_ms": 0.0, "retakes": 0,
    }  # fmt: skip
