"""A bare board becomes one that measures: no pip and no internet there, other Pythons and libcs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from latency_tables.oracle import MeasureJob
from tests.boards.conftest import FirstDay, Measure, install_runtime, need_image
from tests.fakes.emulated_board.boot import EmulatedBoard
from tests.fakes.emulated_board.recipe import Recipe
from tests.fakes.emulated_board.shell import shell

pytestmark = pytest.mark.board


def test_from_a_new_board_to_its_first_measurement_by_commands(first_day: FirstDay) -> None:
    said = first_day.said
    assert "devices bootstrap new" in said["add"].out
    bare = {check["name"]: check for check in said["doctor of a bare board"].json}
    assert bare["runtimes"]["state"] == "fail"
    assert bare["runtimes"]["remedy"] == "hilnas devices bootstrap new"
    assert [name for name, check in bare.items() if check["state"] == "fail"] == ["runtimes"]
    assert said["bootstrap"].json["fresh"]
    assert [runtime["name"] for runtime in said["probe"].json["runtimes"]] == ["onnxruntime"]
    assert "fail" not in {check["state"] for check in said["doctor"].json}
    codes = {name: command.code for name, command in said.items()}
    assert codes == {**dict.fromkeys(codes, 0), "doctor of a bare board": 5}
    statistics = said["measure"].json["measurement"]["statistics"]
    assert statistics["ratio_to_reference"] == pytest.approx(1.0, rel=0.02)  # it is the reference
    assert 'name = "new"' in first_day.inventory.read_text()


def test_bootstrap_leaves_the_board_s_own_packages_alone_and_finds_all_in_place_again(
    fast_board: EmulatedBoard, timed: Callable[..., Any]
) -> None:
    folder = ".cache/hilnas/agent/site"
    with shell(fast_board) as run:
        before = run(f"cat {folder}/current; ls -di {folder}/*/onnxruntime")
        assert "No such file" not in before
        with timed("second bootstrap"):
            assert not install_runtime(fast_board).fresh
        assert run(f"cat {folder}/current; ls -di {folder}/*/onnxruntime") == before
        assert "No module named" in run("python3 -c 'import onnxruntime'")


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
