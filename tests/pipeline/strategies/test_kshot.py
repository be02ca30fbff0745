"""K-shot NAS: what warm-up, even, odd and joint steps move, and by how much."""

from __future__ import annotations

import copy
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latency_tables.errors import UsageError
from pipeline.kshot.dictionary import KShotSupernet
from pipeline.kshot.width_regulariser import width_regulariser
from pipeline.spaces import load_space
from pipeline.spaces.base import Space
from pipeline.strategies.kshot import KShot, KShotOptions
from pipeline.strategies.kshot import kshot as make_kshot
from pipeline.strategies.spos import SPOS
from pipeline.supernet.weights import load_supernet
from pipeline.training.checkpoint import CheckpointFolder
from pipeline.training.compiling import compiled
from pipeline.training.config import CheckpointConfig, OptimizerConfig
from pipeline.training.optimizers import NamedOptimizer
from tests.pipeline.strategies.steps import (
    assert_a_killed_run_ends_with_the_same_bits,
    hand_step,
    plain,
    run,
)
from tests.pipeline.training.toys import (
    CLASSES,
    SHAPE,
    ToyBatch,
    ToyStream,
    toy_config,
    toy_space,
    toy_supernet,
)

SMALL = {"k": 3, "groups": 4, "warmup_share": 0.0, "hidden": 16}
"""Options that keep a step short."""


def kshot(space: Space, **options: Any) -> KShot:
    strategy = make_kshot(space=space, supernet=toy_supernet(space), seed=0, options=options)
    assert isinstance(strategy, KShot)
    return strategy


def uneven(strategy: KShot, seed: int = 0) -> KShot:
    """With codes that differ between architectures."""
    net = strategy.supernet.simplex_net
    assert net is not None
    torch.nn.init.normal_(net.output.weight, generator=torch.Generator().manual_seed(seed))
    return strategy


def weights_after(strategy: KShot, index: int, n_steps: int = 20) -> dict[str, Tensor]:
    """What the updates of one step change, by name: plain descent at rate 1."""
    supernet = strategy.supernet.train()
    before = {k: p.detach().clone() for k, p in supernet.named_parameters()}
    plans = strategy.optimizers()
    for update in strategy.updates(hand_step(supernet, index=index, n_steps=n_steps)):
        named = plans[update.optimizer].parameters
        assert named is not None
        optimizer = NamedOptimizer(
            "by hand", named, OptimizerConfig(lr=1.0, momentum=0.0, weight_decay=0.0)
        )
        supernet.zero_grad(set_to_none=True)
        for loss in (*update.losses, *update.beside):
            loss().backward()  # type: ignore[no-untyped-call]
        if update.gradients is not None:
            ready = update.gradients() if callable(update.gradients) else update.gradients
            optimizer.set_gradients(ready)
        optimizer.scale_and_clip(scale=update.scale, clip_norm=None, clip_value=None)
        optimizer.step(1.0)
    changed = {k: before[k] - p.detach() for k, p in supernet.named_parameters()}
    return {k: v for k, v in changed.items() if v.any()}


def spos_run(folder: Path, space: Space, **settings: Any) -> dict[str, Tensor]:
    supernet = toy_supernet(space)
    run(folder, SPOS(space), space=space, supernet=supernet, config=toy_config(**settings))
    return dict(supernet.state_dict())


@pytest.mark.parametrize(("channels_last", "training"), [("on", "alternating"), ("off", "joint")])
def test_one_copy_is_trained_as_spos_trains_it_bit_for_bit(
    tmp_path: Path, channels_last: str, training: str
) -> None:
    space = toy_space()
    settings = {"clip_norm": 0.5, "ema": 0.9, "steps": 4, "channels_last": channels_last}
    expected = spos_run(tmp_path / "spos", space, **settings)
    strategy = kshot(space, k=1, training=training, groups=4)
    run(
        tmp_path / "kshot",
        strategy,
        space=space,
        supernet=strategy.supernet,
        config=toy_config(**settings),
    )
    found = strategy.supernet.copies[0].state_dict()
    assert found.keys() == expected.keys()
    assert all(found[k].equal(expected[k]) for k in expected)


