from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch

from latency_tables.arch import Arch, Decision
from latency_tables.errors import InvalidArchError, SpaceError
from pipeline.generator.generator import ArchitectureGenerator
from tests.pipeline.generator.tables import space_of

DECISIONS = (
    Decision(label="depth", choices=(1, 2)),
    Decision(label="block1", choices=("k3", "k5", "k7")),
    Decision(label="block2", choices=("k3", "k5", "k7")),
)
EVERY = [Arch.from_genes(DECISIONS, g) for g in itertools.product(range(2), range(3), range(3))]
LEVEL = torch.tensor([0.0, 1.0])


def uneven(seed: int = 0) -> ArchitectureGenerator:
    """A generator with opinions: choices differ in probability, by level and by earlier choice."""
    torch.manual_seed(seed)
    generator = ArchitectureGenerator(DECISIONS, n_levels=2, hidden=16)
    for head in generator.heads:
        torch.nn.init.normal_(head.weight, std=1.5)  # type: ignore[arg-type]
    return generator


def test_a_fresh_generator_gives_every_architecture_the_same_probability() -> None:
    generator = ArchitectureGenerator(DECISIONS, n_levels=2)
    assert generator.log_probability(EVERY, LEVEL).exp().tolist() == pytest.approx([1 / 18] * 18)
    expected = [math.log(2), math.log(3), math.log(3)]
    assert list(generator.entropies(LEVEL, n=4).values()) == pytest.approx(expected)


def test_probabilities_of_all_architectures_add_up_to_one() -> None:
    probabilities = uneven().log_probability(EVERY, LEVEL).exp()
    assert probabilities.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert probabilities.max() > 3 * probabilities.min()


@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_draws_follow_the_probabilities_at_any_temperature(temperature: float) -> None:
    generator, n = uneven(), 20_000
    torch.manual_seed(1)
    with torch.no_grad():
        draws = generator.draws(LEVEL.expand(n, -1), temperature=temperature)
    seen = Counter(draws.archs)
    for arch, p in zip(EVERY, generator.log_probability(EVERY, LEVEL).exp().tolist(), strict=True):
        assert abs(seen[arch] / n - p) < 5 * math.sqrt(p * (1 - p) / n)


def test_draws_say_their_own_probabilities_and_entropies() -> None:
    generator = uneven()
    draws = generator.draws(LEVEL.expand(50, -1), temperature=1.0)
    alone = generator.log_probability(draws.archs, LEVEL)
    assert torch.allclose(draws.log_probabilities.sum(dim=1), alone, atol=1e-5)
    p = generator.log_probability(EVERY, LEVEL).exp()
    whole = sum(generator.entropies(LEVEL, n=4_000).values())
    assert whole == pytest.approx(-(p * p.log()).sum().item(), rel=0.03)


def test_a_choice_depends_on_the_choices_before_it() -> None:
    generator = uneven()
    p = generator.log_probability(EVERY, LEVEL).exp().reshape(2, 3, 3)
    last = p / p.sum(dim=-1, keepdim=True)  # of block2, given depth and block1
    assert (last[0, 0] - last[0, 1]).abs().max() > 0.01


def test_argmax_takes_the_most_probable_choice_after_the_choices_made() -> None:
    generator = uneven()
    p = generator.log_probability(EVERY, LEVEL).exp().reshape(2, 3, 3)
    depth = int(p.sum(dim=(1, 2)).argmax())
    block1 = int(p[depth].sum(dim=1).argmax())
    genes = (depth, block1, int(p[depth, block1].argmax()))
    assert generator.argmax(LEVEL) == Arch.from_genes(DECISIONS, genes)


def test_a_policy_is_one_hot_in_value_and_soft_in_gradient() -> None:
    generator = uneven()
    policy = generator.draw(LEVEL, temperature=2.0)
    for decision in DECISIONS:
        vector = policy.one_hot[decision.label]
        assert sorted(vector.tolist()) == [0.0] * (len(decision.choices) - 1) + [1.0]
    policy.one_hot["block2"][0].backward()
    gradients = {n: p.grad for n, p in generator.named_parameters() if p.grad is not None}
    assert all(g.abs().sum() > 0 for n, g in gradients.items() if n.startswith("cell"))


