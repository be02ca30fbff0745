"""``hilnas retrain``: options, refusals, JSON."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.cli.main import run_cli
from pipeline.retraining.config import recipe_names
from pipeline.training.config import TrainConfig

SUMMARY = {
    "inherited": {"test": 0.9, "n_images": 200},
    "retrained": {"test": {"value": 0.925, "n_images": 200}},
}


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    """Every test has folders of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def asked(monkeypatch):
    """What the command asks for, in place of doing it."""
    calls = []

    def retrain(job, config, **chosen):
        calls.append(SimpleNamespace(job=job, config=config, **chosen))
        return SUMMARY

    run = SimpleNamespace(train=TrainConfig(epochs=80, batch_size=32))
    job = SimpleNamespace(source=SimpleNamespace(config=run))
    monkeypatch.setattr("pipeline.run.retraining.retrain", retrain)
    monkeypatch.setattr("pipeline.cli.retrain.open_job", lambda source, **options: job)
    monkeypatch.setattr(
        "pipeline.run.retraining.measure_on_devices",
        lambda job, folder: calls.append(SimpleNamespace(measured=folder)),
    )
    return calls


def test_the_recipes_are_listed_with_a_line_each(capsys):
    assert run_cli(["retrain", "--recipe", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()


def test_alone_it_retrains_the_winner_from_scratch_as_the_run_was_trained(asked, capsys):
    assert run_cli(["retrain", "runs/digits"]) == 0
    (call,) = asked
    assert (call.arch, call.recipe, call.name) == (None, None, "retrained")
    assert (call.config.start, call.config.epochs, call.config.batch_size) == ("scratch", 80, 32)
    out = capsys.readouterr().out
    assert "90.00% inherited, 92.50% retrained (+2.50 points, 200 images)" in out
    assert "hilnas check runs/digits/retrained" in out


def test_options_reach_the_settings(asked):
    arguments = ["--fine-tune", "--recipe", "spos", "--arch", "3", "--all-data", "--tensorboard",
                 "--teacher", "t.onnx", "--set", "epochs=5", "--set", "teacher.weight=0.3",
                 "--own-augment", "--name", "retrained-b"]  # fmt: skip
    assert run_cli(["retrain", "runs/digits", *arguments]) == 0
    (call,) = asked
    config = call.config
    assert (call.arch, call.recipe, call.name) == ("3", "spos", "retrained-b")
    assert (config.start, config.epochs, config.all_data, config.tensorboard) == (
        "inherited", 5, True, True,
    )  # fmt: skip
    assert (config.augment, config.optimizer.lr) == (None, 0.5)
    assert Path(config.teacher.model) == Path("t.onnx").resolve()
    assert config.teacher.weight == 0.3


def test_the_augmentation_of_a_recipe_holds_unless_refused(asked):
    assert run_cli(["retrain", "runs/digits", "--recipe", "nasbench-macro"]) == 0
    assert asked[0].config.augment.flip


def test_from_scratch_wins_over_a_recipe_that_fine_tunes(asked):
    assert run_cli(["retrain", "r", "--recipe", "autoformer-fine-tune", "--from-scratch"]) == 0
    assert asked[0].config.start == "scratch"


def test_measuring_comes_after_the_network_is_there(asked):
    assert run_cli(["retrain", "runs/digits", "--measure"]) == 0
    assert asked[1].measured == Path("runs/digits/retrained")


def test_json_is_all_that_stdout_holds(asked, capsys):
    assert run_cli(["retrain", "runs/digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == SUMMARY


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "greedy"], "--recipe greedynas"),
        (["--set", "epoch=5"], "did you mean 'epochs'"),
        (["--set", "drop_path=1.5"], "drop_path"),
    ],
)
def test_wrong_settings_end_with_what_would_be_right(asked, capsys, arguments, words):
    assert run_cli(["retrain", "runs/digits", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert asked == []


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run_cli(["retrain", "empty"]) == 2
    assert "not a run folder" in capsys.readouterr().err
