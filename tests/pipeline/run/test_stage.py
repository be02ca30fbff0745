"""Stages run when they are out of date, and only then."""

from types import SimpleNamespace

import pytest

from latency_tables.errors import DataError
from pipeline.run.folder import RunFolder
from pipeline.run.progress import Reporter
from pipeline.run.stage import Stage, run_stages
from pipeline.training.ranks import ALONE


@pytest.fixture
def context(tmp_path):
    folder = RunFolder(tmp_path)
    return SimpleNamespace(
        folder=folder,
        reporter=Reporter(quiet=True),
        ranks=ALONE,
        settings={"a": 1, "b": 1},
        ran=[],
    )


def stage(name, needs=(), fails=False):
    def run(context):
        context.ran.append(name)
        if fails:
            raise DataError("no images")
        context.folder.file(name).write_text(str(context.settings.get(name)))

    return Stage(
        name=name,
        title=name,
        run=run,
        settings=lambda context: context.settings.get(name),
        needs=needs,
        outputs=(name,),
    )


def test_stages_run_in_order_and_once(context):
    stages = [stage("a"), stage("b", needs=("a",))]
    run_stages(stages, context)
    run_stages(stages, context)
    assert context.ran == ["a", "b"]


def test_a_changed_setting_runs_its_stage_and_those_behind_it(context):
    stages = [stage("a"), stage("b", needs=("a",)), stage("c")]
    run_stages(stages, context)
    context.settings["a"] = 2
    run_stages(stages, context)
    assert context.ran == ["a", "b", "c", "a", "b"]


def test_a_change_that_gives_equal_files_does_not_run_what_follows(context):
    first, second = stage("a"), stage("b", needs=("a",))
    run_stages([first, second], context)
    moved = Stage(**{f: getattr(first, f) for f in Stage.__slots__} | {"version": 2})
    run_stages([moved, second], context)
    assert context.ran == ["a", "b", "a"]


def test_until_stops_behind_the_named_stage(context):
    run_stages([stage("a"), stage("b")], context, until="a")
    assert context.ran == ["a"]


def test_a_stage_that_fails_runs_again_next_time(context):
    with pytest.raises(DataError):
        run_stages([stage("a"), stage("b", fails=True)], context)
    run_stages([stage("a"), stage("b")], context)
    assert context.ran == ["a", "b", "b"]
