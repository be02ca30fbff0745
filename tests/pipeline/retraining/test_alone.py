from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latency_tables.arch import Arch
from latency_tables.errors import DivergedError, InvalidArchError, RunChangedError
from pipeline.retraining.alone import Alone, SpaceOfOne
from pipeline.retraining.config import RetrainConfig
from pipeline.strategies.spos import SPOS
from pipeline.supernet.scoring import materialise
from pipeline.training.engine import TrainResult, train
from tests.pipeline.training.toys import ToyStream, toy_config, toy_space


def one(genome: int = 0) -> SpaceOfOne:
    space = toy_space()
    return SpaceOfOne(space, space.sample(np.random.default_rng(genome)))


def fresh(space: SpaceOfOne) -> Alone:
    torch.manual_seed(0)
    return space.supernet()


def config(**changes: object) -> RetrainConfig:
    plain = toy_config().model_dump(exclude={"strategy", "options"}, exclude_none=True)
    return RetrainConfig.model_validate(plain | changes)


def run(folder: Path, space: SpaceOfOne, network: Alone, settings: RetrainConfig) -> TrainResult:
    return train(space, network, SPOS(space), {"train": ToyStream()}, settings, folder, seed=0)


def test_the_engine_trains_it_as_a_loop_written_by_hand_does(tmp_path: Path) -> None:
    space = one()
    settings = config(
        steps=3, schedule={"kind": "constant"}, label_smoothing=0.1, channels_last="off",
        optimizer={"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "decay": "all"},
    )  # fmt: skip
    trained = fresh(space)
    run(tmp_path, space, trained, settings)
    by_hand = fresh(space).network.train()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    for step in range(3):
        batch = ToyStream().batch(step)
        optimizer.zero_grad()
        F.cross_entropy(by_hand(batch.images), batch.labels, label_smoothing=0.1).backward()
        optimizer.step()
    for ours, theirs in zip(trained.network.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_it_is_the_network_of_its_space(tmp_path: Path) -> None:
    space = one(3)
    network = fresh(space)
    images = torch.randn(4, *space.input_shape)
    cut = materialise(space, Arch({}), network)
    with torch.no_grad():
        assert torch.equal(cut.eval()(images), network.eval()(images, Arch({})))
    inherited = space.space.network(space.only)
    inherited.load_state_dict(network.network.state_dict())
    with torch.no_grad():
        assert torch.equal(inherited.eval()(images), network(images, Arch({})))


def test_its_costs_are_those_that_its_space_states() -> None:
    space = one(5)
    assert space.cost_table().costs(Arch({})) == space.space.cost_table().costs(space.only)


def test_two_networks_of_one_space_are_different_spaces_of_one() -> None:
    ids = {one(genome).space_id for genome in range(4)}
    assert len(ids) == 4
    assert one(2).space_id == one(2).space_id


def test_a_network_of_another_space_is_refused() -> None:
    with pytest.raises(InvalidArchError):
        SpaceOfOne(toy_space(), Arch({"layer1": "no such operator"}))


def test_going_on_with_another_network_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    run(tmp_path, one(0), fresh(one(0)), config(steps=2))
    with pytest.raises(RunChangedError, match="space_id"):
        run(tmp_path, one(1), fresh(one(1)), config(steps=2))


def test_a_rate_that_blows_up_stops_it(tmp_path: Path) -> None:
    settings = config(steps=60, blow_up_after=2, optimizer={"lr": 1e9}, log_every=1)
    with pytest.raises(DivergedError):
        run(tmp_path, one(), fresh(one()), settings)


def test_stopped_with_everything_switched_on_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    from pipeline.retraining.alone import regularise

    class Stopped(Exception):
        pass

    def go(folder: Path, stop_at: int) -> bytes:
        space = one()
        network = fresh(space)
        regularise(network, drop_path=0.3, dropout=0.2, input_shape=space.input_shape)

        def stop(progress: object) -> None:
            if progress.step == stop_at:  # type: ignore[attr-defined]
                raise Stopped

        settings = config(
            steps=14, ema=0.9, optimizer={"kind": "rmsprop", "lr": 0.01},
            schedule={"kind": "exponential", "warmup_epochs": 0.5, "decay_epochs": 0.6},
        )  # fmt: skip
        streams = {"train": ToyStream()}
        result = train(space, network, SPOS(space), streams, settings, folder, seed=0,
                       on_progress=stop)  # fmt: skip
        return result.weights_path.read_bytes()

    with pytest.raises(Stopped):
        go(tmp_path / "stopped", 8)
    assert go(tmp_path / "stopped", -1) == go(tmp_path / "whole", -1)
