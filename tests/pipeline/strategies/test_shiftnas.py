from __future__ import annotations

import json
import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latency_tables.arch import Arch
from latency_tables.cost_table import CostTable
from latency_tables.errors import UsageError
from latency_tables.levels import cost_levels
from latency_tables.sampler import make_sampler
from pipeline.generator.file import FILE_NAME, load_generator
from pipeline.own_model import Elastic, own_space
from pipeline.randomness import numpy_generator
from pipeline.spaces import SPACES, load_space
from pipeline.spaces.base import Space, Supernet
from pipeline.strategies import latency_device, load_strategy
from pipeline.strategies.cost_levels import levels_of
from pipeline.strategies.level_paths import ExactPaths
from pipeline.strategies.level_shift import LevelDistribution
from pipeline.strategies.shiftnas import ShiftNAS
from pipeline.strategies.shiftnas import shiftnas as make_shiftnas
from pipeline.training.config import OptimizerConfig
from pipeline.training.engine import Progress, train
from pipeline.training.step import Step
from tests.pipeline.strategies.steps import (
    assert_a_killed_run_ends_with_the_same_bits,
    assert_equal_weights,
    hand_step,
    move,
    path_gradients,
    plain,
    run,
    twin,
)
from tests.pipeline.training.toys import CLASSES, SHAPE, ToyStream, toy_space, toy_supernet

STREAMS = {"train": ToyStream(), "b-update": ToyStream(seed=2)}
SMALL: dict[str, Any] = {"levels": 4, "update_every": 2, "freeze": 0.0, "paths": "exact"}


def shift(space: Space, supernet: Supernet | None = None, **options: Any) -> ShiftNAS:
    return make_shiftnas(
        space=space,
        supernet=supernet or toy_supernet(space),
        seed=0,
        options={**SMALL, **options},
    )


def shifted(folder: Path, n_steps: int, *, space: Space | None = None, **options: Any) -> ShiftNAS:
    """The strategy after some steps in the engine, with a line for each in the log."""
    space = space or toy_space()
    supernet = toy_supernet(space)
    strategy = shift(space, supernet, **options)
    run(folder, strategy, space=space, supernet=supernet, config=plain(n_steps, log_every=1))
    return strategy


def drive(strategy: ShiftNAS, supernet: Supernet, n_steps: int, *, index: int = 0) -> list[Any]:
    """Updates of some steps outside the engine; their gradients of B are not applied."""
    found = []
    for i in range(index, index + n_steps):
        found += list(strategy.updates(hand_step(supernet, index=i, n_steps=1000)))
    return found


def copy_of(supernet: Supernet) -> dict[str, torch.Tensor]:
    return {k: p.detach().clone() for k, p in supernet.named_parameters()}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


# -- one step ------------------------------------------------------------------------------


def test_a_step_trains_one_network_of_a_level_that_b_draws(tmp_path: Path) -> None:
    space = toy_space()
    supernet, expected = toy_supernet(space), twin(space)
    strategy = shift(space, supernet, update_every=10)
    run(tmp_path, strategy, space=space, supernet=supernet, config=plain(1))

    rng = numpy_generator(0, "training", "step", 0)
    level = LevelDistribution(4).draw(rng)
    low, high = strategy.levels.ranges[level]
    (arch,) = strategy.levels.sampler.sample_archs(rng, low, high, 1)
    assert low <= space.cost_table().cost(arch, "macs") <= high
    move(expected, path_gradients(expected, arch, 0))
    assert_equal_weights(supernet, expected)


def test_levels_without_a_shift_are_trained_equally_often_for_ever(tmp_path: Path) -> None:
    space = toy_space()
    strategy = shift(space, shift=False)
    assert list(strategy.optimizers()) == ["weights"]
    assert not strategy.splits
    drawn: list[int] = []
    draw = strategy.paths.draw
    strategy.paths.draw = lambda step, level: drawn.append(level) or draw(step, level)  # type: ignore[method-assign,func-returns-value,assignment]
    drive(strategy, toy_supernet(space), 800)
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 800, 0.25, atol=0.05)
    assert strategy.state_dict()["snapshot"] == {}
    shifted(tmp_path, 4, shift=False)
    assert {line["level_entropy"] for line in lines(tmp_path)} == {math.log(4)}


