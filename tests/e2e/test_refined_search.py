"""A run whose search measures on the way where that decides most, killed in the middle."""

import json
import os
import signal
import time

import pytest

from pipeline.search.journal import read_journal
from tests.e2e.conftest import SMALL, Home

pytestmark = pytest.mark.long

REFINE = ("search.measure=refine", "search.refine_budget=6")
PATIENCE_S = 240


def words(command):
    return [
        command,
        "digits",
        *(word for setting in (*SMALL, *REFINE) for word in ("--set", setting)),
    ]


@pytest.fixture(scope="module")
def refined(tmp_path_factory):
    """A home whose search was killed once it had measured something, and then finished.

    With what the journal held at the kill, and what the second command said.
    """
    home = Home(path=tmp_path_factory.mktemp("refined"))
    home.hilnas(*words("train"))
    journal = home.path / "runs/digits/search.jsonl"
    process = home.start(*words("search"))
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and not (
        journal.exists() and b'"kind":"measurement"' in journal.read_bytes()
    ):
        assert time.monotonic() < deadline, "nothing was measured during the search"
        time.sleep(0.005)  # polling with a deadline
    in_time = process.poll() is None
    if in_time:
        os.killpg(process.pid, signal.SIGKILL)
    _, said = process.communicate()
    assert in_time, f"the search was over before it could be killed: {said}"
    left = journal.read_bytes()
    process = home.start(*words("search"))
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    return home, left[: left.rfind(b"\n") + 1], " ".join(said.split())


def test_what_was_chosen_and_measured_before_the_kill_stays(refined):
    home, left, _ = refined
    assert (home.path / "runs/digits/search.jsonl").read_bytes().startswith(left)


def test_the_search_measures_within_its_budget_and_every_network_once(refined):
    home, _, _ = refined
    content = read_journal(home.path / "runs/digits/search.jsonl")
    asked = [arch for wanted in content.refinements.values() for arch in wanted["local"]]
    assert 0 < len(asked) == len(set(asked)) <= 6
    for arch in asked:
        assert len(content.measurements["search", "local", arch]) == 1


def test_the_winner_is_measured_again_whatever_was_measured_on_the_way(refined):
    home, _, _ = refined
    front = json.loads((home.path / "runs/digits/front.json").read_text())
    assert front["points"][front["winner"]]["verdict"] == "keeps"
    assert all(point["measured"]["local"]["source"] == "measured" for point in front["points"])
    content = read_journal(home.path / "runs/digits/search.jsonl")
    live = {arch for phase, _, arch in content.measurements if phase == "front"}
    assert len(live) == len(front["points"])


def test_the_summary_says_what_was_measured_and_what_that_taught(refined):
    _, _, said = refined
    assert "networks measured during the search; predictions of them were off" in said
