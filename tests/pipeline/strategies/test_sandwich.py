from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latency_tables.arch import Arch
from latency_tables.errors import UsageError
from pipeline.spaces.base import Space, Supernet
from pipeline.strategies.distillation import (
    DistillationOptions,
    InPlaceTeacher,
    alpha_divergence,
    has_dropout,
    kl_divergence,
)
from pipeline.strategies.passes import subnet_logits
from pipeline.strategies.sandwich import Sandwich
from pipeline.strategies.sandwich import sandwich as make_sandwich
from tests.pipeline.strategies.steps import (
    assert_a_killed_run_ends_with_the_same_bits,
    generator,
    gradients,
    hand_step,
    plain,
    run,
)
from tests.pipeline.training.toys import ToyStream, toy_space, toy_supernet


def sandwich(space: Space, **options: Any) -> Sandwich:
    return make_sandwich(space=space, supernet=toy_supernet(space), seed=0, options=options)


def random_logits(*names: str) -> tuple[Tensor, Tensor]:
    """Student and teacher (6, 5) in float64; the student takes a gradient."""
    rng = generator("logits", *names)
    student = torch.tensor(rng.normal(size=(6, 5)) * 2).requires_grad_()
    return student, torch.tensor(rng.normal(size=(6, 5)))


# -- the rule ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nasbench_macro", "shufflenetv2"])
def test_the_outer_subnets_have_the_most_and_the_fewest_macs(name: str) -> None:
    space = toy_space(name)
    table, strategy = space.cost_table(), sandwich(space)
    rng = generator("macs")
    macs = [table.cost(space.sample(rng), "macs") for _ in range(200)]
    assert table.cost(strategy.smallest, "macs") == table.minimum("macs")[0] <= min(macs)
    assert table.cost(strategy.largest, "macs") == table.maximum("macs")[0] >= max(macs)


def test_the_gradient_of_a_step_is_the_sum_of_four_gradients_computed_separately() -> None:
    space = toy_space()
    supernet, strategy = toy_supernet(space).double().train(), sandwich(space)
    (update,) = strategy.updates(hand_step(supernet, double=True, label_smoothing=0.1))
    found = gradients(supernet, list(update.losses))

    rng, batch = hand_step(supernet).rng, ToyStream().batch(0)
    images = batch.images.double()
    students = [space.sample(rng), space.sample(rng), strategy.smallest]
    with torch.no_grad():
        p = supernet(images, strategy.largest).softmax(dim=1)

    def taught(arch: Arch) -> Tensor:
        log_q = supernet(images, arch).log_softmax(dim=1)
        return F.kl_div(log_q, p, reduction="batchmean")

    def supervised() -> Tensor:
        return F.cross_entropy(
            supernet(images, strategy.largest), batch.labels, label_smoothing=0.1
        )

    separate = [
        gradients(supernet, [loss])
        for loss in (supervised, *(partial(taught, a) for a in students))
    ]
    assert found.keys() == set().union(*separate)
    for name, gradient in found.items():
        total = sum(g[name] for g in separate if name in g)
        torch.testing.assert_close(gradient, total, rtol=1e-10, atol=1e-14)


def test_labels_are_seen_by_the_largest_subnet_only() -> None:
    space = toy_space()
    supernet, strategy = toy_supernet(space).train(), sandwich(space)
    step = hand_step(supernet)
    (update,) = strategy.updates(step)
    first, *others = [loss() for loss in update.losses]
    assert len(others) == 3
    teacher_loss = step.loss(strategy.largest, ToyStream().batch(0))
    torch.testing.assert_close(first, teacher_loss)
    # a student that answers as its teacher does has nothing to learn, whatever the labels are
    teacher = InPlaceTeacher(step, strategy.largest, ToyStream().batch(0), DistillationOptions())
    teacher.loss()
    assert teacher.distil(strategy.largest).item() == pytest.approx(0.0, abs=1e-6)


def test_nothing_flows_back_into_the_teacher() -> None:
    space = toy_space()
    supernet, strategy = toy_supernet(space).train(), sandwich(space)
    teacher = InPlaceTeacher(
        hand_step(supernet), strategy.largest, ToyStream().batch(0), DistillationOptions()
    )
    teacher.loss()
    moved = gradients(supernet, [lambda: teacher.distil(strategy.smallest)])
    used = {id(p) for p in supernet.subnet_parameters(strategy.smallest)}
    assert set(moved) == {k for k, p in supernet.named_parameters() if id(p) in used}


def test_no_random_subnet_leaves_the_two_outer_ones() -> None:
    (update,) = sandwich(toy_space(), n_random=0).updates(hand_step(toy_supernet(toy_space())))
    assert len(update.losses) == 2


def test_a_sandwich_lowers_the_loss_of_its_teacher(tmp_path: Path) -> None:
    space = toy_space()
    supernet, strategy = toy_supernet(space), sandwich(space)
    before, batch = hand_step(supernet.train()), ToyStream().batch(50)
    with torch.no_grad():
        start = before.loss(strategy.largest, batch).item()
    run(tmp_path, strategy, space=space, supernet=supernet, config=plain(8))
    with torch.no_grad():
        assert before.loss(strategy.largest, batch).item() < 0.8 * start


# -- dropout -------------------------------------------------------------------------------