def test_costs_other_than_macs_have_levels_of_their_own() -> None:
    space = toy_space()
    strategy, table = shift(space, cost="params"), space.cost_table()
    step = hand_step(toy_supernet(space))
    for level, (low, high) in enumerate(strategy.levels.ranges):
        archs = [strategy.paths.arch(step, level) for _ in range(20)]
        assert all(low <= table.cost(arch, "params") <= high for arch in archs)
    assert strategy.levels.unit == "parameter"


def test_levels_may_be_given_as_targets() -> None:
    space = toy_space()
    low, high = (space.cost_table().mean("macs") * share for share in (0.9, 1.1))
    levels = shift(space, targets=[low, high], width=0.1 * low).levels
    assert levels.targets == (low, high)
    assert levels.ranges[0] == pytest.approx((0.95 * low, 1.05 * low))
    one_wide = shift(space, targets=[low, high]).levels
    assert one_wide.ranges[0][1] == pytest.approx(one_wide.ranges[1][0])


# -- when B moves --------------------------------------------------------------------------


def moved_at(folder: Path, **options: Any) -> list[int]:
    """Steps after which B was another than before, of 12."""
    shifted(folder, 12, **options)
    logits = [[0.0] * 4, *(line["level_logits"] for line in lines(folder))]
    return [i for i in range(1, 13) if logits[i] != logits[i - 1]]


def test_b_moves_every_q_steps_once_its_freeze_is_over(tmp_path: Path) -> None:
    assert moved_at(tmp_path / "a", update_every=3) == [3, 6, 9, 12]
    assert moved_at(tmp_path / "b", update_every=3, freeze=0.5) == [9, 12]
    assert moved_at(tmp_path / "c", update_every=3, shift=False) == []


