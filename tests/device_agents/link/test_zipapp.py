"""The agent's archive: same bytes anywhere, readable by old interpreters, standard library only."""

from __future__ import annotations

import ast
import hashlib
import os
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from device_agents.link.zipapp import agent_archive, pack, sources

REPOSITORY = Path(__file__).parents[3]
CHILD_ONLY = ("inputs.py", "inference.py", "synthetic.py")


def test_the_archive_is_the_same_from_another_folder_and_process(tmp_path: Path) -> None:
    script = (
        "import hashlib; from device_agents.link.zipapp import agent_archive;"
        "print(hashlib.sha256(agent_archive()).hexdigest())"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONHASHSEED": "7",
        "TZ": "UTC+5",
    }
    said = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert said == hashlib.sha256(agent_archive()).hexdigest()


def test_changed_sources_change_the_archive() -> None:
    changed = {**sources(), "device_agents/board/timing.py": b"# other\n"}
    assert pack(changed) != agent_archive()


def test_the_archive_holds_the_entry_and_the_weight_maker() -> None:
    names = zipfile.ZipFile(BytesIO(agent_archive())).namelist()
    assert {"__main__.py", "latency_tables/synthetic.py"} <= set(names)


def test_the_entry_parses_with_the_grammar_of_python_3_6() -> None:
    ast.parse(sources()["__main__.py"], feature_version=(3, 6))


@pytest.mark.parametrize("name", sorted(sources()))
def test_every_module_of_the_agent_parses_with_the_grammar_of_python_3_7(name: str) -> None:
    ast.parse(sources()[name], feature_version=(3, 7))


@pytest.mark.parametrize("name", sorted(sources()))
def test_no_module_but_those_of_the_child_imports_beyond_the_standard_library(name: str) -> None:
    if name.endswith(CHILD_ONLY) or "runtime_" in name:
        return
    for node in ast.walk(ast.parse(sources()[name])):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        for module in modules:
            top = module.partition(".")[0]
            assert (
                top in sys.stdlib_module_names
                or module.startswith("device_agents.board")
                or (module == "latency_tables.synthetic")
            )


def _interpreter(version: str) -> str | None:
    found = sorted(Path.home().glob(f".pyenv/versions/{version}*/bin/python"))
    return str(found[0]) if found else None


@pytest.mark.parametrize(("version", "answer"), [("3.6", b'"BOOTSTRAP"'), ("3.7", b'"ok":true')])
def test_an_old_python_answers_in_json(version: str, answer: bytes, tmp_path: Path) -> None:
    python = _interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    agent = tmp_path / "agent"
    agent.write_bytes(agent_archive())
    process = subprocess.run(
        [python, str(agent), "--workdir", str(tmp_path / "work")],
        input=b'{"v":1,"id":1,"op":"ping"}\n',
        capture_output=True,
        timeout=30,
    )
    assert answer in process.stdout
