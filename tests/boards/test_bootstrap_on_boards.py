"""A bare board becomes one that measures: no pip and no internet there, other Pythons and libcs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from latency_tables.oracle import MeasureJob
from tests.boards.conftest import Measure, install_runtime, need_image
from tests.fakes.emulated_board.boot import EmulatedBoard
from tests.fakes.emulated_board.recipe import Recipe
from tests.fakes.emulated_board.shell import shell

pytestmark = pytest.mark.board


def test_a_bootstrapped_board_offers_onnxruntime_and_still_has_no_pip(
    fast_board: EmulatedBoard, measurer_of: Measure
) -> None:
    said = measurer_of(fast_board).probe()
    assert [runtime["name"] for runtime in said["runtimes"]] == ["onnxruntime"]
    assert said["runtimes"][0]["provider"] == "CPUExecutionProvider"
    with shell(fast_board) as run:
        assert "No module named" in run("python3 -c 'import pip'")
        assert "No module named" in run("python3 -c 'import onnxruntime'")  # system untouched


def test_a_second_bootstrap_finds_all_in_place(
    fast_board: EmulatedBoard, timed: Callable[..., Any]
) -> None:
    with shell(fast_board) as run:
        before = run("find / -xdev -name onnxruntime -type d | xargs ls -ldi")
    with timed("second bootstrap"):
        assert not install_runtime(fast_board).fresh
    with shell(fast_board) as run:
        assert run("find / -xdev -name onnxruntime -type d | xargs ls -ldi") == before


@pytest.mark.parametrize(
    ("recipe", "python"),
    [
        pytest.param(Recipe(release="trixie", server="dropbear"), "3.13", id="trixie-dropbear"),
        pytest.param(
            Recipe(release="bullseye"), "3.9", id="bullseye-openssh", marks=pytest.mark.long
        ),
    ],
)
def test_a_board_with_another_python_and_libc_is_bootstrapped_and_measures(
    recipe: Recipe,
    python: str,
    measurer_of: Measure,
    six_jobs: Sequence[MeasureJob],
    timed: Callable[..., Any],
) -> None:
    image = need_image(recipe, timed)
    with EmulatedBoard(image) as board:
        with timed(f"bootstrap of {recipe.name}"):
            installed = install_runtime(board)
        assert installed.fresh
        assert installed.packages.keys() >= {"onnxruntime", "numpy"}
        with measurer_of(board) as measurer:
            assert measurer.probe()["python"].startswith(f"{python}.")
            cheap, dear = measurer.measure([six_jobs[0], six_jobs[-1]])
    assert cheap.statistics is not None
    assert dear.statistics is not None
    assert dear.statistics.median_ns > 1.5 * cheap.statistics.median_ns