def test_the_old_weights_are_those_of_q_steps_ago_during_the_freeze_too(tmp_path: Path) -> None:
    space = toy_space()
    supernet = toy_supernet(space)
    strategy = shift(space, supernet, update_every=3, freeze=0.5)
    kept: list[dict[str, torch.Tensor]] = []
    history = [copy_of(supernet)]

    def compare(step: Step, archs: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        kept.append({k: v.clone() for k, v in strategy.snapshot.state_dict().items()})
        return torch.ones(4), torch.ones(4)

    strategy.gradient._compared = compare  # type: ignore[method-assign]

    def note(progress: Progress) -> None:
        history.append(copy_of(supernet))

    train(space, supernet, strategy, STREAMS, plain(12), tmp_path, seed=0, on_progress=note)
    # updates after steps 9 and 12; the first one compares with step 6, not with step 0
    assert len(kept) == 2
    for found, index in zip(kept, (6, 9), strict=True):
        assert all(torch.equal(found[k], v) for k, v in history[index].items())
        assert any(not torch.equal(found[k], v) for k, v in history[index - 1].items())


@pytest.mark.parametrize("improving", [0, 2])
def test_the_level_whose_loss_still_falls_is_trained_more(tmp_path: Path, improving: int) -> None:
    space = toy_space()
    supernet = toy_supernet(space)
    strategy = shift(space, supernet, update_every=1)
    now = torch.ones(4).double()
    before = now.clone()
    before[improving] = 1.3
    strategy.gradient._compared = lambda *_: (before, now)  # type: ignore[method-assign]
    run(tmp_path, strategy, space=space, supernet=supernet, config=plain(10))
    p = strategy.distribution.probabilities()
    assert int(p.argmax()) == improving
    assert float(p[improving]) > 0.9


# -- comparing -----------------------------------------------------------------------------


def test_levels_are_compared_on_the_same_images_and_paths_with_old_and_new_weights() -> None:
    space = toy_space()
    supernet = toy_supernet(space).train()
    strategy = shift(space, supernet)
    strategy.snapshot.take()
    old = copy_of(supernet)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    new = copy_of(supernet)
    step = hand_step(supernet)
    archs = [strategy.paths.arch(step, level) for level in range(4)]
    batch = ToyStream(seed=2).batch(0)
    before, now = strategy.gradient._compared(step, archs, batch)

    def losses(weights: dict[str, torch.Tensor]) -> list[float]:
        other = toy_supernet(space, seed=7).train()
        other.load_state_dict(weights, strict=False)
        with torch.no_grad():
            return [float(F.cross_entropy(other(batch.images, a), batch.labels)) for a in archs]

    assert now.tolist() == pytest.approx(losses(new), rel=1e-4)
    assert before.tolist() == pytest.approx(losses(old), rel=1e-4)
    assert all(torch.equal(p, new[k]) for k, p in supernet.named_parameters())


MODES = ["stratified", "score", "pathwise"]


def space_for(mode: str) -> tuple[Space, dict[str, Any]]:
    """A space with batch norms and dropout; pathwise needs a generator."""
    paths = "generator" if mode == "pathwise" else "exact"
    return toy_space("shufflenetv2"), {"paths": paths, "gradient": mode}


def toy_space_of_policies() -> Space:
    return load_space("autoformer", preset="micro", input_shape=SHAPE, n_classes=CLASSES)


@pytest.mark.parametrize("mode", MODES)
def test_comparing_leaves_no_trace(mode: str) -> None:
    space, options = space_for(mode)
    supernet = toy_supernet(space).train()
    strategy = shift(space, supernet, **options)
    strategy.snapshot.take()
    before = {k: v.clone() for k, v in supernet.state_dict().items()}
    modes = [(m.training, getattr(m, "track_running_stats", None)) for m in supernet.modules()]
    state = torch.get_rng_state()
    strategy.gradient(hand_step(supernet), ToyStream(seed=2).batch(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in supernet.state_dict().items())
    assert modes == [
        (m.training, getattr(m, "track_running_stats", None)) for m in supernet.modules()
    ]
    assert all(p.grad is None for p in supernet.parameters())
    assert strategy.distribution.logits.grad is None
    if hasattr(strategy.paths, "generator"):
        assert all(p.grad is None for p in strategy.paths.generator.parameters())


@pytest.mark.parametrize("mode", MODES)
def test_equal_old_and_new_weights_move_nothing(mode: str) -> None:
    space, options = space_for(mode)
    supernet = toy_supernet(space).train()
    strategy = shift(space, supernet, **options)
    strategy.snapshot.take()
    gradient = strategy.gradient(hand_step(supernet), ToyStream(seed=2).batch(0))
    assert gradient is not None
    assert gradient.tolist() == [0.0] * 4
    with torch.no_grad():
        # heads begin at zero, and then nothing of the level passes them
        generator = getattr(strategy.paths, "generator", torch.nn.Identity())
        for parameter in (*supernet.parameters(), *generator.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    gradient = strategy.gradient(hand_step(supernet), ToyStream(seed=2).batch(0))
    assert gradient is not None
    assert gradient.abs().sum() > 0
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-8)  # of a softmax


@pytest.mark.parametrize("mode", MODES)
def test_a_loss_that_is_not_finite_leaves_b_alone_and_is_said(
    mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    space, options = space_for(mode)

    class Broken(ToyStream):
        def batch(self, number: int, /) -> Any:
            batch = super().batch(number)
            return type(batch)(images=batch.images * math.nan, labels=batch.labels)

    supernet = toy_supernet(space)
    strategy = shift(space, supernet, **options)
    streams = {"train": ToyStream(), "b-update": Broken(seed=2)}
    with caplog.at_level(logging.WARNING):
        train(space, supernet, strategy, streams, plain(4, log_every=1), tmp_path, seed=0)
    assert "B is not updated" in caplog.text
    last = lines(tmp_path)[-1]
    assert last["level_logits"] == [0.0] * 4
    assert (last["level_updates"], last["level_updates_skipped"]) == (0, 2)
    assert last["level_losses"] == [None] * 4


# -- the generator -------------------------------------------------------------------------


def test_spaces_that_let_gradients_through_use_the_generator_unasked() -> None:
    space = toy_space_of_policies()
    asked = {"levels": 4}
    strategy = make_shiftnas(space=space, supernet=toy_supernet(space), seed=0, options=asked)
    assert list(strategy.optimizers()) == ["weights", "levels", "generator"]


@pytest.mark.parametrize("optimizer", ["own", "joint"])
def test_one_step_trains_the_generator_and_the_weights(tmp_path: Path, optimizer: str) -> None:
    space = toy_space_of_policies()
    supernet = toy_supernet(space)
    strategy = shift(space, supernet, paths="generator", generator_optimizer=optimizer)
    assert ("generator" in strategy.optimizers()) == (optimizer == "own")
    before = {k: v.clone() for k, v in strategy.paths.generator.state_dict().items()}  # type: ignore[union-attr]
    weights = {k: v.clone() for k, v in supernet.state_dict().items()}
    run(tmp_path, strategy, space=space, supernet=supernet, config=plain(1))
    after = strategy.paths.generator.state_dict()  # type: ignore[union-attr]
    assert any(not torch.equal(after[k], v) for k, v in before.items())
    assert any(not torch.equal(supernet.state_dict()[k], v) for k, v in weights.items())


def test_the_task_has_a_say_in_what_the_generator_draws() -> None:
    space = toy_space_of_policies()
    supernet = toy_supernet(space).train()
    strategy = shift(space, supernet, paths="generator")
    (update, *_) = strategy.updates(hand_step(supernet))
    update.losses[0]().backward()
    generator = strategy.paths.generator  # type: ignore[union-attr]
    task = [p.grad for p in generator.heads.parameters() if p.grad is not None]
    assert task
    assert all(g.isfinite().all() for g in task)
    assert any(g.abs().sum() > 0 for g in task)


def test_the_logged_loss_is_that_of_the_task_alone(tmp_path: Path) -> None:
    options = {"paths": "generator", "generator": {"resource_weight": 1e6}}
    shifted(tmp_path, 3, space=toy_space_of_policies(), **options)
    assert all(line["loss"] < 10 for line in lines(tmp_path))
    assert lines(tmp_path)[-1]["resource_weight"] >= 1e6


def test_a_subnet_is_asked_for_anywhere_in_its_level_or_at_its_target() -> None:
    space = toy_space_of_policies()
    supernet = toy_supernet(space)
    for spread in (True, False):
        strategy = shift(space, supernet, paths="generator", generator={"spread": spread})
        targets = torch.tensor(strategy.levels.targets)
        step = hand_step(supernet)
        asked = torch.stack([strategy.paths.asked(step, 1) for _ in range(50)])  # type: ignore[union-attr]
        costs = asked @ targets
        low, high = strategy.levels.ranges[1]
        assert low - 1 <= float(costs.min()) <= float(costs.max()) <= high + 1
        if spread:
            assert float(costs.max() - costs.min()) > 0.8 * (high - low)
        else:
            assert torch.equal(asked, torch.tensor([[0.0, 1.0, 0.0, 0.0]]).expand(50, -1))


def test_a_trained_generator_is_written_and_hits_its_levels(tmp_path: Path) -> None:
    space = toy_space_of_policies()
    supernet = toy_supernet(space)
    strategy = shift(space, supernet, paths="generator", generator={"lr": 0.02})
    adam = OptimizerConfig(kind="adamw", lr=1e-3)
    run(
        tmp_path, strategy, space=space, supernet=supernet,
        config=plain(50, optimizer=adam, log_every=10),
    )  # fmt: skip
    loaded = load_generator(tmp_path / FILE_NAME, space, table=space.cost_table())
    assert loaded.targets == strategy.levels.targets
    misses = [
        abs(space.cost_table().cost(loaded.argmax(target), "macs") - target) / target
        for target in loaded.targets
    ]
    assert np.mean(misses) < 0.05
    logged = [line["generator_miss"] for line in lines(tmp_path)]
    assert logged[-1] < logged[0]
    assert "4 levels of macs" in strategy.summary()
    assert "the generator misses by" in strategy.summary()


def test_a_generator_that_is_deterministic_early_is_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    space = toy_space_of_policies()
    supernet = toy_supernet(space).train()
    strategy = shift(space, supernet, paths="generator")
    with torch.no_grad():
        for head in strategy.paths.generator.heads:  # type: ignore[union-attr]
            head.bias[0] = 50.0  # type: ignore[index,operator]
    with caplog.at_level(logging.WARNING):
        for index in range(0, 40, 10):
            step = hand_step(supernet, index=index, n_steps=1000)
            for update in strategy.updates(step):
                for loss in update.losses:
                    loss()
    assert caplog.text.count("all but deterministic") == 1


# -- the sandwich --------------------------------------------------------------------------


@pytest.mark.parametrize("paths", ["exact", "generator"])
def test_the_middle_of_the_sandwich_comes_from_b_and_learns_from_the_largest(
    tmp_path: Path, paths: str
) -> None:
    space = toy_space_of_policies()
    supernet = toy_supernet(space)
    strategy = shift(space, supernet, paths=paths, sandwich=True, n_random=3)
    drawn: list[int] = []
    draw = strategy.paths.draw
    strategy.paths.draw = lambda step, level: drawn.append(level) or draw(step, level)  # type: ignore[method-assign,func-returns-value,assignment]
    (update, *_) = strategy.updates(hand_step(supernet.train()))
    assert len(drawn) == 3
    assert len(update.losses) == 5  # largest, three of B, smallest
    first = update.losses[0]()
    assert float(first.detach()) == pytest.approx(math.log(4), rel=0.5)  # cross entropy
    assert all(float(loss().detach()) < 0.7 for loss in update.losses[1:])  # divergences
    run(tmp_path, strategy, space=space, supernet=supernet, config=plain(2))


PRESETS = {"autoformer": "micro"}
LONG = pytest.mark.long


@pytest.mark.parametrize(
    "name", ["attentivenas", *(pytest.param(n, marks=LONG) for n in SPACES if n != "attentivenas")]
)
@pytest.mark.parametrize("options", [{}, {"sandwich": True}, {"paths": "exact"}], ids=str)
def test_it_trains_every_space(name: str, options: dict[str, Any]) -> None:
    preset = PRESETS.get(name, "tiny")
    space = load_space(name, preset=preset, input_shape=SHAPE, n_classes=CLASSES)
    supernet = toy_supernet(space).train()
    strategy = shift(space, supernet, **{"levels": 3, "paths": "generator", **options})
    for index in range(2):
        for update in strategy.updates(hand_step(supernet, index=index, n_steps=100)):
            for loss in (*update.losses, *update.beside):
                loss().backward()
            with torch.no_grad():
                for parameter in supernet.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.05 * parameter.grad
    assert strategy.n_updates == 1
    assert update.optimizer == "levels"
    assert update.gradients["B"].abs().sum() > 0


# -- resuming ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["stratified", pytest.param("score", marks=LONG)])
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, mode: str) -> None:
    # B moves after 3 of 5 steps, by weights from before the checkpoint of step 2
    assert_a_killed_run_ends_with_the_same_bits(
        tmp_path, lambda space, supernet: shift(space, supernet, gradient=mode, update_every=3)
    )
    assert_the_logs_are_equal(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient": "pathwise"},
        pytest.param({"generator_optimizer": "joint"}, marks=LONG),
    ],
)
def test_a_killed_run_with_a_generator_ends_with_the_same_bits(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    space = toy_space_of_policies()
    made = partial(shift, paths="generator", update_every=3, **options)
    assert_a_killed_run_ends_with_the_same_bits(
        tmp_path, lambda space, supernet: made(space, supernet), space
    )
    files = [tmp_path / name / "generator.safetensors" for name in ("whole", "broken")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert_the_logs_are_equal(tmp_path)


def assert_the_logs_are_equal(folder: Path) -> None:
    """But for their times; and B has moved."""
    whole, broken = (
        [{k: v for k, v in line.items() if k not in ("seconds", "images_per_s")} for line in found]
        for found in (lines(folder / "whole"), lines(folder / "broken"))
    )
    assert whole == broken
    assert whole[-1]["level_updates"] == 1
    assert any(whole[-1]["level_logits"])


# -- bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cost": "flops"}, "the costs of this space are .*macs"),
        ({"cost": "latency:board"}, "needs the latency table"),
        ({"targets": [1.0, 2.0]}, "no network of this space has macs between"),
        ({"targets": [2e4, 1e4]}, "must rise"),
        ({"targets": [2e4]}, "width"),
        ({"gradient": "pathwise"}, "needs paths"),
        ({"level": 3}, "has the options"),
        ({"levels": 5000}, "no network of this space"),
        ({"generator": {"rate": 1}}, "rate"),
    ],
)
def test_options_that_do_not_fit_say_what_would(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        shift(toy_space(), **options)


def test_levels_that_hold_no_network_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    space = toy_space()
    sampler = make_sampler(space.cost_table(), "macs")
    n = next(n for n in range(3, 200) if any(not lv.probability for lv in cost_levels(sampler, n)))
    whole = [level for level in cost_levels(sampler, n) if level.probability]
    levels = levels_of(space, "macs", n_levels=n)
    assert list(levels.ranges) == [(level.low, level.high) for level in whole]
    assert f"{n - len(whole)} of {n} levels of macs hold no network" in caplog.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"paths": "generator"}, "through whose choices gradients pass"),
        ({"gradient": "pathwise", "paths": None}, "no gradient passes"),
    ],
)
def test_a_space_that_lets_no_gradient_through_has_exact_paths_only(
    options: dict[str, Any], words: str
) -> None:
    space = own_space(Plain, input_shape=SHAPE)
    assert isinstance(shift(space, space.supernet(), paths=None).paths, ExactPaths)
    with pytest.raises(UsageError, match=words):
        shift(space, space.supernet(), **options)


