from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latency_tables.arch import Arch
from latency_tables.errors import UsageError
from pipeline.randomness import numpy_generator
from pipeline.spaces.base import Space, Supernet
from pipeline.strategies.sumnas import SUMNAS, SUMNASOptions, weights_of
from pipeline.strategies.sumnas import sumnas as make_sumnas
from pipeline.training.config import OptimizerConfig
from tests.pipeline.strategies.steps import (
    LR,
    assert_a_killed_run_ends_with_the_same_bits,
    assert_equal_weights,
    move,
    path_gradients,
    plain,
    run,
    twin,
)
from tests.pipeline.training.toys import toy_config, toy_space, toy_supernet


def sumnas(space: Space, **options: Any) -> SUMNAS:
    return make_sumnas(space=space, supernet=toy_supernet(space), seed=0, options=options)


def inner_steps(supernet: Supernet, space: Space, index: int, n: int) -> None:
    """n plain SGD steps on the paths and batches of step ``index``."""
    rng = numpy_generator(0, "training", "step", index)
    for i in range(n):
        move(supernet, path_gradients(supernet, space.sample(rng), index * n + i))


@pytest.mark.parametrize(("n", "epsilon"), [(2, 0.25), (3, 0.5), (1, 1.0)])
def test_two_steps_equal_inner_and_outer_updates_by_hand(
    tmp_path: Path, n: int, epsilon: float
) -> None:
    space = toy_space()
    supernet, expected = toy_supernet(space), twin(space)
    strategy = sumnas(space, inner_steps=n, outer_rate=epsilon)
    run(tmp_path, strategy, space=space, supernet=supernet, config=plain(2))
    for index in range(2):
        start = weights_of(expected)
        inner_steps(expected, space, index, n)
        with torch.no_grad():
            for name, end in expected.named_parameters():
                end.copy_(start[name] + epsilon * (end - start[name]))
    assert_equal_weights(supernet, expected)


class OneWeight(Supernet):
    """A network of one number w. Path c has the loss (w − c)² / 2, whose gradient is w − c."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        return (self.w - float(arch["c"])) ** 2 / 2


class OutputIsLoss:
    """Stands in for a step on such a network."""

    rng = np.random.default_rng(0)

    def __init__(self, supernet: OneWeight) -> None:
        self.supernet = supernet

    def batch(self) -> Tensor:
        return torch.zeros(1)

    def loss(self, arch: Arch, batch: Tensor) -> Tensor:
        return self.supernet.forward(batch, arch).sum()


def test_two_steps_of_two_inner_updates_equal_numbers_worked_out_on_paper() -> None:
    """w = 0, targets 1 then 3, lr 0.1, ε = 0.5.

    step 1: 0 → 0 − 0.1 (0 − 1) = 0.1 → 0.1 − 0.1 (0.1 − 3) = 0.39; w = 0.5 · 0.39 = 0.195
    step 2: 0.195 → 0.2755 → 0.54795; w = 0.195 + 0.5 · 0.35295 = 0.371475
    """
    net = OneWeight()
    targets = iter([1.0, 3.0, 1.0, 3.0])

    class Targets:
        def sample(self, rng: object) -> Arch:
            return Arch({"c": next(targets)})

    options = SUMNASOptions(inner_steps=2, outer_rate=0.5)
    strategy = SUMNAS(Targets(), options)  # type: ignore[arg-type]
    seen = []
    for _ in range(2):
        for update in strategy.updates(OutputIsLoss(net)):  # type: ignore[arg-type]
            if update.optimizer == "outer":
                assert not callable(update.gradients)
                assert update.gradients is not None
                change = 0.5 * update.gradients["w"]
            else:
                (loss,) = update.losses
                net.zero_grad()
                loss().backward()  # type: ignore[no-untyped-call]
                assert net.w.grad is not None
                change = 0.1 * net.w.grad
            with torch.no_grad():
                net.w -= change
            seen.append(net.w.item())
    assert seen == pytest.approx([0.1, 0.39, 0.195, 0.2755, 0.54795, 0.371475], abs=1e-12)


def test_with_an_outer_rate_of_one_a_step_is_its_inner_updates(tmp_path: Path) -> None:
    space = toy_space()
    supernet, expected = toy_supernet(space), twin(space)
    strategy = sumnas(space, inner_steps=3, outer_rate=1.0)
    run(tmp_path, strategy, space=space, supernet=supernet, config=plain(2))
    inner_steps(expected, space, 0, 3)
    inner_steps(expected, space, 1, 3)
    assert_equal_weights(supernet, expected)


def test_weights_off_the_paths_stay_exactly_where_they_were(tmp_path: Path) -> None:
    space = toy_space()
    supernet, before = toy_supernet(space), toy_supernet(space)
    config = toy_config(steps=1, optimizer=OptimizerConfig(lr=LR, weight_decay=0.1))
    run(tmp_path, sumnas(space, inner_steps=1), space=space, supernet=supernet, config=config)
    arch = space.sample(numpy_generator(0, "training", "step", 0))
    used = {id(p) for p in supernet.subnet_parameters(arch)}
    others = [(k, p) for k, p in supernet.named_parameters() if id(p) not in used]
    assert others
    assert all(torch.equal(p, before.get_parameter(k)) for k, p in others)


def test_neither_momentum_nor_decay_nor_the_schedule_touches_the_outer_update() -> None:
    plan = sumnas(toy_space(), outer_rate=0.3).optimizers()["outer"]
    assert plan.optimizer is not None
    assert plan.schedule is not None
    assert (plan.optimizer.lr, plan.optimizer.momentum, plan.optimizer.weight_decay) == (0.3, 0, 0)
    assert plan.schedule.kind == "constant"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.5}, "'sumnas' has the options inner_steps, outer_rate"),
        ({"inner_steps": 0}, "inner_steps: .*greater than or equal to 1"),
        ({"outer_rate": 1.5}, "outer_rate: .*less than or equal to 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sumnas(toy_space(), **options)


def test_a_run_killed_between_inner_and_outer_update_ends_with_the_same_bits(
    tmp_path: Path,
) -> None:
    assert_a_killed_run_ends_with_the_same_bits(
        tmp_path, lambda space, net: sumnas(space, inner_steps=2)
    )
