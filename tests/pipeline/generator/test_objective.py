from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from latency_tables.cost_table import CostTable
from latency_tables.sampler import make_sampler
from pipeline.generator.config import GeneratorConfig
from pipeline.generator.generator import ArchitectureGenerator
from pipeline.generator.objective import GeneratorObjective
from pipeline.generator.soft_cost import SoftCost
from pipeline.spaces.policy import Policy
from tests.pipeline.generator.tables import blocks, even_targets, space_of, with_latency

TABLE = blocks([[1.0, 2.0, 4.0]] * 8)
TARGETS = (12.0, 18.0, 24.0)


def objective_of(
    table: CostTable = TABLE,
    targets: tuple[float, ...] = TARGETS,
    column: str = "macs",
    **settings: float,
) -> GeneratorObjective:
    torch.manual_seed(0)
    generator = ArchitectureGenerator(table.decisions, n_levels=len(targets), hidden=32)
    config = GeneratorConfig.model_validate(settings)
    return GeneratorObjective(generator, SoftCost(table, column), targets=targets, config=config)


def draws_of(objective: GeneratorObjective, n: int = 200) -> tuple[float, float]:
    """Mean miss of draws of all levels, and the mean entropy of an architecture."""
    levels = torch.eye(len(objective.targets)).repeat_interleave(n, dim=0)
    with torch.no_grad():
        draws = objective.generator.draws(levels, temperature=1.0)
    target = levels.double() @ torch.tensor(objective.targets).double()
    missed = (objective.cost.of(draws.one_hot) / target - 1).abs().mean().item()
    return missed, draws.entropies.sum(dim=1).mean().item()


def train(objective: GeneratorObjective, n_steps: int, progress: float) -> None:
    optimizer = torch.optim.Adam(objective.generator.parameters(), lr=1e-2)
    for _ in range(n_steps):
        optimizer.zero_grad()
        objective.loss(progress).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def reached(table: CostTable, column: str, steps: int) -> tuple[np.ndarray, float, float]:
    """Misses of the argmax before repair over the levels with 100 architectures within 1 %; the
    mean entropy of an architecture, and what it would be if all of those were equally likely."""
    targets = tuple(even_targets(table, column))
    torch.manual_seed(0)
    generator = ArchitectureGenerator(table.decisions, n_levels=len(targets))
    objective = GeneratorObjective(generator, SoftCost(table, column), targets=targets)
    objective.fit(steps)
    sampler = make_sampler(table, column)
    counts = np.array([sampler.count(0.99 * t, 1.01 * t) for t in targets])
    archs = [generator.argmax(level) for level in torch.eye(len(targets))]
    missed = np.abs(table.column(column, table.genes(archs)) / np.array(targets) - 1)
    entropy = draws_of(objective)[1]
    return missed[counts >= 100], entropy, float(np.log(counts[counts >= 100]).mean())


def test_after_training_the_argmax_is_on_target_before_any_repair() -> None:
    table = space_of("proxyless", "tiny", 16).cost_table()
    missed, entropy, most = reached(table, "macs", steps=30)
    assert len(missed) == 8
    assert missed.mean() <= 0.02
    assert missed.max() <= 0.05
    assert entropy > 0.8 * most > 0  # and it is not one architecture per level


@pytest.mark.long
@pytest.mark.parametrize("column", ["macs", "latency_ms"])
@pytest.mark.parametrize(
    ("name", "preset", "px"),
    [
        ("autoformer", "tiny", 224),
        ("attentivenas", "tiny", 16),
        ("bignas", "paper", 320),
        ("attentivenas", "paper", 288),
    ],
)
def test_the_argmax_is_on_target_in_every_space_for_macs_and_latency(
    name: str, preset: str, px: int, column: str
) -> None:
    table = with_latency(space_of(name, preset, px).cost_table())
    missed, entropy, most = reached(table, column, steps=300)
    assert missed.mean() <= 0.02
    assert missed.max() <= 0.05
    assert entropy > 0.7 * most


def test_training_on_the_resource_loss_alone_brings_draws_to_their_levels() -> None:
    objective = objective_of(imitation=0.0)
    before, _ = draws_of(objective)
    assert before > 0.15
    train(objective, 60, progress=0.5)
    assert draws_of(objective)[0] < 0.6 * before


def test_imitation_brings_draws_to_their_levels_and_keeps_them_diverse() -> None:
    taught, alone = objective_of(), objective_of(imitation=0.0)
    before, _ = draws_of(taught)
    for objective in (taught, alone):
        train(objective, 50, progress=0.1)
    missed, entropy = draws_of(taught)
    assert missed < 0.6 * before
    assert entropy > draws_of(alone)[1] + 0.2


