from __future__ import annotations

import itertools
import math

import pytest

from pipeline.training.config import ScheduleConfig
from pipeline.training.schedules import learning_rate


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


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_warm_up_rises_in_equal_steps_to_the_base_rate(kind: str) -> None:
    schedule = ScheduleConfig(kind=kind, warmup_steps=3)
    rates = [learning_rate(schedule, 0.4, s, 10) for s in range(4)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_constant_stays() -> None:
    assert {learning_rate(ScheduleConfig(kind="constant"), 0.1, s, 9) for s in range(10)} == {0.1}
