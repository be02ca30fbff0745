"""Minutes of one network: what slowed it, when, and what an inference costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_agents.measuring.batches import Net
from device_agents.measuring.measurer import DeviceMeasurer
from device_agents.measuring.sustained import (
    Period,
    measure_sustained,
    read_period,
    summarise,
    throttling_time,
)
from latency_tables.errors import CorruptTableError, MeasurementError, UsageError


def periods(medians: Sequence[int], *, every_s: float = 10.0, **at: dict[int, Any]) -> list[Period]:
    """One period per median; ``cooling={3: {...}}`` changes a field of one period."""
    found = []
    for index, median in enumerate(medians):
        fields: dict[str, Any] = {
            "clock_khz": {"policy4": 2_208_000},
            "temperature_mc": {"soc": 50_000},
        }
        fields.update({name: values[index] for name, values in at.items() if index in values})
        found.append(
            Period(
                start_s=index * every_s, end_s=(index + 1) * every_s, median_ns=median,
                min_ns=median, max_ns=median, n_runs=1000, **fields,
            )
        )  # fmt: skip
    return found


def test_a_network_that_stays_as_fast_is_not_throttled() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        steady = periods([round(v) for v in rng.normal(100_000, 1000, 60)])
        assert throttling_time(steady) == (None, "")


def test_first_and_last_minute_are_compared() -> None:
    found = summarise(
        periods([1000] * 12 + [1300] * 12), {"n_runs": 24_000, "wall_ns": 240 * 10**9}
    )
    assert (found.first_minute_ns, found.last_minute_ns) == (1000, 1300)
    assert found.slowdown == pytest.approx(1.3)
    assert found.throttled_after_s == 120
    assert "slower and stayed so" in found.throttled_by


def test_one_slow_period_is_no_throttling() -> None:
    assert throttling_time(periods([1000] * 10 + [1500] + [1000] * 10)) == (None, "")


def test_a_cooling_device_or_a_falling_clock_says_when_it_began() -> None:
    acting = periods([1000] * 10, cooling={4: {"thermal-cpufreq-0 (cooling_device0)": 2}})
    assert throttling_time(acting)[0] == 50
    falling = periods([1000] * 10, clock_khz={6: {"policy4": 1_800_000}})
    assert throttling_time(falling) == (70, "policy4 fell to 1800000 kHz")
    fan = periods([1000] * 10, cooling={4: {"pwm-fan (cooling_device1)": 2}})
    assert throttling_time(fan) == (None, "")


def sensed(**changes: Any) -> dict[str, Any]:
    """What a sensor of 5 W told over 100 s."""
    usual = {
        "mean_watt": 5.0, "uncertainty_joule": 10.0, "seconds": 100.0, "samples": 2000,
        "rate_hz": 20.0,
    }  # fmt: skip
    return {**usual, **changes}


def test_energy_is_mean_power_times_time_per_run_with_rate_and_uncertainty() -> None:
    found = summarise(
        periods([1000] * 4),
        {"n_runs": 10_000, "wall_ns": 100 * 10**9, "energy": {"ina226/vdd": sensed()}},
    )
    assert found.energy[0].per_inference_mj == pytest.approx(50)  # 5 W · 100 s / 10 000
    assert found.energy[0].uncertainty_mj == pytest.approx(1)
    assert found.energy_text == "50 ± 1 mJ per inference (ina226/vdd, 2000 samples at 20 Hz)"


@pytest.mark.parametrize("energy", [None, {}, {"s": None}, {"s": sensed(samples=2)}])
def test_without_a_sensor_there_is_no_energy(energy: Any) -> None:
    found = summarise(periods([1000] * 4), {"n_runs": 4, "wall_ns": 40 * 10**9, "energy": energy})
    assert found.energy == ()
    assert found.energy_text == "no sensor"


def test_a_sensor_of_the_board_is_sampled_while_the_network_runs(
    fake_measurer: Callable[..., DeviceMeasurer], fake_job: Callable[..., Any], tmp_path: Path
) -> None:
    chip = tmp_path / "tree/sys/class/hwmon/hwmon0"
    chip.mkdir(parents=True)
    (chip / "name").write_text("ina226")
    (chip / "power1_input").write_text("3000000")
    measurer = fake_measurer()
    measurer.transport.arguments = ("--root", str(tmp_path / "tree"))
    with measurer, measurer.connected():
        net = Net(name="n", blob=measurer.upload([fake_job("n").onnx])[0])
        found = measure_sustained(measurer, net, seconds=1.0, period_s=0.5)
    (energy,) = found.energy
    assert energy.power_w == pytest.approx(3)
    run_s = found.periods[-1].end_s / sum(period.n_runs for period in found.periods)
    assert energy.per_inference_mj == pytest.approx(3000 * run_s, rel=0.05)
    assert "no sensor" not in found.energy_text


def test_a_period_of_garbage_is_refused() -> None:
    with pytest.raises(CorruptTableError, match="median_ns"):
        read_period({"start_ns": 0, "end_ns": 5, "median_ns": "fast"})


def test_a_network_runs_through_all_periods_in_one_process(
    fake_measurer: Callable[..., DeviceMeasurer], fake_job: Callable[..., Any]
) -> None:
    measurer, told = fake_measurer(), []
    with measurer, measurer.connected():
        net = Net(name="n", blob=measurer.upload([fake_job("n", burn_us=300).onnx])[0])
        found = measure_sustained(measurer, net, seconds=0.6, period_s=0.2, on_period=told.append)
    assert tuple(told) == found.periods
    assert len(found.periods) == 3
    assert all(p.median_ns >= 300_000 for p in found.periods)
    assert found.periods[-1].end_s >= 0.6


def test_a_network_that_dies_is_blamed_and_not_the_device(
    fake_measurer: Callable[..., DeviceMeasurer], fake_job: Callable[..., Any]
) -> None:
    measurer = fake_measurer()
    with measurer, measurer.connected():
        blobs = measurer.upload([fake_job("n", run=how).onnx for how in ("segv", "raise")])
        for blob in blobs:
            with pytest.raises(MeasurementError) as caught:
                measure_sustained(measurer, Net(name="n", blob=blob), seconds=1, period_s=0.5)
            assert (caught.value.code, caught.value.blames) == ("RUN_CRASHED", "candidate")
    with pytest.raises(UsageError):
        measure_sustained(measurer, Net(name="n", blob=""), seconds=1, period_s=2)
