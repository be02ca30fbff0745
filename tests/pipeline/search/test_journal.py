import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from latency_tables.errors import MeasurementError, RunChangedError, RunError
from pipeline.search.config import SearchConfig
from pipeline.search.journal import Journal
from pipeline.search.limits import Limit

TINY = SearchConfig(population=6, parents=3, crossover=2, mutation=2, generations=3)
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
LIMITS = (Limit(metric="latency_ms", bound=3.0, device="board"),)


@pytest.fixture
def finished(make_world, tmp_path):
    """A finished search: its journal's bytes and its archive."""
    path = tmp_path / "finished.jsonl"
    result = make_world().run(path, TINY, *LIMITS)
    return path.read_bytes(), result.archive


def scores_in(data):
    return data.count(b'"kind":"score"')


def test_a_search_killed_after_any_line_ends_in_the_same_archive(make_world, tmp_path, finished):
    data, archive = finished
    lines = data.splitlines(keepends=True)
    for n in range(len(lines) + 1):
        path, world = tmp_path / f"{n}.jsonl", make_world()
        path.write_bytes(b"".join(lines[:n]))
        result = world.run(path, TINY, *LIMITS)
        assert result.archive == archive
        assert path.read_bytes() == data
        known = scores_in(b"".join(lines[:n]))
        assert (result.n_replayed, world.scored.total()) == (known, len(archive) - known)


def test_a_line_torn_anywhere_is_dropped_and_done_again(make_world, tmp_path, finished):
    data, archive = finished
    starts = [0]
    while starts[-1] < len(data):
        starts.append(data.index(b"\n", starts[-1]) + 1)
    for line in (0, 1, 2, 5, 9, len(starts) - 2):
        for share in (0.02, 0.5, 0.98, 1.0):
            length = int((starts[line + 1] - starts[line] - 1) * share)
            path, world = tmp_path / "torn.jsonl", make_world()
            path.write_bytes(data[: starts[line] + length])
            result = world.run(path, TINY, *LIMITS)
            assert result.archive == archive
            assert path.read_bytes() == data
            assert world.scored.total() == len(archive) - scores_in(data[: starts[line]])


def test_zeros_behind_the_last_line_are_dropped(make_world, tmp_path, finished):
    data, archive = finished
    path, world = tmp_path / "zeros.jsonl", make_world()
    path.write_bytes(data + b"\0" * 4096)
    assert world.run(path, TINY, *LIMITS).archive == archive
    assert path.read_bytes() == data


def test_damage_before_the_last_line_is_refused_with_its_number(make_world, tmp_path, finished):
    data, _ = finished
    lines = data.splitlines(keepends=True)
    lines[4] = lines[4].replace(b'"accuracy":0.', b'"accuracy":1.')
    path = tmp_path / "damaged.jsonl"
    path.write_bytes(b"".join(lines))
    with pytest.raises(RunError, match="line 5 is damaged: the checksum is wrong"):
        make_world().run(path, TINY, *LIMITS)


def test_a_missing_line_is_refused_with_the_number_of_the_next(make_world, tmp_path, finished):
    data, _ = finished
    lines = data.splitlines(keepends=True)
    path = tmp_path / "gap.jsonl"
    path.write_bytes(b"".join(lines[:3] + lines[4:]))
    with pytest.raises(RunError, match=r"line 4 is damaged: .*score 2 of generation 0 does not"):
        make_world().run(path, TINY, *LIMITS)


def test_a_journal_of_other_limits_is_refused(make_world, journal_path):
    make_world().run(journal_path, TINY, *LIMITS)
    with pytest.raises(RunChangedError, match="different: limits"):
        make_world().run(journal_path, TINY, Limit(metric="macs", bound=2e7))


def test_a_journal_from_before_there_were_refinements_is_continued(
    make_world, tmp_path, finished, monkeypatch
):
    _, archive = finished
    with monkeypatch.context() as old:
        old.setattr("pipeline.search.journal.SCHEMA", 2)
        make_world().run(tmp_path / "old", TINY, *LIMITS)
    world = make_world()
    assert world.run(tmp_path / "old", TINY, *LIMITS).archive == archive
    assert world.scored.total() == 0
    with monkeypatch.context() as strange:
        strange.setattr("pipeline.search.journal.SCHEMA", 9)
        make_world().run(tmp_path / "new", TINY, *LIMITS)
    with pytest.raises(RunError, match="schemas 2, 3, 4"):
        make_world().run(tmp_path / "new", TINY, *LIMITS)


