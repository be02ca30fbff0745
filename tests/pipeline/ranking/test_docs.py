"""``docs/ranking.md`` says what there is."""

import doctest
import re
from pathlib import Path

from pipeline.cli.rank import rank
from pipeline.ranking import report, stability
from pipeline.search.config import SearchConfig

PAGE = Path(__file__).resolve().parents[3] / "docs" / "ranking.md"
COMMON = {"out", "overrides", "module", "quiet", "as_json"}
"""Options that every command on a run has."""


def test_the_table_of_options_is_that_of_the_command():
    section = PAGE.read_text().split("| option | what it does |")[1].split("\n\n")[0]
    named = set(re.findall(r"`(--[a-z]+)", section))
    options = [p for p in rank.params if p.param_type_name == "option" and p.name not in COMMON]
    assert named == {option.opts[0] for option in options}


def test_the_example_gives_what_it_says():
    found = doctest.testfile(str(PAGE), module_relative=False)
    assert (found.failed, found.attempted) == (0, 3)


def test_the_numbers_of_the_text_are_those_of_the_code():
    text = re.sub(r"\s+", " ", PAGE.read_text())
    assert f"Below {stability.THRESHOLD} the winner is not significant" in text
    assert f"the {stability.N_BEST} best candidates and the winner" in text
    assert f"h is {report.N_HIGH}, a quarter where there are fewer than {4 * report.N_HIGH}" in text
    assert f"mean over {report.N_DRAWS:,} draws" in text
    assert f"{report.N_RESAMPLES:,} resamples" in text
    assert f"at least {report.MIN_RESAMPLES}" in text


def test_the_settings_it_names_exist():
    assert SearchConfig.model_validate({"shifting": True}).shifting is not None