def test_the_warm_up_trains_all_copies_alike() -> None:
    strategy = uneven(kshot(toy_space(), **{**SMALL, "warmup_share": 0.5}))
    for index in (0, 9):  # an odd step, too
        moved = weights_after(strategy, index)
        assert {k.split(".")[0] for k in moved} == {"copies"}
        for name, change in moved.items():
            _, _, rest = name.split(".", 2)
            torch.testing.assert_close(change, moved[f"copies.0.{rest}"])


def test_even_steps_move_the_copies_in_the_ratio_of_the_code() -> None:
    space = toy_space()
    strategy = uneven(kshot(space, **SMALL))
    arch = space.sample(hand_step(strategy.supernet, index=4).rng)
    code = strategy.supernet.code(arch)
    used = {id(p) for p in strategy.supernet.subnet_parameters(arch)}
    on_path = {n for n, p in strategy.supernet.named_parameters() if id(p) in used}
    moved = weights_after(strategy, 4)
    assert moved.keys() <= on_path
    for name, change in moved.items():
        _, index, rest = name.split(".", 2)
        first = moved[f"copies.0.{rest}"] * code[int(index)] / code[0]
        torch.testing.assert_close(change, first, atol=1e-6, rtol=1e-4)


def test_plain_gradients_are_those_that_are_not_multiplied_by_k() -> None:
    space = toy_space()
    scaled, as_they_are = (
        weights_after(uneven(kshot(space, **SMALL, **options)), 4)
        for options in ({}, {"gradients": "plain"})
    )
    for name, change in as_they_are.items():
        torch.testing.assert_close(scaled[name], 3 * change, atol=1e-6, rtol=1e-4)


def test_copies_learn_as_copies_of_plain_size_do_at_the_same_rate() -> None:
    # of weights that a norm follows; see the strategy's module
    space = toy_space()
    strategy = kshot(space, **{**SMALL, "k": 4, "warmup_share": 0.5})
    supernet = strategy.supernet
    small = copy.deepcopy(supernet)
    name = "blocks.stem.fixed.0.weight"
    with torch.no_grad():
        for copied in small.copies:
            copied.get_parameter(name).div_(2)
    step = hand_step(small.train(), index=0, n_steps=20)
    arch = space.sample(step.rng)
    step.loss(arch, step.batch()).backward()  # type: ignore[no-untyped-call]
    moved = weights_after(strategy, 0)
    for k in range(4):
        gradient = small.get_parameter(f"copies.{k}.{name}").grad
        assert gradient is not None
        torch.testing.assert_close(moved[f"copies.{k}.{name}"], 2 * gradient, atol=1e-5, rtol=1e-3)


def odd_gradients(strategy: KShot, index: int) -> dict[str, Tensor]:
    """∂/∂σ of the loss of an odd step, through one graph over all copies and groups."""
    supernet, options, space = strategy.supernet, strategy.options, strategy.space
    step, m = hand_step(supernet, index=index), options.groups
    if strategy.paths is None:
        archs = [space.sample(step.rng) for _ in range(m)]
    else:
        archs = strategy.paths.sample(step.rng, m)
    batch = step.batch()
    codes = supernet.codes(archs)
    held = [dict(c.named_parameters()) for c in supernet.copies]
    total = torch.zeros(())
    for i, arch in enumerate(archs):
        mixed = {
            n: sum(codes[i, k] * held[k][n].detach() for k in range(supernet.k)) for n in held[0]
        }
        logits = torch.func.functional_call(supernet.first, mixed, (batch.images[i::m], arch))  # type: ignore[arg-type]
        total = total + F.cross_entropy(logits, batch.labels[i::m]) / m
    if strategy.paths is not None:
        total = total + options.alpha * width_regulariser(
            codes,
            strategy.paths.distances(archs),
            threshold=strategy.paths.threshold,
            temperature=options.temperature,
        )
    net = supernet.simplex_net
    assert net is not None
    named = dict(net.named_parameters(prefix="simplex_net"))
    return dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))


