from __future__ import annotations

import json

import pytest
import torch

from latency_tables.errors import SpaceError
from pipeline.generator.resource_loss import MAX_GROWTH, ResourceLoss

TARGETS = (1.3e9, 1.6e9, 1.9e9)


def test_the_loss_is_the_squared_distance_as_a_share_of_the_range_of_levels() -> None:
    cost, target = torch.tensor([1.3e9, 1.75e9]).double(), torch.tensor([1.3e9, 1.6e9]).double()
    loss = ResourceLoss(TARGETS, weight=3.0)(cost, target)
    assert loss.item() == pytest.approx(3.0 * 0.25**2 / 2)


def test_costs_that_are_too_low_and_too_high_are_pulled_to_the_target_alike() -> None:
    cost = torch.tensor([1.5e9, 1.7e9]).double().requires_grad_()
    ResourceLoss(TARGETS)(cost, torch.full((2,), 1.6e9).double()).backward()
    assert cost.grad is not None
    assert cost.grad[0] == -cost.grad[1] < 0


def test_a_single_level_is_scaled_by_its_own_cost() -> None:
    loss = ResourceLoss([10.0])(torch.tensor([11.0]), torch.tensor([10.0]))
    assert loss.item() == pytest.approx(0.01)


def test_the_weight_grows_until_draws_are_on_target_and_then_shrinks_back() -> None:
    loss = ResourceLoss(TARGETS, weight=2.0, tolerance=0.02)
    for _ in range(100):
        loss.observe(0.05)
    grown = loss.weight
    assert grown == pytest.approx(2.0 * 1.02**100)
    for _ in range(40):
        loss.observe(0.001)
    assert loss.mean_error < 0.02
    assert 2.0 < loss.weight < grown
    for _ in range(500):
        loss.observe(0.001)
    assert loss.weight == 2.0


def test_the_weight_stays_finite_where_no_architecture_can_be_on_target() -> None:
    loss = ResourceLoss(TARGETS)
    for _ in range(2_000):
        loss.observe(1.0)
    assert loss.weight == MAX_GROWTH


def test_a_resumed_loss_goes_on_as_if_it_had_never_stopped() -> None:
    errors = [0.05, 0.03, 0.01, 0.002, 0.04, 0.02]
    whole, first, second = (ResourceLoss(TARGETS) for _ in range(3))
    for error in errors:
        whole.observe(error)
    for error in errors[:3]:
        first.observe(error)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for error in errors[3:]:
        second.observe(error)
    assert (second.weight, second.mean_error) == (whole.weight, whole.mean_error)


def test_a_fresh_state_can_be_saved() -> None:
    loss = ResourceLoss(TARGETS)
    loss.load_state_dict(json.loads(json.dumps(ResourceLoss(TARGETS).state_dict())))
    assert loss.mean_error == float("inf")


@pytest.mark.parametrize("settings", [{"weight": 0.0}, {"tolerance": -1.0}])
def test_weights_and_tolerances_that_mean_nothing_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(SpaceError, match="positive weight and tolerance"):
        ResourceLoss(TARGETS, **settings)
