from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from latency_tables.errors import ConfigError, UsageError
from pipeline.training.config import ScheduleConfig
from pipeline.training.schedules import learning_rate
from tests.pipeline.training.toys import toy_config, toy_train


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_decay_begins_at_the_base_rate_and_ends_at_the_final_one(kind: str) -> None:
    schedule = ScheduleConfig(kind=kind, final_lr=1e-5)
    assert learning_rate(schedule, 0.12, 0, 100) == pytest.approx(0.12)
    assert learning_rate(schedule, 0.12, 100, 100) == pytest.approx(1e-5)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_decay_never_rises(kind: str) -> None:
    rates = [learning_rate(ScheduleConfig(kind=kind), 0.5, s, 50) for s in range(51)]
    assert all(a > b for a, b in itertools.pairwise(rates))


def test_the_paper_recipe_falls_linearly_from_a_half_to_zero_over_150000_steps() -> None:
    rates = [learning_rate(ScheduleConfig(kind="linear"), 0.5, s, 150_000) for s in (0, 75_000)]
    assert rates == [0.5, 0.25]
    last = learning_rate(ScheduleConfig(kind="linear"), 0.5, 149_999, 150_000)
    assert last == pytest.approx(0.5 / 150_000)


def test_cosine_is_at_half_in_the_middle() -> None:
    assert learning_rate(ScheduleConfig(), 1.0, 50, 100) == pytest.approx(0.5)
    assert learning_rate(ScheduleConfig(), 1.0, 25, 100) == pytest.approx((1 + math.sqrt(0.5)) / 2)


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "exponential"])
def test_warm_up_rises_in_equal_steps_to_the_base_rate(kind: str) -> None:
    schedule = ScheduleConfig(kind=kind, warmup_steps=3)
    rates = [learning_rate(schedule, 0.4, s, 10) for s in range(4)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_constant_stays() -> None:
    assert {learning_rate(ScheduleConfig(kind="constant"), 0.1, s, 9) for s in range(10)} == {0.1}


def test_the_mobile_recipe_warms_up_for_five_epochs_and_then_decays_every_two_and_a_half() -> None:
    # K-shot NAS: 0.128 after 5 epochs, then 0.97 per 2.4 epochs
    recipe = ScheduleConfig(kind="exponential", warmup_epochs=5, decay_epochs=2.4)
    schedule = recipe.in_steps(steps_per_epoch=1250, total_steps=450 * 1250)
    assert (schedule.warmup_steps, schedule.decay_steps) == (6250, 3000.0)
    steps = [0, 6250, 6250 + 2999, 6250 + 3000, 6250 + 6000]
    rates = [learning_rate(schedule, 0.128, s, 450 * 1250) for s in steps]
    assert rates == pytest.approx([0.128 / 6251, 0.128, 0.128, 0.128 * 0.97, 0.128 * 0.97**2])


def test_without_a_staircase_the_decay_is_smooth_and_meets_it_at_its_edges() -> None:
    jumps = ScheduleConfig(kind="exponential", decay_steps=10)
    smooth = jumps.model_copy(update={"staircase": False})
    rates = [learning_rate(smooth, 1.0, s, 100) for s in range(30)]
    assert all(a > b for a, b in itertools.pairwise(rates))
    assert rates[20] == learning_rate(jumps, 1.0, 20, 100) == 0.97**2


def test_the_floor_of_big_nas_is_a_constant_ending_at_five_per_cent() -> None:
    schedule = ScheduleConfig(kind="exponential", decay_steps=1, floor=0.05)
    rates = [learning_rate(schedule, 0.256, s, 200) for s in range(200)]
    assert rates[98] > 0.05 * 0.256 == rates[99] == rates[199]  # 0.97^99 is the first below 0.05


def test_epochs_may_be_broken_and_end_between_steps() -> None:
    schedule = ScheduleConfig(kind="exponential", warmup_epochs=0.5, decay_epochs=0.5)
    in_steps = schedule.in_steps(steps_per_epoch=7, total_steps=70)
    assert (in_steps.warmup_steps, in_steps.decay_steps) == (4, 3.5)
    rates = [learning_rate(in_steps, 1.0, s, 70) for s in (7, 8, 10, 11)]
    assert rates == [1.0, 0.97, 0.97, 0.97**2]


def test_a_warm_up_that_leaves_nothing_is_refused_with_both_lengths() -> None:
    with pytest.raises(ConfigError, match=r"50 steps \(5 epochs\) leaves nothing of 40 steps"):
        ScheduleConfig(warmup_epochs=5).in_steps(steps_per_epoch=10, total_steps=40)


@pytest.mark.parametrize(
    "twice",
    [{"warmup_steps": 3, "warmup_epochs": 1.0}, {"decay_steps": 3, "decay_epochs": 1.0}],
)
def test_a_length_in_two_units_is_refused(twice: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="exclude each other"):
        ScheduleConfig.model_validate(twice)


def test_lengths_in_epochs_are_never_read_as_steps() -> None:
    with pytest.raises(UsageError, match="in_steps"):
        learning_rate(ScheduleConfig(warmup_epochs=1), 0.1, 0, 10)


def test_training_reads_epochs_of_its_own_stream(tmp_path: Path) -> None:
    # the toy stream has 4 batches per epoch
    config = toy_config(schedule=ScheduleConfig(kind="constant", warmup_epochs=1), log_every=1)
    toy_train(tmp_path, config=config)
    lines = [json.loads(x) for x in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [x["lr"] for x in lines[:5]] == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05])
