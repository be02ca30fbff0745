"""A run that is killed with SIGKILL in any stage goes on, and loses nothing."""

import json
import os
import signal
import sqlite3
import time

import pytest

from latency_tables.files import sha256_file
from tests.e2e.conftest import SMALL

PATIENCE_S = 240


def table_records(home):
    """Sessions and keys of everything in the live table."""
    path = home.path / "data/hilnas/tables.sqlite"
    if not path.exists():
        return set()
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        try:
            return set(connection.execute("SELECT key, run_id FROM latencies"))
        except sqlite3.OperationalError:
            return set()  # another process is just making it


def begun(home, stage):
    path = home.path / "runs/digits/stages.json"
    return path.exists() and stage in json.loads(path.read_text())["stages"]


def some_lines(home, name, at_least):
    path = home.path / "runs/digits" / name
    return path.exists() and path.read_bytes().count(b"\n") >= at_least


MOMENTS = {
    "table": lambda home: len(table_records(home)) >= 1,
    "train": lambda home: any((home.path / "runs/digits/checkpoints").glob("*")),
    "search": lambda home: some_lines(home, "search.jsonl", 12),
    "export": lambda home: begun(home, "export"),
    "report": lambda home: begun(home, "check"),
}


def kill_at(home, reached):
    """Start the run, kill its whole session once ``reached``; tell whether it was in time."""
    process = home.start("run", "digits", "--quiet", *(w for s in SMALL for w in ("--set", s)))
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and not reached(home):
        assert time.monotonic() < deadline, "the moment to kill never came"
        time.sleep(0.005)  # polling with a deadline
    in_time = process.poll() is None
    if in_time:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return in_time


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run killed once in every stage and then finished; with what each kill left."""
    from tests.e2e.conftest import Home

    home = Home(path=tmp_path_factory.mktemp("killed"))
    left = {}
    for moment, reached in MOMENTS.items():
        in_time = kill_at(home, reached)
        journal = home.path / "runs/digits/search.jsonl"
        left[moment] = {
            "in_time": in_time,
            "records": table_records(home),
            "journal": journal.read_bytes() if journal.exists() else b"",
        }
    home.small_run()
    return home, left


def test_every_kill_hit_its_stage(killed):
    _, left = killed
    assert [m for m, found in left.items() if not found["in_time"]] == []


def test_a_killed_run_finishes(killed):
    home, _ = killed
    assert (home.path / "runs/digits/report.html").exists()


def test_no_measurement_is_lost_or_taken_twice(killed):
    home, left = killed
    now = table_records(home)
    assert left["table"]["records"] <= now
    table = [
        json.loads(line)["measurement"]
        for line in (home.path / "runs/digits/table.jsonl").read_text().splitlines()
        if line.startswith('{"measurement"')
    ]
    assert len({m["net_id"] for m in table}) == len(table) == 16


def test_what_the_search_had_journalled_stays_as_it_was(killed):
    home, left = killed
    journal = (home.path / "runs/digits/search.jsonl").read_bytes()
    whole = left["search"]["journal"]
    whole = whole[: whole.rfind(b"\n") + 1]
    assert len(whole) > 0
    assert journal.startswith(whole)


def test_a_killed_training_ends_with_the_same_bits(killed, home):
    killed_home, _ = killed
    home.hilnas("train", "digits", *(w for s in SMALL for w in ("--set", s)))
    name = "runs/digits/supernet.safetensors"
    assert sha256_file(killed_home.path / name) == sha256_file(home.path / name)


def test_more_generations_go_on_with_the_journal(killed):
    home, _ = killed
    before = (home.path / "runs/digits/search.jsonl").read_bytes()
    home.small_run("search.generations=3")
    journal = (home.path / "runs/digits/search.jsonl").read_bytes()
    searched = b"\n".join(x for x in before.split(b"\n") if b'"measurement"' not in x)
    assert journal.startswith(searched[: searched.find(b"\n")])
    assert journal.count(b'"kind":"generation"') == 4
