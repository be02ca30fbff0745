from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from latency_tables.arch import Arch
from latency_tables.errors import DivergedError, TrainingError, UsageError
from pipeline.spaces.base import Space
from pipeline.strategies.spos import SPOS
from pipeline.supernet.weights import load_supernet
from pipeline.training import checkpoint
from pipeline.training.config import CheckpointConfig, OptimizerConfig
from pipeline.training.engine import Progress, train
from pipeline.training.step import Step, Update
from tests.pipeline.training.toys import ToyStream, toy_config, toy_space, toy_supernet, toy_train


class OnePath(SPOS):
    """Trains the first choice of everything."""

    def updates(self, step: Step) -> Iterator[Update]:
        arch = first_path(self.space)
        yield Update(losses=[partial(step.loss, arch, step.batch())])


def first_path(space: Space) -> Arch:
    return Arch.from_genes(space.decisions, [0] * len(space.decisions))


def log_lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def newest_checkpoint(folder: Path) -> str:
    return max(path.name for path in (folder / "checkpoints").glob("*.json"))


@pytest.mark.parametrize("space_name", ["nasbench_macro", "shufflenetv2"])
def test_the_loss_of_one_path_falls_within_a_few_steps(tmp_path: Path, space_name: str) -> None:
    space = toy_space(space_name)
    config = toy_config(steps=20, log_every=5, checkpoint=CheckpointConfig(seconds=0))
    toy_train(tmp_path, space=space, strategy=OnePath(space), config=config)
    losses = [line["loss"] for line in log_lines(tmp_path)]
    assert losses[-1] < 0.75 * losses[0]


def test_a_path_that_is_not_sampled_does_not_move(tmp_path: Path) -> None:
    space = toy_space("shufflenetv2")
    supernet = toy_supernet(space)
    toy_train(tmp_path / "all", space=space, supernet=supernet)  # momentum everywhere
    config = toy_config(steps=20, optimizer=OptimizerConfig(lr=0.05, weight_decay=0.1))
    before = {k: p.detach().clone() for k, p in supernet.named_parameters()}
    used = set(map(id, supernet.subnet_parameters(first_path(space))))
    toy_train(
        tmp_path / "one", space=space, supernet=supernet, strategy=OnePath(space), config=config
    )
    moved = {k for k, p in supernet.named_parameters() if not torch.equal(p, before[k])}
    assert moved == {k for k, p in supernet.named_parameters() if id(p) in used}


class FirstAllThenOne(OnePath):
    """Steps 0 to 3 train everything, so that all momenta are alive; then one path only."""

    def __init__(self, space: Space) -> None:
        super().__init__(space)
        self.frozen: dict[str, torch.Tensor] = {}

    def updates(self, step: Step) -> Iterator[Update]:
        if step.index == 4:
            self.frozen = {k: p.detach().clone() for k, p in step.supernet.named_parameters()}
        yield from SPOS.updates(self, step) if step.index < 4 else super().updates(step)


def test_live_momentum_does_not_move_a_path_that_is_not_sampled(tmp_path: Path) -> None:
    space = toy_space("shufflenetv2")
    supernet, strategy = toy_supernet(space), FirstAllThenOne(space)
    toy_train(tmp_path, space=space, supernet=supernet, strategy=strategy)
    used = set(map(id, supernet.subnet_parameters(first_path(space))))
    unused = {k: p for k, p in supernet.named_parameters() if id(p) not in used}
    assert unused
    assert all(torch.equal(p, strategy.frozen[k]) for k, p in unused.items())


def test_equal_seeds_give_equal_bits(tmp_path: Path) -> None:
    first, second = toy_train(tmp_path / "1"), toy_train(tmp_path / "2")
    assert first.weights_path.read_bytes() == second.weights_path.read_bytes()


def test_the_global_random_state_is_left_as_it_was(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    toy_train(tmp_path, space=toy_space("shufflenetv2"))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_weights_file_holds_the_trained_supernet(tmp_path: Path) -> None:
    space = toy_space()
    supernet = toy_supernet(space)
    result = toy_train(tmp_path, space=space, supernet=supernet)
    read = load_supernet(space, result.weights_path).state_dict()
    assert all(torch.equal(v, read[k]) for k, v in supernet.state_dict().items())


def test_log_lines_carry_the_step_the_epoch_and_the_mean_loss(tmp_path: Path) -> None:
    toy_train(tmp_path)
    lines = log_lines(tmp_path)
    assert [(line["step"], line["epoch"]) for line in lines] == [
        (2, 0.5), (4, 1.0), (6, 1.5), (8, 2.0),
    ]  # fmt: skip
    assert set(lines[0]) == {"step", "epoch", "loss", "lr", "images_per_s", "seconds"}
    assert lines[0]["images_per_s"] > 0


def test_progress_is_told_after_every_step(tmp_path: Path) -> None:
    told: list[Progress] = []
    toy_train(tmp_path, on_progress=told.append)
    assert [p.step for p in told] == list(range(1, 9))
    assert told[-1].steps == 8


def test_losses_are_read_at_log_lines_and_checkpoints_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    original = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: reads.append(len(t)) or original(t))
    toy_train(tmp_path, config=toy_config(log_every=4, checkpoint=CheckpointConfig(seconds=0)))
    assert reads == [4, 4]