class Dropping(Supernet):
    """A linear network behind dropout; remembers its outputs and modes."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.linear = nn.Dropout(0.5), nn.Linear(64, 4)
        self.seen: list[tuple[bool, Tensor]] = []

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        logits: Tensor = self.linear(self.dropout(x.flatten(1)))
        self.seen.append((self.dropout.training, logits.detach()))
        return logits


@pytest.mark.parametrize("teacher_dropout", [False, True])
def test_the_teacher_answers_without_dropout_unless_asked_to(teacher_dropout: bool) -> None:
    net = Dropping().train()
    options = DistillationOptions(teacher_dropout=teacher_dropout)
    teacher = InPlaceTeacher(hand_step(net), Arch({}), ToyStream().batch(0), options)
    teacher.loss()
    student = teacher.distil(Arch({}))
    assert [mode for mode, _ in net.seen] == (
        [True, False] if teacher_dropout else [True, False, False]
    )
    taught_by = net.seen[0 if teacher_dropout else 1][1]
    torch.testing.assert_close(student, kl_divergence(net.seen[-1][1], taught_by))
    assert (student.item() > 1e-3) == teacher_dropout
    assert net.training
    assert net.dropout.training


def test_networks_without_dropout_cost_no_pass_more() -> None:
    assert has_dropout(Dropping())
    assert has_dropout(toy_supernet(toy_space("shufflenetv2")))
    assert not has_dropout(toy_supernet(toy_space()))
    assert not has_dropout(nn.Dropout(0.0))


def test_a_student_before_its_teacher_is_a_mistake_that_is_noticed() -> None:
    net = Dropping()
    teacher = InPlaceTeacher(hand_step(net), Arch({}), ToyStream().batch(0), DistillationOptions())
    with pytest.raises(RuntimeError, match="comes first"):
        teacher.distil(Arch({}))


# -- divergences ---------------------------------------------------------------------------


def test_kl_is_that_of_torch() -> None:
    student, teacher = random_logits("kl")
    expected = F.kl_div(
        student.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="batchmean"
    )
    torch.testing.assert_close(kl_divergence(student, teacher), expected)


@pytest.mark.parametrize("alpha", [-1.0, -0.3, 0.4, 0.999, 1.0, 2.0])
def test_an_unclipped_alpha_divergence_has_the_value_and_gradient_of_its_definition(
    alpha: float,
) -> None:
    student, teacher = random_logits("alpha")
    p, q = teacher.softmax(1), student.softmax(1)
    if alpha == 1:
        expected = (p * (p / q).log()).sum(1).mean()
    else:
        expected = (q * ((p / q) ** alpha - 1)).sum(1).mean() / (alpha * (alpha - 1))
    found = alpha_divergence(student, teacher, alpha=alpha, ratio_clip=1e9)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, student)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, student)[0])


@pytest.mark.parametrize("alpha", [0.0, 1e-6, -1e-6])
def test_alpha_zero_is_the_divergence_the_other_way_round_in_fp32_too(alpha: float) -> None:
    student, teacher = (x.detach().float() for x in random_logits("zero"))
    student.requires_grad_()
    p, q = teacher.softmax(1), student.softmax(1)
    reverse = (q * (q / p).log()).sum(1).mean()
    found = alpha_divergence(student, teacher, alpha=alpha)
    torch.testing.assert_close(found, reverse, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(found, student)
    expected = torch.autograd.grad(reverse, student)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def test_the_ratio_is_clipped_in_the_gradient() -> None:
    # p = (0.99, 0.01), q = (0.5, 0.5): (q / p) = 0.505 and 50 → 5, at α = −1
    student = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.99, 0.01]], dtype=torch.float64).log()
    (gradient,) = torch.autograd.grad(alpha_divergence(student, teacher, alpha=-1.0), student)
    # −(1/α) Σ q r ∇ log q = Σ 0.5 r_i (e_i − q)
    r = torch.tensor([0.5 / 0.99, 5.0], dtype=torch.float64)
    expected = 0.5 * r - 0.5 * (0.5 * r).sum()
    torch.testing.assert_close(gradient[0], expected)


def test_the_larger_divergence_of_a_batch_counts() -> None:
    space = toy_space()
    step, batch = hand_step(toy_supernet(space).train()), ToyStream().batch(0)
    strategy, options = sandwich(space), DistillationOptions(divergence="alpha")
    teacher = InPlaceTeacher(step, strategy.largest, batch, options)
    teacher.loss()
    found = teacher.distil(strategy.smallest)
    answers, taught = (
        subnet_logits(step, arch, batch).detach() for arch in (strategy.smallest, strategy.largest)
    )
    low, high = (alpha_divergence(answers, taught, alpha=alpha) for alpha in (-1.0, 1.0))
    assert found.item() == pytest.approx(max(low.item(), high.item()), rel=1e-5)
    assert abs(low.item() - high.item()) > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"random": 3}, "'sandwich' has the options divergence, .*n_random"),
        ({"divergence": "js"}, "divergence: .*'kl' or 'alpha'"),
        ({"ratio_clip": 0.5}, "ratio_clip: .*greater than or equal to 1"),
        ({"alpha_min": 0.5, "alpha_max": 0.5}, "must be less than"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sandwich(toy_space(), **options)


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    assert_a_killed_run_ends_with_the_same_bits(
        tmp_path, lambda space, net: sandwich(space, divergence="alpha")
    )