class Plain(nn.Module):
    """A user's model."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Elastic(nn.Conv2d(1, 8, 3), width=(2, 4, 6, 8))
        self.second = Elastic(nn.Conv2d(8, 8, 1), width=(2, 4, 6, 8))
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.second(torch.relu(self.first(x))).mean((2, 3)))


def test_a_run_that_is_too_short_to_move_b_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        shifted(tmp_path, 2, update_every=100)
    assert "B is never updated" in caplog.text


# -- latency -------------------------------------------------------------------------------


def with_latency(space: Space) -> CostTable:
    table = space.cost_table()
    return table.with_column(
        "latency_ms", "ms", [f.values[..., 0] / 1e4 + 0.01 for f in table.factors]
    )


def test_levels_may_be_milliseconds_of_a_device(tmp_path: Path) -> None:
    space = toy_space()
    table = with_latency(space)
    options = {**SMALL, "cost": "latency:board"}
    assert latency_device(options) == "board"
    strategy = load_strategy(
        "shiftnas", space=space, supernet=toy_supernet(space), options=options, latency=table
    )
    assert isinstance(strategy, ShiftNAS)
    assert strategy.levels.unit == "ms"
    step = hand_step(toy_supernet(space))
    low, high = strategy.levels.ranges[3]
    archs: list[Arch] = [strategy.paths.arch(step, 3) for _ in range(10)]
    assert all(low <= table.cost(arch, "latency_ms") <= high for arch in archs)
