"""What docs/own_model.md shows is run."""

from __future__ import annotations

import doctest
from typing import Any

from pipeline.config import parse_run_config
from tests.docs.test_readme import ROOT, blocks

GUIDE = (ROOT / "docs/own_model.md").read_text()


def test_the_examples_of_the_guide_are_true() -> None:
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks("python", GUIDE)):
        test = parser.get_doctest(block, names, f"block {number}", "own_model.md", 0)
        runner.run(test, clear_globs=False)
        names = test.globs
    assert runner.tries > 10
    assert runner.failures == 0


def test_the_run_file_of_the_guide_is_valid() -> None:
    (shown,) = blocks("toml", GUIDE)
    assert parse_run_config(shown).space.name == "MyNet"