class Spoiled(SPOS):
    """Multiplies the loss of one step."""

    def __init__(self, space: Space, at: int, factor: float) -> None:
        super().__init__(space)
        self.at, self.factor = at, factor

    def updates(self, step: Step) -> Iterator[Update]:
        factor = self.factor if step.index == self.at else 1.0
        arch, batch = self.space.sample(step.rng), step.batch()
        yield Update(losses=[lambda: step.loss(arch, batch) * factor])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(
    tmp_path: Path, bad: float
) -> None:
    space = toy_space()
    with pytest.raises(DivergedError, match=r"at step 4 \(learning rate 0\.0\d+"):
        toy_train(tmp_path, space=space, strategy=Spoiled(space, 4, bad))
    good = checkpoint.CheckpointFolder(tmp_path / "checkpoints").read_newest()
    assert good is not None
    assert good.step == 3
    assert all(bool(v.isfinite().all()) for v in good.tensors.values())
    assert not (tmp_path / "supernet.safetensors").exists()


def test_a_loss_that_jumps_stops_the_run(tmp_path: Path) -> None:
    space = toy_space()
    with pytest.raises(DivergedError, match="over 10 times its running median"):
        toy_train(
            tmp_path,
            space=space,
            strategy=Spoiled(space, 6, 100.0),
            config=toy_config(blow_up_after=5),
        )


def test_a_jump_is_found_before_a_checkpoint_is_written(tmp_path: Path) -> None:
    space = toy_space()
    # the jump is in the very step after which a checkpoint is due, and no log line is near
    config = toy_config(blow_up_after=5, log_every=100)
    with pytest.raises(DivergedError):
        toy_train(tmp_path, space=space, strategy=Spoiled(space, 5, 100.0), config=config)
    assert newest_checkpoint(tmp_path) == "step-000000003.json"


class Poison(SPOS):
    """Makes one weight infinite without touching a loss of the same step."""

    def updates(self, step: Step) -> Iterator[Update]:
        yield from super().updates(step)
        if step.index == 5:
            with torch.no_grad():
                next(step.supernet.parameters()).view(-1)[0] = math.inf


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    space = toy_space()
    with pytest.raises(DivergedError, match=r"not finite after step 6, for example weights/"):
        toy_train(tmp_path, space=space, strategy=Poison(space))
    assert newest_checkpoint(tmp_path) == "step-000000003.json"


def test_a_full_disk_leaves_the_previous_checkpoint_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = checkpoint.write_bytes, []

    def write(path: Path, data: bytes) -> None:
        calls.append(path)
        if len(calls) == 3:
            path.with_name(path.name + ".part").write_bytes(data[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, data)

    whole = toy_train(tmp_path / "whole")
    monkeypatch.setattr(checkpoint, "write_bytes", write)
    with pytest.raises(TrainingError, match=r"No space left.*step 3 is intact.*free some disk"):
        toy_train(tmp_path / "full")
    resumed = toy_train(tmp_path / "full")
    assert resumed.weights_path.read_bytes() == whole.weights_path.read_bytes()


def test_a_disk_that_fills_up_at_the_very_end_loses_no_step(tmp_path: Path) -> None:
    (tmp_path / "supernet.safetensors").mkdir()  # cannot be replaced by a file
    with pytest.raises(TrainingError, match="all steps are kept in the checkpoint of step 8"):
        toy_train(tmp_path)
    (tmp_path / "supernet.safetensors").rmdir()
    steps: list[Progress] = []
    assert toy_train(tmp_path, on_progress=steps.append).weights_path.is_file()
    assert not steps


def test_a_split_that_does_not_exist_is_named(tmp_path: Path) -> None:
    class Asking(SPOS):
        def updates(self, step: Step) -> Iterator[Update]:
            step.batch("calibration")
            yield from super().updates(step)

    space = toy_space()
    with pytest.raises(UsageError, match="'calibration'; there are: b-update, scoring, train"):
        toy_train(tmp_path, space=space, strategy=Asking(space))


def test_an_optimizer_that_was_not_declared_is_named(tmp_path: Path) -> None:
    class Wrong(SPOS):
        def updates(self, step: Step) -> Iterator[Update]:
            yield Update(optimizer="w", gradients={})

    space = toy_space()
    with pytest.raises(UsageError, match="optimizer 'w'; the strategy declares weights"):
        toy_train(tmp_path, space=space, strategy=Wrong(space))


def test_streams_without_a_train_split_are_refused(tmp_path: Path) -> None:
    space = toy_space()
    with pytest.raises(UsageError, match="'train' is needed"):
        train(space, toy_supernet(space), SPOS(space), {"val": ToyStream()}, toy_config(),
              tmp_path, seed=0)  # fmt: skip
