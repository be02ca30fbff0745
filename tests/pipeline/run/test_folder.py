"""A run folder knows what is done, and loses nothing."""

import json
import subprocess
import sys

import pytest

from latency_tables.errors import RunError, RunLockedError
from pipeline.run.folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    return run


def finish(folder, stage, fingerprint, name="out.txt", text="x"):
    folder.begin(stage, fingerprint, outputs=[name])
    folder.file(name).write_text(text)
    folder.finish(stage, fingerprint, [name], seconds=0.0)


def test_a_finished_stage_with_the_same_inputs_is_up_to_date(folder):
    finish(folder, "data", "f")
    assert folder.up_to_date("data", "f")


def test_other_inputs_make_a_stage_out_of_date(folder):
    finish(folder, "data", "f")
    assert not folder.up_to_date("data", "g")


def test_an_output_that_was_touched_makes_a_stage_out_of_date(folder):
    finish(folder, "data", "f")
    folder.file("out.txt").write_text("changed")
    assert not folder.up_to_date("data", "f")


def test_an_output_that_is_gone_makes_a_stage_out_of_date(folder):
    finish(folder, "data", "f")
    folder.file("out.txt").unlink()
    assert not folder.up_to_date("data", "f")


def test_a_stage_that_was_begun_and_not_finished_is_out_of_date(folder):
    folder.begin("data", "f", outputs=["out.txt"])
    folder.file("out.txt").write_text("half")
    assert not folder.up_to_date("data", "f")


def test_files_of_a_begun_stage_stay_for_going_on(folder):
    folder.begin("train", "f", lineage="l", working=["journal"])
    folder.file("journal").write_text("step 1")
    folder.begin("train", "f", lineage="l", working=["journal"])
    assert folder.file("journal").read_text() == "step 1"


def test_files_of_other_settings_are_put_aside_and_not_deleted(folder):
    finish(folder, "train", "f", text="precious")
    folder.begin("train", "g", outputs=["out.txt"])
    assert not folder.file("out.txt").exists()
    kept = list(folder.file("superseded").glob("train-*/out.txt"))
    assert [k.read_text() for k in kept] == ["precious"]


def test_a_journal_of_the_same_lineage_stays_when_other_settings_change(folder):
    folder.begin("search", "f", lineage="l", outputs=["front.json"], working=["journal"])
    folder.file("journal").write_text("generation 1")
    folder.file("front.json").write_text("{}")
    folder.begin("search", "g", lineage="l", outputs=["front.json"], working=["journal"])
    assert folder.file("journal").exists()
    assert not folder.file("front.json").exists()


def test_a_journal_of_another_lineage_is_put_aside(folder):
    folder.begin("search", "f", lineage="l", working=["journal"])
    folder.file("journal").write_text("generation 1")
    folder.begin("search", "g", lineage="m", working=["journal"])
    assert not folder.file("journal").exists()


def test_a_damaged_stamp_file_says_what_to_do(folder):
    folder.file("stages.json").write_text("{")
    with pytest.raises(RunError, match="damaged") as error:
        folder.stamps()
    assert "delete that file" in str(error.value)


def test_stamps_of_another_schema_are_refused(folder):
    folder.file("stages.json").write_text(json.dumps({"schema": 99, "stages": {}}))
    with pytest.raises(RunError, match="schema 99"):
        folder.stamps()


def test_a_second_process_is_kept_out_and_told_who_works_there(folder):
    script = (
        "import sys; from pathlib import Path; from pipeline.run.folder import RunFolder\n"
        "from latency_tables.errors import RunLockedError\n"
        "try:\n"
        "    with RunFolder(Path(sys.argv[1])).locked(): print('inside')\n"
        "except RunLockedError as error: print(error)\n"
    )
    with folder.locked():
        done = subprocess.run(
            [sys.executable, "-c", script, str(folder.path)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert "is in use by process" in done.stdout


def test_the_lock_is_free_again_afterwards(folder):
    with folder.locked():
        pass
    with (
        folder.locked(),
        pytest.raises(RunLockedError),
        RunFolder(folder.path).locked(),
    ):
        pass


def test_files_of_one_name_in_different_folders_are_put_aside_apart(tmp_path):
    folder = RunFolder(tmp_path)
    names = ["front.json", "boards/a/front.json", "boards/b/front.json"]
    for name in names:
        folder.file(name).parent.mkdir(parents=True, exist_ok=True)
        folder.file(name).write_text(name)
    folder.begin("search", "f", outputs=names)
    (aside,) = folder.file("superseded").iterdir()
    assert [(aside / name).read_text() for name in names] == names


def test_what_other_settings_wrote_and_these_do_not_is_put_aside_too(tmp_path):
    folder = RunFolder(tmp_path)
    names = ["front.json", "boards/a/front.json"]
    folder.begin("search", "f", outputs=names)
    for name in names:
        folder.file(name).parent.mkdir(parents=True, exist_ok=True)
        folder.file(name).write_text(name)
    folder.finish("search", "f", names, seconds=0.1)
    folder.begin("search", "g", outputs=["front.json"])
    assert not any(folder.file(name).exists() for name in names)
