from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.strategies.level_shift import (
    LevelDistribution,
    gumbel,
    is_due,
    learning_rate_of,
    planned_updates,
    score_gradient,
    stratified_gradient,
)
from pipeline.training.config import OptimizerConfig
from pipeline.training.optimizers import NamedOptimizer
from tests.pipeline.strategies.steps import generator

RATE = 1e-3
BEFORE, NOW = torch.tensor([1.1, 1.0]).double(), torch.tensor([1.0, 1.0]).double()
"""Losses of two levels: only that of the first one has fallen, by 0.1."""


def after_one_step(gradient: Tensor) -> list[float]:
    """B after Adam at the paper's rate, from (0, 0)."""
    levels = LevelDistribution(2)
    config = OptimizerConfig(kind="adamw", lr=RATE, weight_decay=0.0)
    optimizer = NamedOptimizer("levels", {"B": levels.logits}, config)
    optimizer.set_gradients({"B": gradient})
    optimizer.step(RATE)
    found: list[float] = levels.logits.tolist()
    return found


# -- the sign ------------------------------------------------------------------------------


def test_a_level_that_still_improves_is_drawn_more_often_after_an_update() -> None:
    gradient = stratified_gradient(torch.zeros(2).double(), BEFORE, NOW)
    assert gradient is not None
    assert gradient.tolist() == pytest.approx([-0.025, 0.025])
    assert after_one_step(gradient) == pytest.approx([+RATE, -RATE], rel=1e-5)


def test_the_literal_sign_of_algorithm_2_does_the_opposite() -> None:
    """∇_B L(w_{t−1}) − ∇_B L(w_t) is a score to be ascended; the paper's optimizer descends."""

    def gradient_of(losses: Tensor) -> Tensor:
        logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad((logits.softmax(0) * losses).sum(), logits)
        return found

    literal = gradient_of(BEFORE) - gradient_of(NOW)
    moved = after_one_step(literal)
    assert moved == pytest.approx([-RATE, +RATE], rel=1e-5)
    assert moved[0] < moved[1]  # the level that improves would be trained less
    ours = stratified_gradient(torch.zeros(2).double(), BEFORE, NOW)
    assert ours is not None
    torch.testing.assert_close(ours, -literal)


def test_the_closed_form_is_the_gradient_of_the_expected_loss() -> None:
    rng = generator("closed form")
    logits = torch.from_numpy(rng.normal(size=6)).requires_grad_()
    before, now = (torch.from_numpy(rng.normal(size=6)) for _ in range(2))
    (expected,) = torch.autograd.grad((logits.softmax(0) * (now - before)).sum(), logits)
    found = stratified_gradient(logits, before, now)
    assert found is not None
    torch.testing.assert_close(found, expected)
    assert float(found.sum()) == pytest.approx(0, abs=1e-12)


# -- one level -----------------------------------------------------------------------------


@pytest.mark.parametrize("improvement", [0.3, -0.3])
def test_the_score_raises_the_drawn_level_where_its_loss_fell(improvement: float) -> None:
    levels, rng = LevelDistribution(4), generator("score")
    for _ in range(20):
        noise = gumbel(rng, 4)
        gradient = score_gradient(levels, noise, 1.0 + improvement, 1.0)
        assert gradient is not None
        drawn = int(np.argmax(noise))
        assert (-float(gradient[drawn]) > 0) == (improvement > 0)
        others = [k for k in range(4) if k != drawn]
        assert all((-float(gradient[k]) < 0) == (improvement > 0) for k in others)


def test_the_score_has_the_size_that_the_soft_probabilities_say() -> None:
    levels, noise = LevelDistribution(3), np.array([0.5, -1.0, 2.0])
    soft = torch.from_numpy(noise).softmax(0)
    gradient = score_gradient(levels, noise, 0.0, 1.0)
    assert gradient is not None
    expected = soft[2] * (torch.tensor([0.0, 0.0, 1.0]) - soft)
    torch.testing.assert_close(gradient, expected)


