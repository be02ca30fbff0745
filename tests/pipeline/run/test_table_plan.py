"""What a run measures, and what ``--more`` has left to do."""

import json

import pytest

from latency_tables.errors import RunError
from pipeline.run.table_build import build_table
from pipeline.run.table_plan import PLAN_FILE
from pipeline.run.table_target import Extension
from tests.pipeline.run.conftest import SAMPLES

MORE = Extension(more=10)


@pytest.fixture
def stopped(script, open_run):
    """A call for 10 more networks that was stopped after the first batch of them."""
    build_table(open_run(), Extension())
    script.stop_after = SAMPLES + 6
    with pytest.raises(KeyboardInterrupt):
        build_table(open_run(), MORE)
    script.stop_after = None
    return open_run().folder.file(PLAN_FILE)


def test_another_number_is_another_order(script, open_run, stopped):
    build_table(open_run(), Extension(more=4))
    assert len({net for _, net in script.asked}) == SAMPLES + 6 + 4 - 1  # the sixth was lost


def test_a_runtime_that_was_upgraded_meanwhile_gets_a_table_of_its_own(
    script, open_run, stopped, monkeypatch
):
    from tests.pipeline.run.scripted_board import ScriptedMeasurer

    new = {**ScriptedMeasurer.runtime(None), "version": "2.0.0"}
    monkeypatch.setattr(ScriptedMeasurer, "runtime", lambda self: new)
    before = len(script.asked)
    build_table(open_run(), MORE)
    assert len(script.asked) - before == SAMPLES + 10


def test_a_damaged_plan_is_said_to_be_damaged(open_run, stopped):
    stopped.write_text(stopped.read_text()[:50])
    with pytest.raises(RunError, match="is damaged") as error:
        build_table(open_run(), MORE)
    assert "delete that file" in error.value.hint


def test_a_plan_of_a_newer_version_is_not_guessed_at(open_run, stopped):
    stopped.write_text(json.dumps({**json.loads(stopped.read_text()), "schema": 99}))
    with pytest.raises(RunError, match="another schema"):
        build_table(open_run(), MORE)
