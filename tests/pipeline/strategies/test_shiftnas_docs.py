from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from pipeline.generator.config import GeneratorConfig
from pipeline.run.starters import starter_names
from pipeline.strategies.distillation import DistillationOptions
from pipeline.strategies.shiftnas import ShiftNASOptions

PAGE = (Path(__file__).parents[3] / "docs" / "shiftnas.md").read_text(encoding="utf-8")


def test_the_options_of_the_guide_are_accepted() -> None:
    text = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0]
    train = tomllib.loads(text)["train"]
    assert train["strategy"] == "shiftnas"
    assert ShiftNASOptions.model_validate(train["options"]).cost == "latency:local"


@pytest.mark.parametrize(
    "key", sorted({**ShiftNASOptions.model_fields, **GeneratorConfig.model_fields})
)
def test_every_option_is_in_the_guide(key: str) -> None:
    assert f"`{key}`" in PAGE


def test_the_defaults_of_the_table_are_those_of_the_code() -> None:
    table = PAGE[: PAGE.index("### How B moves")]
    rows = dict(re.findall(r"^\| `(\w+)` \| `?([^|`]+?)`? \|", table, re.MULTILINE))
    own = set(ShiftNASOptions.model_fields) - set(DistillationOptions.model_fields)
    for key in own & set(rows):
        default = ShiftNASOptions.model_fields[key].default
        if default is None or key == "generator":
            continue
        shown = f'"{default}"' if isinstance(default, str) else str(default).lower()
        assert rows[key] == shown, key
    assert {"cost", "levels", "update_every", "freeze", "gradient"} <= set(rows)


def test_the_starters_of_the_guide_exist() -> None:
    named = re.findall(r"hilnas (?:run|init) ([a-z-]+shiftnas[a-z-]*)", PAGE)
    assert len(named) >= 3
    assert set(named) <= set(starter_names())