@pytest.mark.long
def test_beside_a_task_the_generator_finds_better_architectures_that_are_on_target() -> None:
    """The task likes some choices: a toy loss that is linear in the policy."""
    objective = objective_of()
    likes = {d.label: 0.3 * torch.randn(3, generator=torch.Generator().manual_seed(i))
             for i, d in enumerate(TABLE.decisions)}  # fmt: skip

    def task_loss(arch_one_hot: Mapping[str, Tensor]) -> Tensor:
        return -torch.stack([(likes[k] * v).sum(dim=-1) for k, v in arch_one_hot.items()]).sum(0)

    optimizer = torch.optim.Adam(objective.generator.parameters(), lr=1e-2)
    for step in range(300):
        optimizer.zero_grad()
        level = torch.eye(3)[step % 3]
        policy = objective.generator.draw(level, temperature=1.0)
        loss = task_loss(policy.one_hot) + objective.loss(step / 300)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    missed = objective.settle()
    assert missed.mean <= 0.02
    rng, sampler = np.random.default_rng(0), make_sampler(TABLE, "macs")
    better = []
    for level, target in zip(torch.eye(3), TARGETS, strict=True):
        found = task_loss(Policy.of(objective.generator.argmax(level), TABLE.decisions).one_hot)
        others = sampler.sample_archs(rng, target, target, 50)
        losses = [task_loss(Policy.of(arch, TABLE.decisions).one_hot) for arch in others]
        better.append(np.mean([found.item() < loss.item() for loss in losses]))
    assert np.mean(better) > 0.8  # of the architectures of the same cost


def test_an_entropy_bonus_rewards_diverse_draws() -> None:
    losses = []
    for bonus in (0.0, 0.1):
        objective = objective_of(imitation=0.0, entropy_bonus=bonus)
        torch.manual_seed(1)
        losses.append(objective.loss(0.5).item())
    entropy = 8 * math.log(3)  # a fresh generator is uniform
    assert losses[0] - losses[1] == pytest.approx(0.1 * entropy, rel=1e-5)


def test_the_imitation_fades_and_task_and_resource_loss_remain() -> None:
    config = GeneratorConfig(imitation=2.0, imitation_until=0.5)
    assert [config.imitation_at(p) for p in (0.0, 0.25, 0.5, 1.0)] == [2.0, 1.0, 0.0, 0.0]
    losses = []
    for imitation in (2.0, 0.0):
        for progress in (0.0, 0.5):
            objective = objective_of(imitation=imitation)
            torch.manual_seed(1)
            losses.append(objective.loss(progress).item())
    likelihood = 8 * math.log(3)  # of whatever is imitated: a fresh generator is uniform
    assert losses[0] - losses[2] == pytest.approx(2.0 * likelihood, rel=0.01)
    assert losses[1] == losses[3]  # no imitation is left


def test_equal_seeds_give_equal_losses_and_a_resumed_training_goes_on_exactly() -> None:
    def train(objective: GeneratorObjective, first: int, last: int) -> list[float]:
        optimizer = torch.optim.SGD(objective.generator.parameters(), lr=0.05)
        losses = []
        for step in range(first, last):
            torch.manual_seed(step)
            loss = objective.loss(step / 12)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
        return losses

    whole, first, second = objective_of(), objective_of(), objective_of()
    expected = train(whole, 0, 12)
    found = train(first, 0, 8)
    second.generator.load_state_dict(first.generator.state_dict())
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert found + train(second, 8, 12) == expected


def test_one_level_alone_can_be_trained() -> None:
    assert objective_of(targets=(16.0,)).fit(5).worst == 0.0


def test_a_level_with_few_architectures_is_not_judged() -> None:
    """Costs 8 and 32 belong to one architecture each; nothing can be asked of targets beside."""
    objective = objective_of(targets=(8.4, 16.0, 24.0))
    assert not objective.judged[0]
    assert objective.judged.any()


def test_gradients_of_the_loss_reach_every_parameter() -> None:
    objective = objective_of()
    for head in objective.generator.heads:
        torch.nn.init.normal_(head.weight)  # type: ignore[arg-type]
    objective.loss(0.1).backward()  # type: ignore[no-untyped-call]
    gradients = {n: p.grad for n, p in objective.generator.named_parameters()}
    assert all(g is not None and g.abs().sum() > 0 for g in gradients.values())
