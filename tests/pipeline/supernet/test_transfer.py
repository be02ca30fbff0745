"""Another run's supernet with a new classifier: what is kept, what is new, what is refused."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
import torch

from latency_tables.errors import CheckpointError
from pipeline.data.batches import TrainStream
from pipeline.data.config import DataConfig
from pipeline.data.dataset import load_dataset
from pipeline.spaces import SPACES, load_space
from pipeline.spaces.base import Space
from pipeline.supernet.transfer import HeadWarmUp, check_fits, classifier_of, take_over
from pipeline.supernet.transfer_config import TransferConfig
from pipeline.supernet.warm_start.fitting import fitted_image_channels
from pipeline.training.config import TrainConfig
from pipeline.training.engine import train


def space_of(name: str, n_classes: int = 10, channels: int = 3, side: int = 32) -> Space:
    preset = "micro" if name == "autoformer" else "tiny"
    return load_space(name, preset=preset, input_shape=(channels, side, side), n_classes=n_classes)


@pytest.mark.parametrize(
    ("name", "n_classes"),
    [
        ("nasbench_macro", 7),
        ("autoformer", 10),
        ("bignas", 10),
        *(pytest.param(name, 10, marks=pytest.mark.long) for name in SPACES),
    ],
)
def test_all_but_the_classifier_is_kept_to_the_last_bit(name: str, n_classes: int) -> None:
    source, target = space_of(name), space_of(name, n_classes)
    trained, fresh = source.supernet(), target.supernet()
    before = {k: t.clone() for k, t in fresh.state_dict().items()}
    check_fits(target, source)
    taken = take_over(fresh, target, trained)
    assert taken.fresh == classifier_of(target)
    assert all(n_classes in before[k].shape for k in taken.fresh)
    given = trained.state_dict()
    for k, tensor in fresh.state_dict().items():
        expected = before[k] if k in taken.fresh else given[k]
        assert torch.equal(tensor, expected), k
    assert len(taken.kept) + len(taken.fresh) == len(given)


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3)])
def test_the_first_convolution_is_fitted_to_other_colours(before: int, after: int) -> None:
    source, target = space_of("nasbench_macro", 10, before), space_of("nasbench_macro", 4, after)
    trained, fresh = source.supernet(), target.supernet()
    check_fits(target, source)
    (name,) = take_over(fresh, target, trained).fitted
    expected = fitted_image_channels(trained.state_dict()[name], after)
    assert torch.equal(fresh.state_dict()[name], expected)


def test_weights_that_depend_on_the_size_of_the_images_are_refused_at_another_size() -> None:
    source, other = space_of("autoformer"), space_of("autoformer", side=64)
    with pytest.raises(CheckpointError, match="images 3×32×32 do not fit images 3×64×64") as told:
        check_fits(other, source)
    assert told.value.hint == "--set data.image_size=32"


def test_a_supernet_of_another_space_is_refused() -> None:
    with pytest.raises(CheckpointError, match="is no supernet of nasbench_macro"):
        check_fits(space_of("nasbench_macro"), space_of("mobilenetv2"))


def test_naming_the_classifier_draws_no_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    classifier_of(space_of("nasbench_macro"))
    assert torch.equal(torch.rand(1), expected)


def test_a_warm_up_moves_the_classifier_alone(tmp_path: Path) -> None:
    digits = load_dataset(DataConfig(name="digits"))
    space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    supernet = space.supernet()
    before = {k: p.detach().clone() for k, p in supernet.named_parameters()}
    config = TrainConfig(steps=4, batch_size=16, precision="fp32", threads=1)
    stream = TrainStream(digits, digits.pool, batch_size=16, seed=0)
    strategy = HeadWarmUp(space, supernet)
    train(space, supernet, strategy, {"train": stream}, config, tmp_path, seed=0)
    moved = {k for k, p in supernet.named_parameters() if not torch.equal(p, before[k])}
    assert moved == set(classifier_of(space))


def test_the_guide_is_true_of_python_and_names_every_setting() -> None:
    guide = Path(__file__).parents[3] / "docs" / "transfer.md"
    result = doctest.testfile(str(guide), module_relative=False)
    assert (result.attempted, result.failed) == (6, 0)
    named = set(re.findall(r"`(\w+)`", guide.read_text()))
    assert set(TransferConfig.model_fields) <= named
