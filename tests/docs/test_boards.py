"""What docs/boards.md says is what the code says."""

import ast
import json
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Literal, Union, get_args, get_origin

import click
import pytest
from pydantic import BaseModel

from device_agents.clocks import HELPER, helper_script, sudoers_line
from device_agents.inventory import DeviceEntry
from device_agents.measuring.pool import FAULTS_ALLOWED, REST_S, TRIES
from pipeline.cli.main import cli
from pipeline.export.device_check import LESS_ACCURATE, SLOWER
from tests.docs.test_readme import ROOT, blocks

GUIDE = (ROOT / "docs/boards.md").read_text()
NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}


def rows(heading):
    """Cells of the table below a heading, without its first two lines."""
    section = GUIDE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    table = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1:]]


def type_of(field):
    """How the guide names a field's type."""
    kind = field.annotation
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Literal:
        return ", ".join(f"`{json.dumps(part)}`" for part in get_args(kind) if part)
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        return f"list of {NAMES[item]}{'' if item is str else 's'}"
    if get_origin(kind) is dict:
        return "table of whole numbers" if get_args(kind)[1] is int else "table"
    low, high = (
        next((getattr(m, name) for m in field.metadata if hasattr(m, name)), None)
        for name in ("ge", "le")
    )
    if low is None:
        return NAMES[kind]
    return f"{NAMES[kind]}, {low} " + ("or more" if high is None else f"to {high}")


def default_of(field):
    """How the guide shows a field's default."""
    if field.is_required():
        return "needed"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return "–" if value is None else f"`{json.dumps(value)}`"


def test_the_reference_of_devices_toml_has_every_key_with_its_type_and_default():
    shown = [tuple(row[:3]) for row in rows("`devices.toml`")]
    assert shown == [
        (f"`{name}`", type_of(field), default_of(field))
        for name, field in DeviceEntry.model_fields.items()
    ]


def test_the_reference_notices_a_changed_type():
    class Changed(BaseModel):
        port: float | None = None

    assert type_of(Changed.model_fields["port"]) != type_of(DeviceEntry.model_fields["port"])


def test_the_helper_is_installed_as_the_code_expects_it():
    lines = [line for block in blocks("sh", GUIDE) for line in block.splitlines()]
    assert f"install -o root -g root -m 0755 hilnas-clocks {HELPER}" in lines
    assert f"echo '{sudoers_line('ubuntu')}' > /etc/sudoers.d/hilnas" in lines


def test_the_command_that_writes_the_helper_writes_it(tmp_path, monkeypatch, capfdbinary):
    (line,) = (x for block in blocks("sh", GUIDE) for x in block.splitlines() if "-c" in x.split())
    words = shlex.split(line)
    assert words[:2] == ["python3", "-c"]
    exec(compile(words[2], "docs/boards.md", "exec"), {})
    assert capfdbinary.readouterr().out == helper_script()


def test_the_helper_has_about_as_many_lines_as_the_guide_says():
    (said,) = re.findall(r"a shell script of some (\d+) lines", GUIDE)
    assert abs(len(helper_script().splitlines()) - int(said)) <= 5


def commands():
    lines = [line for block in blocks("console", GUIDE) for line in block.splitlines()]
    shown = [line.removeprefix("$ ") for line in lines if line.startswith("$ hilnas ")]
    in_text = re.findall(r"`(hilnas [^`]+)`", GUIDE)
    return sorted({line.replace("'", '"') for line in [*shown, *in_text]})


@pytest.mark.parametrize("line", commands())
def test_every_command_and_option_of_the_guide_exists(line):
    command = cli
    words = shlex.split(line)[1:]
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    options = {name for parameter in command.params for name in parameter.opts}
    used = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert used <= options


def test_the_run_file_of_the_guide_is_valid_and_the_clocks_are_an_entry():
    from pipeline.config import parse_run_config

    run, clocks, several = blocks("toml", GUIDE)
    assert parse_run_config(run).search.measure == "all"
    config = parse_run_config(f'[data]\nname = "digits"\n{several}')
    assert [d.name for d in config.device] == ["rpi4", "rk3588-a"]
    assert config.search.targets == "each"
    entry = DeviceEntry(name="board", ssh="board", **tomllib.loads(clocks))
    assert entry.power == "sudo"


@cache
def texts():
    """Every text of the code, with … for what is put in."""
    found = set()
    for package in ("device_agents", "pipeline"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                    found.add(re.sub("…+", "…", "".join(map(str, parts))))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
    return found


@pytest.mark.parametrize("message", [row[0].strip("`") for row in rows("When something is wrong")])
def test_every_message_that_the_guide_explains_is_one_of_the_code(message):
    assert any(message in text for text in texts())


def test_the_numbers_about_faults_and_regressions_are_those_of_the_code():
    assert (FAULTS_ALLOWED, REST_S, TRIES) == (2, 60.0, 4)
    assert "| two faults in a row | the board rests for a minute" in GUIDE
    assert "| … and four | it is given up" in GUIDE
    assert (SLOWER, LESS_ACCURATE) == (0.02, 0.005)
    assert "memory 2 % above, or an accuracy 0.5 points below" in GUIDE
