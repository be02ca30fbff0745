from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.training.checkpoint import unpack
from pipeline.training.ema import WeightAverage, averaging_rate
from tests.pipeline.training.toys import toy_config, toy_space, toy_supernet, toy_train


def weights(path: Path) -> dict[str, torch.Tensor]:
    return unpack(path.read_bytes())


def test_the_average_follows_a_sequence_computed_by_hand() -> None:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(0.0)
    average = WeightAverage(layer, decay=0.3)
    found = []
    for value in (1.0, 2.0, 3.0):
        layer.weight.data.fill_(value)
        average.update()
        found.append(float(average.tensors()["weight"]))
    # d = 2/11, 3/12 and then 0.3, as 4/13 is more than that
    first = 9 / 11 * 1.0
    second = 0.25 * first + 0.75 * 2.0
    third = 0.3 * second + 0.7 * 3.0
    assert found == pytest.approx([first, second, third], rel=1e-6)


def test_the_ramp_ends_at_the_decay() -> None:
    assert averaging_rate(0.9999, 89_989) < 0.9999
    assert averaging_rate(0.9999, 89_992) == 0.9999


def test_running_statistics_are_averaged_and_counters_copied() -> None:
    norm = nn.BatchNorm1d(1)
    average = WeightAverage(norm, decay=0.5)
    norm.running_mean.fill_(11.0)  # type: ignore[union-attr]
    norm.num_batches_tracked.fill_(7)  # type: ignore[union-attr]
    average.update()
    tensors = average.tensors()
    assert float(tensors["running_mean"]) == pytest.approx(9.0)
    assert int(tensors["num_batches_tracked"]) == 7


def test_giving_the_average_changes_the_network_and_not_the_average() -> None:
    layer = nn.Linear(1, 1)
    average = WeightAverage(layer, decay=0.9)
    start = layer.weight.detach().clone()
    layer.weight.data.add_(1.0)
    average.give()
    assert torch.equal(layer.weight, start)
    assert average.tensors()["weight"].data_ptr() != layer.weight.data_ptr()


def test_a_run_saves_what_averaging_its_own_weights_gives(tmp_path: Path) -> None:
    # the weights after every step are those of runs that end there: training is the same with it
    space = toy_space()
    supernet = toy_supernet(space)
    expected = {k: v.clone() for k, v in supernet.state_dict().items() if v.is_floating_point()}
    for steps in (1, 2, 3):
        config = toy_config(steps=steps, schedule={"kind": "constant"})
        after = weights(toy_train(tmp_path / f"{steps}", config=config).weights_path)
        d = (1 + steps) / (10 + steps)
        expected = {k: d * v + (1 - d) * after[k] for k, v in expected.items()}
    config = toy_config(steps=3, schedule={"kind": "constant"}, ema=0.9999)
    found = weights(toy_train(tmp_path / "ema", supernet=supernet, config=config).weights_path)
    assert max(float((found[k] - v).abs().max()) for k, v in expected.items()) < 1e-6
    assert all(torch.equal(v, found[k]) for k, v in supernet.state_dict().items())


def test_parameters_that_no_step_sampled_keep_their_values(tmp_path: Path) -> None:
    space = toy_space()
    supernet = toy_supernet(space)
    before = {k: p.detach().clone() for k, p in supernet.named_parameters()}
    found = weights(
        toy_train(tmp_path, supernet=supernet, config=toy_config(steps=1, ema=0.9)).weights_path
    )
    same = {k for k, v in before.items() if torch.equal(v, found[k])}
    assert 0 < len(same) < len(before)


def test_an_averaged_run_that_is_killed_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    config = toy_config(steps=14, ema=0.9)
    program = (
        "import sys; from pathlib import Path\n"
        "from tests.pipeline.training.killed_run import DyingSPOS\n"
        "from tests.pipeline.training.toys import toy_config, toy_space, toy_train\n"
        "space = toy_space()\n"
        "toy_train(Path(sys.argv[1]), space=space, strategy=DyingSPOS(space, int(sys.argv[2])),"
        " config=toy_config(steps=14, ema=0.9))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "killed"), "9"]
    killed = subprocess.run(
        command, cwd=Path(__file__).parents[3], capture_output=True, check=False
    )
    assert killed.returncode == -9, killed.stderr.decode()
    resumed = toy_train(tmp_path / "killed", config=config).weights_path.read_bytes()
    assert resumed == toy_train(tmp_path / "whole", config=config).weights_path.read_bytes()
