"""Every block of docs/data.md works as it is written."""

from __future__ import annotations

import doctest
import re
import tomllib
from pathlib import Path

import pytest

from pipeline.data.config import DataConfig

GUIDE = Path(__file__).parents[3] / "docs" / "data.md"


def test_the_examples_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(str(GUIDE), module_relative=False)
    assert result.attempted > 10
    assert result.failed == 0


def test_the_settings_of_the_guide_are_accepted() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        DataConfig.model_validate(tomllib.loads(block)["data"])


def test_every_augmentation_and_reader_is_in_the_guide() -> None:
    text = GUIDE.read_text()
    config = DataConfig()
    absent = {key for key in type(config.augment).model_fields if f"`{key}`" not in text}
    assert absent == {"policy_groups", "mix_probability"}
