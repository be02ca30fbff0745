from __future__ import annotations

from functools import cache

import torch

from pipeline.generator.generator import ArchitectureGenerator
from pipeline.generator.levels import level_weights
from pipeline.generator.settling import ON_TARGET, candidates, grid, lag, settle
from pipeline.generator.soft_cost import SoftCost
from tests.pipeline.generator.tables import blocks

TABLE = blocks([[1.0, 2.0, 4.0, 7.0]] * 10)
TARGETS = (20.0, 35.0, 50.0)
COST = SoftCost(TABLE, "macs")


def fresh(seed: int = 0) -> ArchitectureGenerator:
    torch.manual_seed(seed)
    generator = ArchitectureGenerator(TABLE.decisions, n_levels=3, hidden=32)
    for head in generator.heads:
        torch.nn.init.normal_(head.weight, std=0.3)  # type: ignore[arg-type]
    return generator


@cache
def settled() -> ArchitectureGenerator:
    generator = fresh()
    settle(generator, COST, TARGETS, per_gap=2)
    return generator


def missed(generator: ArchitectureGenerator, target: float) -> float:
    arch = generator.argmax(level_weights(TARGETS, target))
    return abs(TABLE.cost(arch, "macs") / target - 1)


def test_a_grid_goes_from_the_lowest_level_to_the_highest_by_even_steps() -> None:
    points = grid(TARGETS, 5).double() @ torch.tensor(TARGETS).double()
    assert torch.allclose(points, torch.linspace(20.0, 50.0, 11).double())
    assert grid([3.0], 4).tolist() == [[1.0]]


def test_an_anchor_is_the_most_probable_of_the_draws_that_are_on_target() -> None:
    generator, level = fresh(), level_weights(TARGETS, 35.0)
    target = torch.tensor([35.0]).double()
    drawn = candidates(generator, COST, level[None], target, rng=torch.Generator().manual_seed(1))
    (genes,) = drawn.anchors().tolist()
    assert abs(TABLE.column("macs", [genes])[0] / 35.0 - 1) <= ON_TARGET
    archs = [TABLE.arch(g) for g in drawn.genes[0].tolist()]
    fitting = [a for a in archs if abs(TABLE.cost(a, "macs") / 35.0 - 1) <= ON_TARGET]
    assert len(set(fitting)) > 3
    chances = generator.log_probability([TABLE.arch(genes), *fitting], level)
    assert chances[0] == chances.max()


def test_where_no_draw_is_on_target_the_nearest_one_is_the_anchor() -> None:
    generator, level = fresh(), level_weights(TARGETS, 50.0)
    target = torch.tensor([69.9]).double()  # more than the most expensive architecture
    drawn = candidates(generator, COST, level[None], target, rng=torch.Generator().manual_seed(1))
    (genes,) = drawn.anchors().tolist()
    costs = TABLE.column("macs", drawn.genes[0].numpy())
    assert TABLE.column("macs", [genes])[0] == costs.max()


def test_where_no_draw_is_on_target_an_architecture_from_elsewhere_is_the_anchor() -> None:
    generator, level = fresh(), torch.eye(3)[2:]
    with torch.no_grad():
        for head in generator.heads:
            head.bias.copy_(torch.tensor([2.0, 0.0, 0.0, 0.0]))  # type: ignore[operator]
    fitting = torch.tensor([[3] * 5 + [2] * 3 + [1] + [0]])  # 35 + 12 + 2 + 1
    settle(generator, COST, TARGETS, per_gap=1, on_target=fitting.expand(3, 1, -1))
    assert generator.argmax(level[0]) == TABLE.arch(fitting[0].tolist())


def test_the_generator_is_held_to_its_draws_near_the_target() -> None:
    generator, level = fresh(), level_weights(TARGETS, 35.0)
    rng = torch.Generator().manual_seed(1)
    drawn = candidates(generator, COST, level[None], torch.tensor([35.0]).double(), rng=rng)
    held = [drawn.some(rng) for _ in range(20)]
    assert all((abs(TABLE.column("macs", g.numpy()) / 35.0 - 1) <= 0.02).all() for g in held)
    assert len({tuple(g.flatten().tolist()) for g in held}) > 10


def test_settling_makes_the_argmax_cost_what_levels_and_points_between_say() -> None:
    points = (grid(TARGETS, 2).double() @ torch.tensor(TARGETS).double()).tolist()
    before = max(missed(fresh(), point) for point in points)
    after = [missed(settled(), point) for point in points]
    assert before > 0.2
    assert max(after) < 0.03  # costs are whole numbers: 0.5 of 20 is 2.5 %


def test_settling_hardly_changes_the_draws() -> None:
    level = level_weights(TARGETS, 35.0)
    before = sum(fresh().entropies(level).values())
    assert sum(settled().entropies(level).values()) > 0.9 * before


def test_an_anchor_that_leads_everywhere_lacks_nothing_and_any_other_one_does() -> None:
    generator = fresh()
    with torch.no_grad():
        for head in generator.heads:
            head.bias.copy_(torch.tensor([0.0, 2.0, 0.0, 0.0]))  # type: ignore[operator]
            head.weight.zero_()  # type: ignore[operator]
    level = torch.eye(3)[:1]
    assert lag(generator, level, torch.ones(1, 10, dtype=torch.long)).item() == 0.0
    one_off = torch.ones(1, 10, dtype=torch.long)
    one_off[0, 4] = 3
    assert abs(lag(generator, level, one_off).item() - 2.1) < 1e-5


def test_settling_is_the_same_every_time_and_uses_no_global_random_numbers() -> None:
    first, second = fresh(), fresh()
    state = torch.random.get_rng_state()
    settle(first, COST, TARGETS, max_steps=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(7)
    settle(second, COST, TARGETS, max_steps=3)
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
