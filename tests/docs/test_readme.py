"""What the README shows is run, or is what CI runs."""

import doctest
import re
import shlex
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("hilnas ")]


def board_commands() -> list[list[str]]:
    """Commands that need a board: the ones with a prompt."""
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [shlex.split(line.removeprefix("$ ")) for line in lines if line.startswith("$ hilnas ")]


def test_python_examples_are_true(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    for number, block in enumerate(blocks("python")):
        runner.run(parser.get_doctest(block, {}, f"README block {number}", "README.md", 0))
    assert runner.tries > 0
    assert runner.failures == 0


def test_the_run_file_of_the_readme_is_valid():
    from pipeline.config import parse_run_config

    (shown,) = blocks("toml")
    assert (
        parse_run_config(shown).device[0].limits.latency_ms
        == tomllib.loads(shown)["device"][0]["limits"]["latency_ms"]
    )


def test_ci_runs_the_test_command_of_the_readme():
    assert "pip install tox && tox" in README
    assert "pip install tox && tox" in (ROOT / ".ci/run").read_text()


def test_every_file_that_the_readme_links_to_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("text", sorted(p.name for p in (ROOT / "docs").glob("*.md")))
def test_every_file_that_a_guide_links_to_is_there(text):
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "docs" / text).read_text())
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_the_graph_guide_runs():
    for block in blocks("python", (ROOT / "docs/graph.md").read_text()):
        exec(compile(block, "docs/graph.md", "exec"), {})


def test_every_environment_that_the_readme_names_is_there():
    tox = (ROOT / "tox.ini").read_text()
    for name in re.findall(r"`tox -e (\w+)`", README):
        assert f"[testenv:{name}]" in tox
