from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from pipeline.training.config import TrainConfig
from tests.pipeline.training.toys import toy_space, toy_train

PAGE = Path(__file__).parents[3] / "docs" / "training.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_recipe_of_the_guide_is_accepted() -> None:
    (text,) = blocks("toml")
    config = TrainConfig.model_validate(tomllib.loads(text)["train"])
    assert (config.total_steps(1252), config.optimizer.lr) == (150_000, 0.5)


def test_the_strategy_of_the_guide_trains(tmp_path: Path) -> None:
    names: dict[str, type] = {}
    exec(blocks("python")[0], names)
    space = toy_space()
    assert toy_train(tmp_path, space=space, strategy=names["TwoPaths"](space)).steps == 8


@pytest.mark.parametrize("key", sorted(TrainConfig.model_fields))
def test_every_setting_is_in_the_guide(key: str) -> None:
    assert key in PAGE.read_text(encoding="utf-8")