def test_scores_point_on_average_where_the_closed_form_points() -> None:
    levels, rng = LevelDistribution(3), generator("mean score")
    before, now = [1.5, 1.2, 1.0], [1.0, 1.0, 1.0]
    total = torch.zeros(3).double()
    for _ in range(3000):
        noise = gumbel(rng, 3)
        k = int(np.argmax(noise))
        gradient = score_gradient(levels, noise, before[k], now[k])
        assert gradient is not None
        total += gradient
    closed = stratified_gradient(levels.logits, torch.tensor(before), torch.tensor(now))
    assert closed is not None
    assert total.argsort().tolist() == closed.argsort().tolist()


def test_a_relaxed_level_is_one_hot_in_value_and_soft_in_gradient() -> None:
    levels, noise = LevelDistribution(3), np.array([0.0, 3.0, 1.0])
    vector = levels.relaxed(noise)
    assert vector.tolist() == [0.0, 1.0, 0.0]
    weights = torch.tensor([1.0, 2.0, 4.0]).double()
    (found,) = torch.autograd.grad((vector * weights).sum(), levels.logits)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    soft = (logits + torch.from_numpy(noise)).softmax(0)
    (expected,) = torch.autograd.grad((soft * weights).sum(), logits)
    torch.testing.assert_close(found, expected)


# -- what is not finite --------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_gives_no_gradient(bad: float) -> None:
    assert stratified_gradient(torch.zeros(2).double(), BEFORE, torch.tensor([bad, 1.0])) is None
    assert stratified_gradient(torch.zeros(2).double(), torch.tensor([1.0, bad]), NOW) is None
    levels, noise = LevelDistribution(2), np.zeros(2)
    assert score_gradient(levels, noise, bad, 1.0) is None
    assert score_gradient(levels, noise, 1.0, bad) is None


# -- the distribution ----------------------------------------------------------------------


def test_levels_are_drawn_as_often_as_their_probabilities_say() -> None:
    levels, rng = LevelDistribution(3), generator("draw")
    with torch.no_grad():
        levels.logits.copy_(torch.tensor([0.6, 0.1, 0.3]).log())
    drawn = np.bincount([levels.draw(rng) for _ in range(6000)], minlength=3) / 6000
    np.testing.assert_allclose(drawn, [0.6, 0.1, 0.3], atol=0.02)


def test_the_entropy_is_that_of_the_probabilities() -> None:
    levels = LevelDistribution(8)
    assert levels.entropy() == pytest.approx(math.log(8))
    with torch.no_grad():
        levels.logits[0] = 1000.0
    assert levels.entropy() == 0.0


# -- when, and how far ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_steps", "every", "freeze"),
    [(1000, 7, 0.1), (20, 4, 0.4), (100, 10, 0.3), (5, 10, 0.0), (50, 1, 1.0), (37, 3, 0.99)],
)
def test_as_many_updates_are_planned_as_there_are(n_steps: int, every: int, freeze: float) -> None:
    due = [d for d in range(1, n_steps + 1) if is_due(d, n_steps, every=every, freeze=freeze)]
    assert len(due) == planned_updates(n_steps, every=every, freeze=freeze)
    assert all(d % every == 0 and d > freeze * n_steps for d in due)


@pytest.mark.parametrize("n_updates", [1, 41, 200, 4999])
def test_a_short_run_can_move_b_as_far_as_a_long_one(n_updates: int) -> None:
    levels = LevelDistribution(2)
    config = OptimizerConfig(kind="adamw", lr=1.0, weight_decay=0.0)
    optimizer = NamedOptimizer("levels", {"B": levels.logits}, config)
    for _ in range(n_updates):
        optimizer.set_gradients({"B": torch.tensor([-0.01, 0.01]).double()})
        optimizer.step(learning_rate_of(n_updates))
    assert levels.logits.tolist() == pytest.approx([5.0, -5.0], rel=1e-3)
