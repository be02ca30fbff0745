from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from pipeline.cli.retrain import retrain
from pipeline.retraining.config import RetrainConfig, recipe_names
from pipeline.training.config import TrainConfig

PAGE = Path(__file__).parents[3] / "docs" / "retraining.md"
TEXT = PAGE.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_every_recipe_and_every_setting_of_its_own_is_in_the_guide() -> None:
    own = set(RetrainConfig.model_fields) - set(TrainConfig.model_fields)
    assert [word for word in (*recipe_names(), *own) if f"`{word}`" not in TEXT] == []


def test_every_option_is_in_the_guide_and_every_one_of_the_guide_exists() -> None:
    exist = {name for option in retrain.params for name in option.opts if name.startswith("--")}
    told = set(re.findall(r"--[a-z][a-z-]+", TEXT))
    assert exist - told <= {"--quiet", "--table", "--json"}
    assert told - exist == set()


def test_the_table_of_a_teacher_is_accepted() -> None:
    (text,) = blocks("toml")
    config = TrainConfig.model_validate(tomllib.loads(text)["train"])
    assert config.teacher is not None
    assert (config.teacher.weight, config.teacher.temperature) == (0.5, 2.0)


@pytest.mark.parametrize("code", blocks("python"))
def test_the_example_runs(code: str) -> None:
    exec(code, {})
