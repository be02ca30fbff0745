"""Every example in a docstring of the three packages is run."""

import doctest
import importlib
import pkgutil

import pytest

import device_agents
import latency_tables
import pipeline


def module_names() -> list[str]:
    """Every module that a host may import; the agent's own modules run on boards."""
    found = []
    for package in (latency_tables, device_agents, pipeline):
        walked = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        found += [m.name for m in walked if not m.name.startswith("device_agents.board.")]
    return found


@pytest.mark.parametrize("name", module_names())
def test_examples_in_docstrings_are_true(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0