def width_space() -> Space:
    return load_space("mobilenetv2_widths", preset="tiny", input_shape=SHAPE, n_classes=CLASSES)


@pytest.mark.parametrize("space", [toy_space(), width_space()], ids=["operators", "widths"])
def test_odd_steps_move_the_simplex_net_only_by_the_gradient_of_all_groups(space: Space) -> None:
    strategy = uneven(kshot(space, **SMALL))
    strategy.supernet.train()
    expected = odd_gradients(strategy, 3)
    moved = weights_after(strategy, 3)
    assert {k.split(".")[0] for k in moved} == {"simplex_net"}
    for name, gradient in expected.items():
        change = moved.get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(change, gradient, atol=1e-6, rtol=2e-3)


def test_the_regulariser_is_weighed_and_has_two_denominators() -> None:
    space = width_space()

    def moved(**options: Any) -> Tensor:
        strategy = uneven(kshot(space, **SMALL, **options))
        return weights_after(strategy, 3)["simplex_net.output.weight"]

    hardly, once, twice = (moved(alpha=alpha) for alpha in (1e-9, 1.0, 2.0))
    assert (once - hardly).abs().max() > 1e-4
    torch.testing.assert_close(twice - hardly, 2 * (once - hardly), atol=1e-6, rtol=1e-3)
    assert (moved(regulariser="literal") - once).abs().max() > 1e-4


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"regulariser": "off"}])
def test_without_the_regulariser_paths_of_an_odd_step_are_uniform(options: dict[str, Any]) -> None:
    space = width_space()
    strategy = kshot(space, **SMALL, **options)
    (update,) = strategy.updates(hand_step(strategy.supernet.train(), index=3))
    assert strategy.paths is None
    assert kshot(space, **SMALL).paths is not None
    assert len(update.losses) == 4
    drawn, _ = strategy._groups(hand_step(strategy.supernet, index=3))
    again = hand_step(strategy.supernet, index=3).rng
    assert drawn == [space.sample(again) for _ in range(4)]


