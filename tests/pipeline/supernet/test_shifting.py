"""Gradients, steps and state of Supernet Shifting on small supernets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latency_tables.arch import Arch
from latency_tables.errors import (
    CheckpointError,
    DivergedError,
    InvalidArchError,
    TrainingError,
    UsageError,
)
from pipeline.search.shifting_config import ShiftingConfig
from pipeline.spaces import SPACES
from pipeline.spaces.base import Space, Supernet
from pipeline.supernet.scoring import Scorer
from pipeline.supernet.shifting import Shifter
from pipeline.supernet.split import SplitSupernet
from pipeline.supernet.weights import load_supernet, save_supernet
from pipeline.training.config import TeacherConfig
from pipeline.training.teacher import Teacher
from tests.pipeline.spaces.test_one_function import lively_supernet, small
from tests.pipeline.training.toys import ToyBatch, ToyStream, toy_space, toy_supernet

QUICK = ShiftingConfig(batches=2, images_per_batch=16)


def shifter(
    space: Space, supernet: Supernet, config: ShiftingConfig = QUICK, **more: Any
) -> Shifter:
    return Shifter(space, supernet, ToyStream(), config, seed=3, **more)


def archs(space: Space, n: int, seed: int = 0) -> list[Arch]:
    rng = np.random.default_rng(seed)
    return [space.sample(rng) for _ in range(n)]


def copies(tensors: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors}


def moved(before: dict[str, Tensor], supernet: Supernet) -> set[str]:
    return {n for n, p in supernet.named_parameters() if not torch.equal(p, before[n])}


class Pictures:
    """Batches of noise in the shape of a space."""

    batches_per_epoch = 4

    def __init__(self, space: Space) -> None:
        self.space = space

    def batch(self, number: int, /) -> ToyBatch:
        generator = torch.Generator().manual_seed(number)
        images = torch.randn(8, *self.space.input_shape, generator=generator)
        labels = torch.randint(self.space.n_classes, (8,), generator=generator)
        return ToyBatch(images=images, labels=labels)


@pytest.mark.parametrize("name", SPACES)
def test_a_step_moves_what_its_candidates_use_and_no_buffer(name: str) -> None:
    space = small(name)
    supernet = lively_supernet(space)  # fresh ones have branches that start at zero
    pictures = Pictures(space)
    scorer = Scorer(space, supernet, [pictures.batch(7)], [pictures.batch(8)])
    one, two = archs(space, 2, seed=1)
    before_score = scorer.score(one).loss
    weights, buffers = copies(supernet.named_parameters()), copies(supernet.named_buffers())
    config = ShiftingConfig(batches=2, images_per_batch=8, lr=0.05)
    shifting = Shifter(space, supernet, pictures, config, seed=0)
    for place, arch in enumerate((one, two)):
        shifting.learn(arch, 2 * place)
    assert moved(weights, supernet) == set()  # everything waits for the step
    shifting.step()
    used = {id(p) for arch in (one, two) for p in supernet.subnet_parameters(arch)}
    touched = {n for n, p in supernet.named_parameters() if id(p) in used}
    assert {key.rsplit("/", 1)[0] for key in shifting._optimizer.state_tensors()} == touched
    # biases in front of a batch norm have no slope
    matrices = {n for n, p in supernet.named_parameters() if p.ndim > 1}
    assert touched & matrices <= moved(weights, supernet) <= touched
    assert all(torch.equal(b, buffers[n]) for n, b in supernet.named_buffers())
    assert all(p.grad is None for p in supernet.parameters())
    fresh = Scorer(space, supernet, [pictures.batch(7)], [pictures.batch(8)])
    assert scorer.score(one) == fresh.score(one)  # pieces that were cut before are shifted, too
    assert scorer.score(one).loss != before_score


# -- gradients -----------------------------------------------------------------------------------


def gradient_by_hand(
    supernet: Supernet, arch: Arch, numbers: range, *, smoothing: float = 0.0
) -> dict[str, Tensor]:
    """The mean over batches of the gradient of the cross entropy."""
    supernet.zero_grad(set_to_none=True)
    supernet.train()
    for number in numbers:
        batch = ToyStream().batch(number)
        loss = F.cross_entropy(
            supernet(batch.images, arch), batch.labels, label_smoothing=smoothing
        )
        (loss / len(numbers)).backward()
    found = {n: p.grad.clone() for n, p in supernet.named_parameters() if p.grad is not None}
    supernet.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("normalise", ["sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_step_is_sgd_with_the_gradients_of_all_candidates(normalise, smoothing) -> None:
    space = toy_space()  # without dropout
    supernet, twin = toy_supernet(space), toy_supernet(space)
    config = QUICK.model_copy(update={"normalise": normalise, "lr": 0.1, "weight_decay": 0.01})
    shifting = shifter(space, supernet, config, label_smoothing=smoothing)
    population = archs(space, 3)
    total: dict[str, Tensor] = {}
    for place, arch in enumerate(population):
        numbers = range(2 * place, 2 * place + 2)
        shifting.learn(arch, numbers[0])
        for name, g in gradient_by_hand(twin, arch, numbers, smoothing=smoothing).items():
            total[name] = total.get(name, torch.zeros_like(g)) + g
    shifting.step()
    share = 1 if normalise == "sum" else 3
    for name, parameter in twin.named_parameters():
        expected = parameter.detach()
        if name in total:
            decay = 0.01 if parameter.ndim > 1 else 0.0
            expected = expected - 0.1 * (total[name] / share + decay * expected)
        found = supernet.get_parameter(name).detach()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert shifting.steps == 1


def test_what_no_candidate_uses_keeps_its_weights_and_its_momentum() -> None:
    space = toy_space()
    supernet = toy_supernet(space)
    shifting = shifter(space, supernet, QUICK.model_copy(update={"lr": 0.1, "weight_decay": 0.1}))
    one, two = archs(space, 2)
    shifting.learn(one, 0)
    shifting.step()
    weights = copies(supernet.named_parameters())
    momenta = copies(shifting._optimizer.state_tensors().items())
    shifting.learn(two, 2)
    shifting.step()
    used = {id(p) for p in supernet.subnet_parameters(two)}
    idle = [n for n, p in supernet.named_parameters() if id(p) not in used]
    known = [n for n in idle if f"{n}/momentum_buffer" in momenta]
    assert known  # the first candidate used them
    assert moved(weights, supernet).isdisjoint(idle)
    after = shifting._optimizer.state_tensors()
    assert all(
        torch.equal(after[f"{n}/momentum_buffer"], momenta[f"{n}/momentum_buffer"]) for n in known
    )


def test_immediate_mode_steps_after_every_batch() -> None:
    space = toy_space()
    supernet, twin = toy_supernet(space), toy_supernet(space)
    config = QUICK.model_copy(
        update={"mode": "immediate", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}
    )
    shifting = shifter(space, supernet, config)
    arch = archs(space, 1)[0]
    shifting.learn(arch, 5)
    assert shifting.steps == 2
    for number in (5, 6):
        gradient = gradient_by_hand(twin, arch, range(number, number + 1))
        with torch.no_grad():
            for name, g in gradient.items():
                twin.get_parameter(name).sub_(0.1 * g)
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(supernet.get_parameter(name), parameter)
    shifting.step()
    assert shifting.steps == 2


def test_a_teacher_has_a_say() -> None:
    space = toy_space()
    arch = archs(space, 1)[0]
    answers = Teacher(
        lambda images: torch.full((len(images), 4), 0.25).log(),
        TeacherConfig(model="any", weight=1.0),
        sha256="",
    )
    results = []
    for teacher in (None, answers):
        supernet = toy_supernet(space)
        shifting = shifter(space, supernet, teacher=teacher)
        shifting.learn(arch, 0)
        results.append(dict(shifting._sums))
    assert any(not torch.allclose(results[0][n], results[1][n]) for n in results[0])


def test_dropout_follows_from_the_batch_and_moves_no_random_state() -> None:
    space = toy_space("shufflenetv2")  # has dropout
    arch = archs(space, 1)[0]
    state = torch.get_rng_state()
    sums = []
    for first in (0, 0, 2):
        supernet = toy_supernet(space)
        shifting = shifter(space, supernet)
        torch.rand(first)  # other numbers in between
        torch.set_rng_state(state)
        shifting.learn(arch, first)
        assert torch.equal(torch.get_rng_state(), state)
        sums.append(shifting._sums)
    assert all(torch.equal(sums[0][n], sums[1][n]) for n in sums[0])
    assert any(not torch.equal(sums[0][n], sums[2][n]) for n in sums[0])


def test_residual_branches_are_dropped_as_in_training() -> None:
    space = toy_space("mobilenetv2")
    arch = archs(space, 1)[0]
    sums = []
    for rate in (0.0, 0.5):
        shifting = shifter(space, toy_supernet(space), drop_path=rate)
        shifting.learn(arch, 0)
        sums.append(shifting._sums)
    assert any(not torch.allclose(sums[0][n], sums[1][n]) for n in sums[0])


def test_only_the_part_of_a_split_supernet_moves_that_a_candidate_belongs_to() -> None:
    space = toy_space()
    supernet = SplitSupernet(space, [space.decisions[0].label], toy_supernet(space))
    weights = copies(supernet.named_parameters())
    arch = archs(space, 1)[0]
    shifting = shifter(space, supernet)
    shifting.learn(arch, 0)
    shifting.step()
    part = space.decisions[0].choices.index(arch[space.decisions[0].label])
    names = moved(weights, supernet)
    assert names
    assert all(name.startswith(f"parts.{part}.") for name in names)


def test_only_the_parameters_that_may_move_do() -> None:
    space = toy_space()
    supernet = toy_supernet(space)
    head = [n for n, _ in supernet.named_parameters()][-2:]
    weights = copies(supernet.named_parameters())
    shifting = shifter(space, supernet, parameters=head)
    shifting.learn(archs(space, 1)[0], 0)
    shifting.step()
    assert moved(weights, supernet) == set(head)
    assert all(p.requires_grad for p in supernet.parameters())


def test_a_parameter_that_is_not_there_cannot_be_moved() -> None:
    space = toy_space()
    with pytest.raises(UsageError, match="no parameter 'head_weights'"):
        shifter(space, toy_supernet(space), parameters=["head_weights"])


def test_an_arch_of_another_space_is_refused() -> None:
    space = toy_space()
    with pytest.raises(InvalidArchError):
        shifter(space, toy_supernet(space)).learn(archs(space, 1)[0].replace(unknown="k3"), 0)


def test_modes_of_the_supernet_are_left_as_they_were() -> None:
    space = toy_space("shufflenetv2")
    supernet = toy_supernet(space).eval()
    shifter(space, supernet).learn(archs(space, 1)[0], 0)
    assert not any(module.training for module in supernet.modules())
    norms = [m for m in supernet.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norm.track_running_stats for norm in norms)


# -- faults --------------------------------------------------------------------------------------


def test_a_gradient_that_is_not_finite_is_refused_before_it_is_added() -> None:
    space = toy_space()
    supernet = toy_supernet(space)
    shifting = shifter(space, supernet)
    good, bad = archs(space, 2)
    shifting.learn(good, 0)
    sums = copies(shifting._sums.items())
    with torch.no_grad():
        supernet.subnet_parameters(bad)[0].fill_(math.nan)
    with pytest.raises(
        DivergedError, match=r"not finite.*while shifting \(learning rate"
    ) as caught:
        shifting.learn(bad, 2)
    assert "--set search.shifting.lr=1e-05" in str(caught.value.hint)
    assert all(torch.equal(sums[n], g) for n, g in shifting._sums.items())
    assert all(p.grad is None for p in supernet.parameters())


def test_weights_that_a_step_destroys_are_refused() -> None:
    space = toy_space()
    supernet = toy_supernet(space)
    shifting = shifter(space, supernet, QUICK.model_copy(update={"lr": 1e38}))
    shifting.learn(archs(space, 1)[0], 0)
    for gradient in shifting._sums.values():
        gradient.fill_(10.0)
    with pytest.raises(DivergedError, match="the weights are not finite after step 1"):
        shifting.step()


def test_a_full_disk_leaves_the_state_before_it(tmp_path: Path, monkeypatch) -> None:
    space = toy_space()
    shifting = shifter(space, toy_supernet(space))
    path = tmp_path / "shifting.safetensors"
    shifting.save(path, {"generations": 1})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.supernet.shifting.write_bytes", full)
    with pytest.raises(TrainingError, match="No space left on device; every score is kept"):
        shifting.save(path, {"generations": 2})
    assert shifting.saved(path) == {"generations": 1}


# -- state ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nasbench_macro", "shufflenetv2"])
def test_a_saved_state_goes_on_with_the_same_bits(tmp_path: Path, name: str) -> None:
    space = toy_space(name)
    supernet, other = toy_supernet(space), toy_supernet(space, seed=9)
    path = tmp_path / "shifting.safetensors"
    whole, later = shifter(space, supernet), shifter(space, other)
    population = archs(space, 4)
    for place, arch in enumerate(population):
        if place == 2:
            whole.step()
            whole.save(path, {"generations": 1})
        whole.learn(arch, 2 * place)
    whole.step()
    later.learn(population[0], 0)  # of a generation that was never finished
    assert later.saved(path) == {"generations": 1}
    later.load(path)
    assert later.steps == 1
    for place in (2, 3):
        later.learn(population[place], 2 * place)
    later.step()
    assert later.steps == whole.steps == 2
    ours, theirs = supernet.state_dict(), other.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.mark.parametrize("content", [b"", b"{}", b"\0" * 64])
def test_a_damaged_state_is_none(tmp_path: Path, content: bytes) -> None:
    space = toy_space()
    path = tmp_path / "shifting.safetensors"
    assert shifter(space, toy_supernet(space)).saved(path) is None
    path.write_bytes(content)
    assert shifter(space, toy_supernet(space)).saved(path) is None


def test_another_file_of_weights_is_no_state(tmp_path: Path) -> None:
    space = toy_space()
    supernet = toy_supernet(space)
    save_supernet(space, supernet, tmp_path / "supernet.safetensors")
    assert shifter(space, supernet).saved(tmp_path / "supernet.safetensors") is None


def test_a_state_of_another_space_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shifting.safetensors"
    space, other = toy_space(), toy_space("shufflenetv2")
    shifter(space, toy_supernet(space)).save(path, {})
    with pytest.raises(CheckpointError, match="do not fit the supernet"):
        shifter(other, toy_supernet(other)).load(path)


def test_the_shifted_supernet_is_read_as_any_supernet(tmp_path: Path) -> None:
    space = toy_space()
    supernet = toy_supernet(space)
    shifting = shifter(space, supernet)
    shifting.learn(archs(space, 1)[0], 0)
    shifting.step()
    shifting.write_supernet(tmp_path / "shifted.safetensors", {"seed": 0})
    read = load_supernet(space, tmp_path / "shifted.safetensors").state_dict()
    assert all(torch.equal(value, read[key]) for key, value in supernet.state_dict().items())
