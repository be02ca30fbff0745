"""Four throw-away strategies prove the shapes of updates that published methods need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latency_tables.arch import Arch
from latency_tables.errors import UsageError
from pipeline.randomness import child_seed, numpy_generator
from pipeline.spaces.base import Space, Supernet
from pipeline.training.checkpoint import CheckpointFolder
from pipeline.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from pipeline.training.precision import Precision
from pipeline.training.step import Step, Update
from tests.pipeline.strategies.throwaway import (
    FairLike,
    GreedyLike,
    OuterLike,
    ShotLike,
    Stateless,
    snapshot,
)
from tests.pipeline.training.toys import ToyStream, toy_config, toy_space, toy_supernet, toy_train

LR = 0.05


def plain(steps: int) -> TrainConfig:
    """SGD without momentum, decay or schedule: an update is W − lr · gradient."""
    return toy_config(
        steps=steps,
        optimizer=OptimizerConfig(lr=LR, momentum=0.0, weight_decay=0.0),
        schedule=ScheduleConfig(kind="constant"),
        label_smoothing=0.0,
    )


def hand_made_gradients(supernet: Supernet, arch: Arch, number: int) -> dict[str, Tensor]:
    """Gradients of one path on train batch ``number``, without the engine."""
    batch = ToyStream().batch(number)
    supernet.zero_grad(set_to_none=True)
    images = batch.images.contiguous(memory_format=torch.channels_last)
    F.cross_entropy(supernet(images, arch), batch.labels).backward()
    return {k: p.grad.clone() for k, p in supernet.named_parameters() if p.grad is not None}


def step_by_hand(supernet: Supernet, gradients: dict[str, Tensor], lr: float) -> None:
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            if name in gradients:
                parameter -= lr * gradients[name]


def twin(space: Space) -> Supernet:
    """The supernet that the engine starts with, for computing by hand."""
    return toy_supernet(space).to(memory_format=torch.channels_last).train()


def assert_equal_weights(found: Supernet, expected: Supernet) -> None:
    for (name, a), b in zip(found.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5, msg=name)


# -- FairNAS: several models, one batch, one update ----------------------------------------


def test_every_operator_is_trained_equally_often_after_each_fair_step(tmp_path: Path) -> None:
    space = toy_space()
    strategy = FairLike(space)
    toy_train(tmp_path, space=space, strategy=strategy, config=plain(3))
    counts: Counter[tuple[str, object]] = Counter()
    for done, archs in enumerate(strategy.trained, start=1):
        counts.update((label, choice) for arch in archs for label, choice in arch.items())
        assert len(counts) == 3 * len(space.decisions)
        assert set(counts.values()) == {done}


def test_a_fair_update_is_the_sum_of_the_gradients_of_its_models(tmp_path: Path) -> None:
    space = toy_space()
    supernet, expected, strategy = toy_supernet(space), twin(space), FairLike(space)
    toy_train(tmp_path, space=space, supernet=supernet, strategy=strategy, config=plain(1))
    total: dict[str, Tensor] = {}
    for arch in strategy.trained[0]:
        for name, gradient in hand_made_gradients(expected, arch, 0).items():
            total[name] = total.get(name, torch.zeros_like(gradient)) + gradient
    step_by_hand(expected, total, LR)
    assert_equal_weights(supernet, expected)


def test_losses_of_one_update_are_differentiated_one_after_the_other(tmp_path: Path) -> None:
    alive, most = 0, 0

    class Watched(torch.autograd.Function):
        """Counts graphs that wait for their backward pass."""

        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            nonlocal alive, most
            alive, most = alive + 1, max(most, alive + 1)
            return x.clone()

        @staticmethod
        def backward(ctx: object, *gradients: Tensor) -> Tensor:
            nonlocal alive
            alive -= 1
            return gradients[0]

    class Watching(Stateless):
        def updates(self, step: Step) -> Iterator[Update]:
            batch, arch = step.batch(), self.space.sample(step.rng)
            yield Update(losses=[lambda: Watched.apply(step.loss(arch, batch))] * 3)

    space = toy_space()
    toy_train(tmp_path, space=space, strategy=Watching(space), config=plain(1))
    assert (alive, most) == (0, 1)


# -- GreedyNAS: scoring without gradient, several updates, own batches ---------------------


def test_each_greedy_path_gets_its_own_batch_and_its_own_update(tmp_path: Path) -> None:
    space = toy_space()
    supernet, strategy = toy_supernet(space), GreedyLike(space)
    toy_train(tmp_path, space=space, supernet=supernet, strategy=strategy, config=plain(3))
    expected = [ToyStream().batch(i).images for i in range(6)]
    assert len(strategy.seen) == 6
    assert all(torch.equal(a, b) for a, b in zip(strategy.seen, expected, strict=True))


def test_a_greedy_step_is_two_sgd_steps_on_the_paths_that_scored_best(tmp_path: Path) -> None:
    space = toy_space()
    supernet, expected, strategy = toy_supernet(space), twin(space), GreedyLike(space)
    toy_train(tmp_path, space=space, supernet=supernet, strategy=strategy, config=plain(1))
    for number, genes in enumerate(strategy.pool):
        arch = Arch.from_genes(space.decisions, genes)
        step_by_hand(expected, hand_made_gradients(expected, arch, number), LR)
    assert_equal_weights(supernet, expected)


def test_batch_counters_and_the_pool_survive_an_interrupted_greedy_run(tmp_path: Path) -> None:
    space = toy_space()
    whole = GreedyLike(space)
    first = toy_train(tmp_path / "whole", space=space, strategy=whole)

    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy_train(tmp_path / "cut", space=space, strategy=GreedyLike(space), on_progress=stop)
    resumed = GreedyLike(space)
    second = toy_train(tmp_path / "cut", space=space, strategy=resumed)
    assert torch.equal(resumed.seen[0], whole.seen[2])  # step 0 took two train batches
    assert resumed.pool == whole.pool
    assert second.weights_path.read_bytes() == first.weights_path.read_bytes()


# -- K-shot: two optimizers in turn, gradients made by hand --------------------------------


def test_two_optimizers_take_turns_and_hand_made_gradients_are_applied(tmp_path: Path) -> None:
    space = toy_space()
    strategy = ShotLike(space)
    toy_train(tmp_path, space=space, strategy=strategy, config=plain(4))
    # sigma: 5 → 1 + 4 · 0.5 → 1 + 4 · 0.25 after steps 1 and 3
    assert torch.equal(strategy.sigma.detach(), torch.full((3,), 2.0))


def test_a_step_of_the_second_optimizer_leaves_the_supernet_alone(tmp_path: Path) -> None:
    space = toy_space()
    kept: list[dict[str, Tensor]] = []

    class Keeping(ShotLike):
        def updates(self, step: Step) -> Iterator[Update]:
            kept.append(snapshot(step.supernet))
            yield from super().updates(step)

    toy_train(tmp_path, space=space, strategy=Keeping(space), config=toy_config(steps=3))
    before, after_even, after_odd = kept
    assert any(not torch.equal(before[k], after_even[k]) for k in before)
    assert all(torch.equal(after_even[k], after_odd[k]) for k in before)


def test_parameters_of_a_strategy_survive_an_interrupted_run(tmp_path: Path) -> None:
    space = toy_space()

    def stop(progress: object) -> None:
        if getattr(progress, "step", 0) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy_train(tmp_path, space=space, strategy=ShotLike(space), on_progress=stop)
    resumed = ShotLike(space)
    toy_train(tmp_path, space=space, strategy=resumed)
    # steps 1, 3, 5 and 7 of eight: 1 + 4 / 2^4
    assert torch.equal(resumed.sigma.detach(), torch.full((3,), 1.25))


# -- SUMNAS and ShiftNAS: code after a yield sees the new weights --------------------------


def test_code_after_a_yield_sees_the_new_weights(tmp_path: Path) -> None:
    space = toy_space()
    moved: list[bool] = []

    class Watching(Stateless):
        def updates(self, step: Step) -> Iterator[Update]:
            before = snapshot(step.supernet)
            yield Update(losses=[partial(step.loss, self.space.sample(step.rng), step.batch())])
            after = snapshot(step.supernet)
            moved.append(any(not torch.equal(before[k], after[k]) for k in before))

    toy_train(tmp_path, space=space, strategy=Watching(space), config=plain(2))
    assert moved == [True, True]


def test_an_outer_step_equals_two_inner_steps_by_hand_and_a_part_of_their_way(
    tmp_path: Path,
) -> None:
    space = toy_space()
    supernet, expected = toy_supernet(space), twin(space)
    strategy = OuterLike(space, inner=2, epsilon=0.25)
    toy_train(tmp_path, space=space, supernet=supernet, strategy=strategy, config=plain(1))
    rng = numpy_generator(0, "training", "step", 0)
    start = snapshot(expected)
    for number in range(2):
        arch = space.sample(rng)
        step_by_hand(expected, hand_made_gradients(expected, arch, number), LR)
    end = snapshot(expected)
    with torch.no_grad():
        for name, parameter in expected.named_parameters():
            parameter.copy_(start[name] + 0.25 * (end[name] - start[name]))
    assert_equal_weights(supernet, expected)


def test_snapshots_of_weights_are_part_of_the_checkpoint(tmp_path: Path) -> None:
    space = toy_space()
    strategy = OuterLike(space)
    toy_train(tmp_path, space=space, strategy=strategy, config=plain(2))
    saved = CheckpointFolder(tmp_path / "checkpoints").read_newest()
    assert saved is not None
    name = next(iter(strategy.before))
    assert torch.equal(saved.tensors[f"strategy/before/{name}"], strategy.before[name])


# -- what a step offers --------------------------------------------------------------------


def test_the_generator_of_a_step_depends_on_seed_and_index_only(tmp_path: Path) -> None:
    drawn: list[int] = []

    class Drawing(Stateless):
        def updates(self, step: Step) -> Iterator[Update]:
            drawn.append(int(step.rng.integers(2**60)))
            yield Update(losses=[partial(step.loss, self.space.sample(step.rng), step.batch())])

    space = toy_space()
    toy_train(tmp_path, space=space, strategy=Drawing(space), config=plain(3))
    expected = [numpy_generator(0, "training", "step", i).integers(2**60) for i in range(3)]
    assert drawn == [int(number) for number in expected]
    assert len({child_seed(0, "training", "step", i) for i in range(3)}) == 3


def test_scale_multiplies_the_gradients(tmp_path: Path) -> None:
    class Scaled(Stateless):
        def updates(self, step: Step) -> Iterator[Update]:
            arch = Arch.from_genes(self.space.decisions, [1] * len(self.space.decisions))
            yield Update(losses=[partial(step.loss, arch, step.batch())], scale=0.5)

    space = toy_space()
    supernet, expected = toy_supernet(space), twin(space)
    toy_train(tmp_path, space=space, supernet=supernet, strategy=Scaled(space), config=plain(1))
    arch = Arch.from_genes(space.decisions, [1] * len(space.decisions))
    step_by_hand(expected, hand_made_gradients(expected, arch, 0), 0.5 * LR)
    assert_equal_weights(supernet, expected)


@pytest.mark.parametrize("carried", [{"losses": [torch.zeros], "gradients": {}}, {}])
def test_an_update_carries_either_losses_or_gradients(carried: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="give one of the two"):
        Update(**carried)


def test_ready_gradients_are_those_of_one_optimizer() -> None:
    for more in ({"also": ["b"]}, {"beside": [lambda: torch.zeros(())]}):
        with pytest.raises(UsageError, match="one optimizer"):
            Update(gradients={}, **more)  # type: ignore[arg-type]


def test_soft_labels_give_the_same_loss_as_the_classes_they_stand_for() -> None:
    space = toy_space()
    step = Step(
        index=0,
        supernet=toy_supernet(space).eval(),
        rng=np.random.default_rng(0),
        device=torch.device("cpu"),
        next_batch=lambda split: ToyStream().batch(0),
        precision=Precision(),
    )
    batch = ToyStream().batch(0)
    soft = type(batch)(images=batch.images, labels=F.one_hot(batch.labels, 4).float())
    arch = space.sample(step.rng)
    torch.testing.assert_close(step.loss(arch, soft), step.loss(arch, batch))
