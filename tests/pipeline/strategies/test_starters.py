"""Every starter's strategy can be made for its space at the size that the starter asks for."""

from __future__ import annotations

import pytest

from pipeline.config import parse_run_config
from pipeline.data.config import DataConfig
from pipeline.run.starters import starter_names, starter_text
from pipeline.spaces import load_space
from pipeline.strategies import STRATEGIES, load_strategy

PAPER_SCALE = [n for n in starter_names() if n.startswith(("imagenet-", "cifar10-"))]
QUICK = [n for n in starter_names() if n.startswith("quick-")]


def images_of(data: DataConfig) -> tuple[tuple[int, int, int], int]:
    """Shape and classes of what the starter says that it reads."""
    if data.name == "digits":
        return (1, 8, 8), 10
    size = data.image_size or 32
    return (3, size, size), 1000 if data.name == "folder" else 10


def make(name: str) -> object:
    config = parse_run_config(starter_text(name))
    shape, n_classes = images_of(config.data)
    space = load_space(
        config.space.name, preset=config.space.preset, input_shape=shape, n_classes=n_classes
    )
    return load_strategy(
        config.train.strategy, space=space, supernet=space.supernet(), options=config.train.options
    )


@pytest.mark.parametrize("names", [PAPER_SCALE, QUICK], ids=["paper", "quick"])
def test_every_strategy_has_a_starter(names: list[str]) -> None:
    used = {parse_run_config(starter_text(name)).train.strategy for name in names}
    assert used == set(STRATEGIES)


@pytest.mark.parametrize("name", QUICK)
def test_a_quick_starter_makes_its_strategy(name: str) -> None:
    assert make(name)


@pytest.mark.long
@pytest.mark.parametrize("name", PAPER_SCALE)
def test_a_paper_scale_starter_makes_its_strategy(name: str) -> None:
    assert make(name)
