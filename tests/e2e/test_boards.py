"""A run on a board behind SSH, and what its owner does with the result."""

import json
import os
import signal

import pytest

from tests.e2e.board_home import ONE_GENERATION, is_idle, wait_for


@pytest.fixture
def finished(finished_on_board):
    return finished_on_board


def test_the_winner_was_measured_on_the_board_and_keeps_its_limit(finished):
    manifest = json.loads(finished.file("manifest.json").read_text())
    (device,) = manifest["devices"]
    assert (device["name"], device["latency"]["source"]) == ("board", "measured")
    assert all(limit["kept"] for limit in manifest["limits"])


def test_every_candidate_was_measured_on_the_board_once(finished):
    finished.assert_whole(16)
    assert {to for _, to, _ in finished.journalled()} == {"board"}


def test_the_next_run_of_the_same_command_measures_nothing(finished, board):
    before, log = finished.table(), board.log
    finished.small_run(*ONE_GENERATION)
    assert finished.table() == before
    assert board.log.count("Accepted publickey") <= log.count("Accepted publickey") + 1


@pytest.fixture(scope="module")
def checked(finished_on_board):
    """A check of the export on the board, and the report it wrote."""
    said = finished_on_board.hilnas(
        "check", "runs/digits", "--device", "board", "--measuring", "quick", "--images", "20",
        "--output", "b.json", "--json", "--check", "latency_ms<=1000",
    )  # fmt: skip
    return json.loads(said)


def test_a_check_on_the_board_says_what_it_wrote(finished, checked):
    assert json.loads((finished.path / "b.json").read_text()) == checked
    assert checked["accuracy"]["n_images"] == 20


@pytest.mark.parametrize(
    ("factor", "code"), [pytest.param(10.0, 0, marks=pytest.mark.long), (0.01, 9)]
)
def test_a_check_against_a_baseline_fails_only_where_something_got_worse(
    finished, checked, factor, code
):
    report = json.loads(json.dumps(checked))
    report["measurement"]["statistics"]["ci_high_ns"] *= factor
    report["measurement"]["peak_memory_bytes"] *= 2
    (finished.path / "baseline.json").write_text(json.dumps(report))
    said = finished.hilnas(
        "check", "runs/digits", "--device", "board", "--measuring", "quick", "--no-data",
        "--baseline", "baseline.json", code=code,
    )  # fmt: skip
    assert "latency_ms" in said


def test_a_host_that_was_killed_measures_nothing_again_that_was_finished(
    trained_on_board, board, tmp_path
):
    home = trained_on_board.copy_to(tmp_path / "home")
    process = home.start(*home.words(command="search"))
    wait_for(process, lambda: len(home.journalled()) > 0)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert is_idle(board), "the board goes on computing for a host that is gone"
    finished, rows = home.journalled(), home.table()
    assert 0 < len(finished) < 16
    home.small_run(command="search")
    assert home.journalled()[: len(finished)] == finished
    home.assert_whole(16)
    assert rows <= home.table()
    front = {
        json.loads(line)["measurement"]["net_id"]
        for line in home.file("front.jsonl").read_text().splitlines()
        if line.startswith('{"measurement"')
    }
    again = [key for key, _ in home.table() - rows if key in {key for key, _ in rows}]
    assert len(again) <= len(front)
