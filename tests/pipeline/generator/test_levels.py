from __future__ import annotations

import math

import pytest
import torch

from latency_tables.errors import LimitError, SpaceError
from pipeline.generator.levels import check_targets, level_weights

TARGETS = (1.3e9, 1.4e9, 1.6e9)


def test_the_target_of_a_level_is_its_one_hot_vector() -> None:
    found = [level_weights(TARGETS, target).tolist() for target in TARGETS]
    assert found == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("target", [1.3e9, 1.31e9, 1.395e9, 1.4e9, 1.5e9, 1.6e9])
def test_weights_of_two_neighbours_average_to_the_target(target: float) -> None:
    weights = level_weights(TARGETS, target)
    assert weights.sum().item() == pytest.approx(1.0)
    assert (weights > 0).sum() <= 2
    assert weights.double() @ torch.tensor(TARGETS).double() == pytest.approx(target, rel=1e-6)


@pytest.mark.parametrize("target", [1.29e9, 1.61e9, math.nan])
def test_a_target_outside_of_the_levels_is_refused_with_their_range(target: float) -> None:
    with pytest.raises(LimitError, match=r"1.3e\+09 to 1.6e\+09"):
        level_weights(TARGETS, target)


def test_a_target_outside_of_the_levels_takes_the_nearest_one_where_that_is_asked_for() -> None:
    assert level_weights(TARGETS, 1e9, clamp=True).tolist() == [1, 0, 0]
    assert level_weights(TARGETS, 9e9, clamp=True).tolist() == [0, 0, 1]


def test_one_level_alone_takes_its_own_target_only() -> None:
    assert level_weights([5.0], 5.0).tolist() == [1]
    with pytest.raises(LimitError, match="5 to 5"):
        level_weights([5.0], 5.1)


@pytest.mark.parametrize("targets", [[], [2.0, 1.0], [1.0, 1.0], [0.0, 1.0], [1.0, math.inf],
                                     [math.nan], [1.0, math.nan, 3.0]])  # fmt: skip
def test_targets_that_do_not_rise_are_refused(targets: list[float]) -> None:
    with pytest.raises(SpaceError, match="positive, finite and rising"):
        check_targets(targets)