def test_gradients_reach_the_level_for_the_pathwise_shift() -> None:
    level = LEVEL.clone().requires_grad_()
    uneven().draw(level, temperature=1.0).one_hot["block2"][0].backward()
    assert level.grad is not None
    assert (level.grad != 0).all()


def test_a_lower_temperature_makes_the_soft_part_harder() -> None:
    """At a low temperature the gradient concentrates where two choices are nearly tied."""
    generator = uneven()
    for temperature, hard in ((0.01, True), (50.0, False)):
        torch.manual_seed(3)
        draws = generator.draws(LEVEL.expand(64, -1), temperature=temperature)
        (grad,) = torch.autograd.grad(draws.one_hot["depth"][:, 0].sum(), generator.heads[0].bias)
        share = grad.abs().max().item() * temperature / 64  # mean of p(1 - p)
        assert (share < 0.05) == hard


def test_equal_seeds_sample_equal_architectures_and_leave_the_global_generator_alone() -> None:
    generator = uneven()
    before = torch.random.get_rng_state()
    first = generator.sample(LEVEL, 30, seed=5)
    generator.entropies(LEVEL)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first == generator.sample(LEVEL, 30, seed=5) != generator.sample(LEVEL, 30, seed=6)


def test_a_draw_comes_from_the_global_generator() -> None:
    generator = uneven()
    runs = []
    for _ in range(2):
        torch.manual_seed(9)
        runs.append([generator.draw(LEVEL, temperature=1.0).arch for _ in range(8)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 1


def test_inactive_decisions_can_be_left_out_of_probability_and_entropy() -> None:
    generator = uneven()
    arch = EVERY[0]  # depth 1: block2 means nothing
    active = torch.tensor([[True, True, False]])
    p = generator.log_probability(EVERY, LEVEL).exp().reshape(2, 3, 3)
    found = generator.log_probability([arch], LEVEL, active=active).exp().item()
    assert found == pytest.approx(p[0, 0].sum().item(), rel=1e-5)
    entropies = generator.entropies(LEVEL, n=5, active=active.expand(5, -1))
    assert entropies["block2"] == 0 < entropies["block1"]


def test_each_architecture_may_have_a_level_of_its_own() -> None:
    generator, levels = uneven(), torch.eye(2)
    together = generator.log_probability(EVERY[:2], levels)
    for i in range(2):
        alone = generator.log_probability([EVERY[i]], levels[i]).item()
        assert together[i].item() == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "preset", "px"),
    [
        ("autoformer", "tiny", 224),
        ("bignas", "tiny", 16),
        ("attentivenas", "tiny", 16),
        ("shufflenetv2", "tiny", 16),
        ("mobilenetv2", "tiny", 16),
        ("mobilenetv2_widths", "tiny", 16),
        ("nasbench_macro", "tiny", 8),
        ("nasbench201", "tiny", 8),
    ],
)
def test_it_writes_architectures_of_every_space(name: str, preset: str, px: int) -> None:
    space = space_of(name, preset, px)
    generator = ArchitectureGenerator(space.decisions, n_levels=3)
    level = torch.tensor([0.0, 0.5, 0.5])
    for arch in [generator.argmax(level), *generator.sample(level, 20, seed=0)]:
        space.validate(arch)


def test_a_foreign_architecture_has_no_probability() -> None:
    with pytest.raises(InvalidArchError, match="'block1' cannot be 'k9'"):
        uneven().log_probability([EVERY[0].replace(block1="k9")], LEVEL)


def test_no_levels_or_no_decisions_are_refused() -> None:
    with pytest.raises(SpaceError, match="3 and 0"):
        ArchitectureGenerator(DECISIONS, n_levels=0)
    with pytest.raises(SpaceError, match="0 and 2"):
        ArchitectureGenerator((), n_levels=2)
