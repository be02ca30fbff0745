"""Every strategy trains a user's model, resumes, and starts from weights that were given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latency_tables.errors import UsageError
from pipeline.own_model import Choice, Elastic, OwnSpace, own_space
from pipeline.strategies import STRATEGIES, load_strategy
from pipeline.strategies.passes import probing, without_dropout
from pipeline.training.compiling import compiled
from pipeline.training.engine import Progress
from tests.pipeline.training.toys import CLASSES, SHAPE, toy_config, toy_train

torch.set_num_threads(1)


class Small(nn.Module):
    """Two alternatives everywhere, so that strict fairness applies."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Elastic(nn.Conv2d(1, 8, 3, padding=1), width=(4, 8))
        self.norm = nn.BatchNorm2d(8)
        self.block = Choice("block", {"k3": nn.Conv2d(8, 8, 3, padding=1), "skip": nn.Identity()})
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.fc(torch.relu(self.block(x)).mean((2, 3)))


def small_space() -> OwnSpace:
    return own_space(Small, input_shape=SHAPE)


class Joined(nn.Module):
    """Statistics of the batch norm are those of two elastic parts; dropout is a function call."""

    def __init__(self) -> None:
        super().__init__()
        self.left = Elastic(nn.Conv2d(1, 8, 3, padding=1), width=(4, 8))
        self.right = Elastic(nn.Conv2d(1, 8, 1), width=(4, 8))
        self.norm = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(torch.cat([self.left(x), self.right(x)], 1)))
        return self.fc(F.dropout(x.mean((2, 3)), 0.5, training=self.training))


@pytest.mark.parametrize("make", [Small, Joined])
def test_passes_without_dropout_normalise_by_their_batch_and_probing_leaves_no_trace(make) -> None:
    space = own_space(make, input_shape=SHAPE)
    supernet, arch = space.supernet().train(), space.sample(np.random.default_rng(0))
    x = torch.randn(6, *SHAPE)

    def statistics() -> dict[str, Tensor]:
        return {k: v.clone() for k, v in supernet.named_buffers() if v.is_floating_point()}

    with torch.no_grad(), without_dropout(supernet):
        before = statistics()
        first = supernet(x, arch)
        assert not all(before[k].equal(v) for k, v in statistics().items())  # tracked
        for buffer in supernet.buffers():
            if buffer.is_floating_point():
                buffer.mul_(3).add_(1)
        torch.testing.assert_close(supernet(x, arch), first)
    before = statistics()
    with probing(supernet):
        torch.testing.assert_close(supernet(x, arch), first)
    assert all(before[k].equal(v) for k, v in statistics().items())


OPTIONS = {
    "greedynas": {"drawn": 4, "trained": 2},
    "shiftnas": {"levels": 2, "update_every": 4},
    "kshot": {"k": 2, "groups": 4},
}
# path dropout mixes the outputs of layers that each choose one operator
TRAINING = sorted(set(STRATEGIES) - {"one_shot"})


@pytest.mark.parametrize("name", TRAINING)
def test_every_strategy_trains_it(name: str, tmp_path) -> None:
    space = small_space()
    torch.manual_seed(0)
    supernet = space.supernet()
    before = {k: v.clone() for k, v in supernet.state_dict().items()}
    options = OPTIONS.get(name, {})
    strategy = load_strategy(name, space=space, supernet=supernet, options=options)
    result = toy_train(
        tmp_path, space=space, supernet=supernet, strategy=strategy, config=toy_config(steps=24)
    )
    assert result.steps == 24
    assert result.final_loss is not None
    assert np.isfinite(result.final_loss)
    moved = [k for k, v in supernet.state_dict().items() if not torch.equal(v, before[k])]
    assert {"model.stem.module.weight", "model.fc.weight"} <= set(moved)


def test_path_dropout_says_that_it_is_made_for_other_spaces() -> None:
    space = small_space()
    with pytest.raises(UsageError, match="each choose one operator"):
        load_strategy("one_shot", space=space, supernet=space.supernet())


def test_compiling_is_refused_and_not_quietly_left_out(tmp_path) -> None:
    space = small_space()
    supernet = space.supernet()
    with (
        pytest.raises(UsageError, match=r"not compiled.*train\.compile=false"),
        compiled(supernet, torch.device("cpu"), backend="eager"),
    ):
        supernet(torch.zeros(2, *SHAPE), space.probes[0])
    supernet(torch.zeros(2, *SHAPE), space.probes[0])


def test_strict_fairness_trains_every_alternative_equally() -> None:
    space = small_space()
    strategy = load_strategy("fairnas", space=space, supernet=space.supernet())
    models = strategy.models(np.random.default_rng(0))  # type: ignore[attr-defined]
    assert sorted(str(a["block"]) for a in models) == ["k3", "skip"]
    assert sorted(int(a["stem.width"]) for a in models) == [4, 8]


def test_the_sandwichs_outer_nets_are_those_of_the_macs_table() -> None:
    space = small_space()
    table = space.cost_table()
    assert dict(table.maximum("macs")[1]) == {"stem.width": 8, "block": "k3"}
    assert dict(table.minimum("macs")[1]) == {"stem.width": 4, "block": "skip"}


def test_training_is_the_same_when_it_is_done_again(tmp_path) -> None:
    found = []
    for i in range(2):
        space = small_space()
        torch.manual_seed(3)
        supernet = space.supernet()
        toy_train(tmp_path / str(i), space=space, supernet=supernet)
        found.append(supernet.state_dict())
    for key, value in found[0].items():
        assert torch.equal(found[1][key], value), key


class Stopped(Exception):
    """The process ends here."""


@pytest.mark.parametrize("name", ["spos", "sandwich"])
def test_a_stopped_training_goes_on_to_the_same_weights(name: str, tmp_path) -> None:
    def trained(folder: Path, stop_at: int | None = None) -> dict[str, Tensor]:
        space = small_space()
        torch.manual_seed(3)
        supernet = space.supernet()
        strategy = load_strategy(name, space=space, supernet=supernet)

        def stop(progress: Progress) -> None:
            if progress.step == stop_at:
                raise Stopped

        toy_train(folder, space=space, supernet=supernet, strategy=strategy, on_progress=stop)
        return supernet.state_dict()

    whole = trained(tmp_path / "whole")
    with pytest.raises(Stopped):
        trained(tmp_path / "stopped", stop_at=5)
    for key, value in trained(tmp_path / "stopped").items():
        assert torch.equal(value, whole[key]), key


def test_a_model_that_is_given_lends_its_weights_to_the_supernet() -> None:
    model = Small()
    space = own_space(model, input_shape=SHAPE)
    supernet = space.supernet()
    assert torch.equal(supernet.get_parameter("model.fc.weight"), model.fc.weight)
    with torch.no_grad():
        supernet.get_parameter("model.fc.weight").zero_()
    assert model.fc.weight.abs().sum() > 0
    assert space.name == "Small"


def test_making_a_space_leaves_torchs_random_numbers_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    small_space()
    assert torch.equal(torch.rand(3), expected)