def test_a_journal_of_another_seed_is_refused(make_world, journal_path):
    make_world().run(journal_path, TINY, *LIMITS)
    with pytest.raises(RunChangedError, match="different: seed"):
        make_world().run(journal_path, TINY, *LIMITS, seed=1)


def test_more_generations_go_on_with_a_finished_search(make_world, tmp_path):
    longer = TINY.model_copy(update={"generations": 5})
    whole = make_world().run(tmp_path / "whole", longer, *LIMITS)
    make_world().run(tmp_path / "raised", TINY, *LIMITS)
    world = make_world()
    raised = world.run(tmp_path / "raised", longer, *LIMITS)
    assert raised.archive == whole.archive
    assert world.scored.total() == 12


def test_latencies_are_replayed_even_if_the_device_says_something_else_now(
    make_world, tmp_path, finished
):
    data, archive = finished
    path, world = tmp_path / "slower.jsonl", make_world()
    path.write_bytes(data)
    world.latencies_ms = lambda archs: [2.5] * len(archs)  # the table was rebuilt in between
    evaluator = world.evaluator(*LIMITS)
    assert world.run(path, TINY, evaluator=evaluator).archive == archive
    assert evaluator.screen([e.arch for e in archive]) == [e.candidate for e in archive]
    assert world.timed.total() == 0


def test_a_score_is_in_the_file_before_the_next_one_is_asked_for(make_world, journal_path):
    world, lengths = make_world(), []

    def score(arch):
        lengths.append(scores_in(journal_path.read_bytes()))
        return world.score(arch)

    world.run(journal_path, TINY, evaluator=world.evaluator(score=score))
    assert lengths == list(range(24))


def test_answers_of_devices_survive_closing(world, journal_path, make_estimate):
    arch = world.table.minimum("macs")[1]
    with Journal.open(journal_path, {}) as journal:
        journal.measurement(
            "front", "board", arch, MeasurementError("OOM", "too big", blames="candidate")
        )
        journal.measurement("front", "board", arch, make_estimate(2.5))
    with Journal.open(journal_path, {}) as journal:
        error, latency = journal.measured("front", "board", arch)
        assert (error.code, error.message, error.blames) == ("OOM", "too big", "candidate")
        assert latency == make_estimate(2.5)
        assert journal.measured("front", "other", arch) == []
        assert journal.measured("search", "board", arch) == []


def test_every_line_is_plain_json(finished):
    data, _ = finished
    kinds = [json.loads(line)["record"]["kind"] for line in data.splitlines()]
    assert kinds == ["search", *(["generation"] + ["score"] * 6) * 4]


CHILD = """
import os, runpy, signal, sys
from pathlib import Path
from pipeline.search.config import SearchConfig
from pipeline.search.limits import Limit

World = runpy.run_path({conftest!r})["World"]
config = SearchConfig(**{config!r})
limit = Limit(metric="latency_ms", bound=3.0, device="board")
world = World()
def score(arch):
    if world.scored.total() == {survives}:
        os.kill(os.getpid(), signal.SIGKILL)
    return world.score(arch)
world.run(Path({path!r}), config, limit, evaluator=world.evaluator(limit, score=score))
"""


def test_a_process_killed_while_scoring_loses_no_score(make_world, tmp_path, finished):
    _, archive = finished
    path = tmp_path / "killed.jsonl"
    for _ in range(2):  # killed twice, 7 scores further each time
        code = CHILD.format(
            conftest=str(Path(__file__).with_name("conftest.py")),
            config=TINY.model_dump(),
            path=str(path),
            survives=7,
        )
        done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT)
        assert done.returncode == -signal.SIGKILL
    world = make_world()
    assert world.run(path, TINY, *LIMITS).archive == archive
    assert world.scored.total() == len(archive) - 14