def test_a_joint_step_moves_both_from_gradients_at_the_same_point() -> None:
    space = toy_space()
    strategy = uneven(kshot(space, **SMALL, training="joint"))
    strategy.supernet.train()
    expected = odd_gradients(strategy, 3)
    moved = weights_after(strategy, 3)
    for name, gradient in expected.items():
        change = moved.get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(change, gradient, atol=1e-6, rtol=2e-3)
    head = "blocks.head.fixed.5.weight"  # on every path; linear, so not scaled away by a norm
    again = uneven(kshot(space, **SMALL, training="joint"))
    step = hand_step(again.supernet.train(), index=3)
    archs = [space.sample(step.rng) for _ in range(4)]
    batch = step.batch()
    for i, arch in enumerate(archs):
        part = ToyBatch(images=batch.images[i::4], labels=batch.labels[i::4])
        (step.loss(arch, part) / 4).backward()  # type: ignore[no-untyped-call]
    for k in range(3):
        gradient = again.supernet.get_parameter(f"copies.{k}.{head}").grad
        assert gradient is not None
        torch.testing.assert_close(moved[f"copies.{k}.{head}"], 3 * gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("options", [{"codes": "fixed"}, {"codes": "random"}, {"k": 1}])
@pytest.mark.parametrize("training", ["alternating", "joint"])
def test_where_there_is_no_code_to_learn_every_step_trains_the_weights(
    options: dict[str, Any], training: str
) -> None:
    strategy = kshot(toy_space(), **{**SMALL, **options, "training": training})
    assert list(strategy.optimizers()) == ["weights"]
    for index in (2, 3):
        assert {k.split(".")[0] for k in weights_after(strategy, index)} == {"copies"}


def test_operators_that_were_never_drawn_have_no_momentum(tmp_path: Path) -> None:
    space = toy_space()
    strategy = kshot(space, **{**SMALL, "warmup_share": 0.4})
    config = toy_config(steps=5, checkpoint=CheckpointConfig(seconds=0, steps=5))
    run(tmp_path, strategy, space=space, supernet=strategy.supernet, config=config)
    checkpoint = CheckpointFolder(tmp_path / "checkpoints").read_newest()
    assert checkpoint is not None
    held = {
        k.removeprefix("optimizer/weights/").rsplit("/", 1)[0]
        for k in checkpoint.tensors
        if k.startswith("optimizer/weights/")
    }
    drawn = set()
    for index in (0, 1, 2, 4):  # the steps of the weights
        arch = space.sample(hand_step(strategy.supernet, index=index).rng)
        drawn |= {id(p) for p in strategy.supernet.subnet_parameters(arch)}
    expected = {n for n, p in strategy.supernet.named_parameters() if id(p) in drawn}
    assert held == expected
    assert len(expected) < len(strategy.supernet.weights())


def test_training_tells_architectures_and_copies_apart(tmp_path: Path) -> None:
    space = toy_space()
    strategy = kshot(space, **{**SMALL, "lr": 0.05})
    result = run(tmp_path, strategy, space=space, supernet=strategy.supernet, config=plain(12))
    read = load_supernet(space, result.weights_path)
    assert isinstance(read, KShotSupernet)
    rng = np.random.default_rng(0)
    codes = torch.stack([read.code(space.sample(rng)) for _ in range(50)])
    assert codes.std(0).max() > 0.01
    for name, first in read.copies[0].named_parameters():
        if first.ndim == 4:
            assert (first - read.copies[1].get_parameter(name)).norm() > 0


@pytest.mark.parametrize("training", ["alternating", pytest.param("joint", marks=pytest.mark.long)])
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, training: Any) -> None:
    options = KShotOptions(**{**SMALL, "warmup_share": 0.2, "training": training})
    assert_a_killed_run_ends_with_the_same_bits(
        tmp_path, lambda space, supernet: KShot(space, supernet, options)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"m": 16}, "'kshot' has the options k, codes, training, gradients, groups"),
        ({"k": 100}, "less than or equal to 64"),
        ({"codes": "attention"}, "'learned', 'fixed' or 'random'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kshot(toy_space(), **options)


@pytest.mark.parametrize("groups", [3, 16])
def test_a_batch_that_cannot_be_divided_into_the_groups_is_refused(groups: int) -> None:
    strategy = kshot(toy_space(), **{**SMALL, "groups": groups})
    assert ToyStream().batch_size == 16
    with pytest.raises(UsageError, match=f"16 images cannot be divided into {groups} groups"):
        list(strategy.updates(hand_step(strategy.supernet, index=1)))


def test_the_log_tells_what_codes_are_like(tmp_path: Path) -> None:
    space = toy_space()
    strategy = kshot(space, **{**SMALL, "lr": 0.05})
    config = plain(4, log_every=1)
    run(tmp_path, strategy, space=space, supernet=strategy.supernet, config=config)
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert all(line["loss"] > 0 for line in lines)
    first, last = strategy.log_numbers(), lines[-1]
    assert {name: last[name] for name in first} == first
    assert sum(last["code_mean"]) == pytest.approx(1, abs=1e-5)
    assert last["code_max"] > 1 / 3
    assert last["code_std"] > 0
    assert kshot(space, k=1).log_numbers() == {}


@pytest.mark.long
def test_compiled_training_is_eager_training(tmp_path: Path) -> None:
    space = toy_space()
    found = []
    for compiling in (False, True):
        strategy = kshot(space, **SMALL)
        supernet = strategy.supernet
        around = compiled(supernet, torch.device("cpu"), "eager") if compiling else nullcontext()
        with around:
            run(
                tmp_path / str(compiling),
                strategy,
                space=space,
                supernet=supernet,
                config=plain(4),
            )
        found.append(supernet.state_dict())
    assert all(found[0][name].equal(found[1][name]) for name in found[0])
