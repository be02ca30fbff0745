from __future__ import annotations

import math

import pytest
import torch

from latency_tables.errors import DivergedError
from pipeline.training.divergence import LossMonitor


def monitor(losses: list[float], *, factor: float | None = 10.0, after: int = 3) -> LossMonitor:
    watched = LossMonitor(factor=factor, after=after, n_classes=10)
    for step, loss in enumerate(losses):
        watched.add(step, 0.5, torch.tensor(loss))
    watched.read()
    return watched


def test_a_jump_far_above_the_median_is_refused_with_step_loss_and_rate() -> None:
    with pytest.raises(DivergedError, match=r"jumped to 30 at step 3.*learning rate 0\.5"):
        monitor([2.0, 2.0, 2.0, 30.0])


def test_a_path_at_chance_level_of_a_good_supernet_is_no_blow_up() -> None:
    watched = monitor([0.1, 0.1, 0.1, 2.6, 0.1])
    assert watched.n_seen == 5
    assert not watched.doubtful


def test_a_loss_at_chance_level_makes_the_state_doubtful() -> None:
    assert monitor([0.1, 0.1, 0.1, 2.6]).doubtful


def test_a_supernet_that_has_not_learnt_yet_is_not_doubtful() -> None:
    assert not monitor([2.3, 2.2, 2.3, 2.31]).doubtful


def test_a_loss_that_falls_back_to_chance_and_stays_there_is_refused() -> None:
    with pytest.raises(DivergedError, match="chance level for 20 steps up to step 23"):
        monitor([0.1] * 4 + [2.3] * 20)


def test_a_jump_is_allowed_while_the_median_is_not_trusted() -> None:
    assert monitor([2.0, 2.0, 30.0]).n_seen == 3


def test_a_hard_batch_of_a_nearly_perfect_network_is_no_blow_up() -> None:
    assert monitor([0.01, 0.01, 0.01, 22.9]).n_seen == 4
    with pytest.raises(DivergedError):
        monitor([0.01, 0.01, 0.01, 23.1])  # ten times ln 10 = 2.303


def test_the_check_for_jumps_can_be_switched_off_and_that_for_nan_cannot() -> None:
    assert monitor([1.0] * 5 + [1e9], factor=None).n_seen == 6
    with pytest.raises(DivergedError):
        monitor([1.0, math.nan], factor=None)


def test_losses_are_checked_in_order() -> None:
    with pytest.raises(DivergedError, match="at step 1"):
        monitor([1.0, math.nan, math.nan])


def test_the_logged_mean_covers_what_was_not_logged_before() -> None:
    watched = monitor([1.0, 3.0])
    assert watched.take_logged() == 2.0
    assert watched.take_logged() is None
    assert watched.mean == 2.0


def test_state_survives_a_round_trip() -> None:
    watched = monitor([1.0, 3.0, 2.0])
    other = LossMonitor(factor=10.0, after=3, n_classes=10)
    other.load_state_dict(watched.state_dict())
    assert other.state_dict() == watched.state_dict()
