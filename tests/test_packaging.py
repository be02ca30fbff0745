"""What is installed, and with which bounds."""

import re
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {package.lower(): version for package, version in pairs}


def split(requirement: str) -> tuple[str, str]:
    found = re.match(r"([A-Za-z0-9-]+)>=([\w.]+)", requirement)
    assert found, requirement
    return found[1].lower(), found[2]


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_the_lowest_environment_uses_exactly_the_lower_bounds(requirement):
    package, lowest = split(requirement)
    pinned = pins("tests/lowest-constraints.txt")[package]
    if package != "torch":  # one build of torch is at hand, so its bound is not lowered
        assert re.sub(r"(\.0)+$", "", pinned) == re.sub(r"(\.0)+$", "", lowest)


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_what_ci_installs_is_pinned(requirement):
    assert split(requirement)[0] in {name.replace("_", "-") for name in pins("constraints.txt")}


def test_no_dependency_is_pinned_for_users():
    assert [r for r in REQUIREMENTS if "==" in r] == []


def test_the_wheel_holds_exactly_the_three_packages(tmp_path):
    from hatchling.builders.wheel import WheelBuilder

    (built,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = zipfile.ZipFile(built).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"pipeline", "device_agents", "latency_tables"}
    for needed in ("pipeline/starters/digits.toml", "pipeline/py.typed",
                   "pipeline/report/templates/report.html.j2",
                   "device_agents/board/agent.py"):  # fmt: skip
        assert needed in names
