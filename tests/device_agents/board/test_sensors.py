"""Clocks, heat and power over time, from an invented board whose sensors follow a script."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from device_agents.board.sensors import Energy, Sampler, Sensor, describe, find_sensors
from device_agents.board.tree import Tree
from tests.fakes.board_tree import BoardTree

WAIT_S = 10.0


@pytest.fixture
def board(tmp_path: Path) -> BoardTree:
    return BoardTree(tmp_path / "root")


def test_a_board_without_a_sensor_has_none_and_is_sampled_all_the_same(board: BoardTree) -> None:
    sampler = Sampler(board.tree, 60.0)
    sampler.start()
    said = sampler.stop()
    assert said["sensors"] == []
    assert said["energy"] == {}
    assert said["clock_khz"]["policy4"] == [2352000, 2352000]
    assert said["clock_khz"]["fdab0000.npu"] == [300000, 300000]
    assert said["temperature_mc"]["thermal_zone0 (soc-thermal)"] == [45000, 45000, 45000]


def test_extremes_of_clock_and_heat_are_kept(board: BoardTree) -> None:
    sampler = Sampler(board.tree, 60.0)
    sampler.start()
    board.heat(70_000)
    board.change_clock("policy4", 1200000)
    sampler.sample()
    board.heat(60_000)
    said = sampler.stop()
    assert said["temperature_mc"]["thermal_zone0 (soc-thermal)"] == [45000, 70000, 60000]
    assert said["clock_khz"]["policy4"] == [1200000, 2352000]
    assert [point["khz"]["policy4"] for point in said["series"]] == [2352000, 1200000, 1200000]


def test_the_thread_samples_until_it_is_stopped(board: BoardTree) -> None:
    sampler = Sampler(board.tree, 0.005)
    sampler.start()
    deadline = time.monotonic() + WAIT_S
    while sampler._n < 5:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    said = sampler.stop()
    assert said["n"] >= 6
    assert 0 < said["rate_hz"] <= 300  # 200, and the sample of the end
    assert sampler._n == said["n"]


def test_a_long_series_is_thinned_out_evenly(board: BoardTree) -> None:
    sampler = Sampler(board.tree, 60.0, max_points=8)
    for _ in range(100):
        sampler.sample()
    kept = sampler._series
    assert 4 <= len(kept) <= 8
    assert sampler.stop()["n"] == 101


def test_power_sensors_of_all_kinds_are_found(board: BoardTree) -> None:
    board.add_sensor()
    board.write("sys/class/power_supply/battery/voltage_now", 4_000_000)
    board.write("sys/class/power_supply/battery/current_now", -500_000)
    board.write("sys/class/power_supply/usb/online", 1)
    board.write("sys/class/powercap/intel-rapl:0/name", "package-0")
    board.write("sys/class/powercap/intel-rapl:0/energy_uj", 7)
    assert describe(board.tree) == [
        {"name": "ina226/power1", "kind": "power"},
        {"name": "battery", "kind": "power"},
        {"name": "rapl/package-0", "kind": "energy"},
    ]
    battery = find_sensors(board.tree)[1]
    assert battery.read(board.tree) == 2_000_000


def test_a_steady_power_gives_an_energy_without_uncertainty(board: BoardTree) -> None:
    board.add_sensor(5_000_000)
    sampler = Sampler(board.tree, 60.0)
    sampler.start()
    sampler.sample()
    said = sampler.stop()["energy"]["ina226/power1"]
    assert said["mean_watt"] == pytest.approx(5.0, rel=0.05)
    assert said["uncertainty_joule"] == 0
    assert said["samples"] == 3


def test_samples_too_far_apart_for_a_moving_load_show_as_uncertainty() -> None:
    """A square wave of 0 and 10 W: 5 J per second, whatever the phase that a slow meter hits."""

    def wave(second: float) -> int:
        return 10_000_000 if int(second * 2) % 2 else 0

    def measured(rate_hz: int) -> dict[str, float]:
        energy = Energy(Sensor("meter", "power", []))
        for index in range(10 * rate_hz + 1):
            energy.add(index / rate_hz, wave(index / rate_hz))
        result = energy.result()
        assert result is not None
        return result

    fast, slow = measured(1000), measured(3)
    assert fast["joule"] == pytest.approx(50, abs=fast["uncertainty_joule"])
    assert slow["joule"] == pytest.approx(50, abs=slow["uncertainty_joule"])
    assert fast["uncertainty_joule"] < 0.5
    assert slow["uncertainty_joule"] > 10


def test_a_counter_that_wraps_goes_on_and_one_that_is_reset_tells_nothing() -> None:
    wrapping = Energy(Sensor("rapl", "energy", [], range_uj=9_999_999))
    resetting = Energy(Sensor("hwmon", "energy", []))
    for second, value in enumerate([8_000_000, 9_000_000, 1_000_000]):
        wrapping.add(float(second), value)
        resetting.add(float(second), value)
    result = wrapping.result()
    assert result is not None
    assert (result["joule"], result["uncertainty_joule"]) == (3.0, 2.0)
    assert resetting.result() is None


def test_a_sensor_that_vanishes_does_not_stop_the_sampling(board: BoardTree) -> None:
    node = board.add_sensor()
    sampler = Sampler(board.tree, 60.0)
    sampler.start()
    (board.root / node).unlink()
    said = sampler.stop()
    assert said["n"] == 2
    assert said["energy"] == {"ina226/power1": None}


def test_a_sampler_that_was_never_started_tells_one_sample(board: BoardTree) -> None:
    board.add_sensor()
    said = Sampler(board.tree, 60.0).stop()
    assert said["n"] == 1
    assert said["energy"] == {"ina226/power1": None}
    assert said["series"][0]["s"] < 60


def test_this_machine_can_be_sampled() -> None:
    sampler = Sampler(Tree("/"), 60.0)
    sampler.start()
    assert sampler.stop()["n"] == 2


def test_a_period_must_be_positive(board: BoardTree) -> None:
    with pytest.raises(ValueError, match="positive"):
        Sampler(board.tree, 0.0)
