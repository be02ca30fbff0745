from __future__ import annotations

import subprocess
import sys

import pytest

from latency_tables.errors import ConfigError, UsageError
from pipeline.retraining.config import recipe_names, recipe_summaries, retrain_config
from pipeline.training.config import TrainConfig
from pipeline.training.schedules import learning_rate

IMAGENET = 1_281_167


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_accepted_and_summed_up_in_one_line(name: str) -> None:
    config = retrain_config(name, TrainConfig())
    assert config.epochs is not None
    summary = dict(recipe_summaries())[name]
    assert 20 < len(summary) <= 100


def test_spos_is_the_recipe_of_its_code() -> None:
    config = retrain_config("spos", TrainConfig())
    steps = config.total_steps(-(-IMAGENET // config.batch_size))
    assert steps == pytest.approx(300_000, rel=0.005)
    rates = [learning_rate(config.schedule, config.optimizer.lr, s, steps) for s in (0, steps)]
    assert rates == [0.5, 0.0]
    assert (config.optimizer.weight_decay, config.optimizer.decay) == (4e-5, "matrices")
    assert (config.batch_norm, config.dropout) == ("recalibrate", 0.1)


@pytest.mark.parametrize(("name", "lr", "warmup"), [("greedynas", 0.064, 3), ("kshot", 0.128, 5)])
def test_the_mobile_recipes_warm_up_and_decay_as_printed(name: str, lr: float, warmup: int) -> None:
    config = retrain_config(name, TrainConfig())
    per_epoch = 1252
    steps = config.total_steps(per_epoch)
    schedule = config.schedule.in_steps(per_epoch, steps)
    at = warmup * per_epoch
    assert learning_rate(schedule, config.optimizer.lr, at, steps) == lr
    later = learning_rate(schedule, config.optimizer.lr, at + 24 * per_epoch, steps)
    assert later == pytest.approx(lr * 0.97**10)
    optimizer = config.optimizer
    assert (optimizer.kind, optimizer.momentum, optimizer.eps) == ("rmsprop", 0.9, 1e-3)
    assert (config.ema, config.batch_size) == (0.9999, 1024)


def test_nas_benchmarks_are_trained_as_they_were() -> None:
    macro, bench201 = (retrain_config(n, TrainConfig()) for n in ("nasbench-macro", "nasbench201"))
    assert (macro.epochs, macro.batch_size, macro.optimizer.weight_decay) == (50, 256, 5e-4)
    assert (bench201.epochs, bench201.optimizer.nesterov) == (200, True)
    assert {c.schedule.kind for c in (macro, bench201)} == {"cosine"}


def test_fine_tuning_of_autoformer_starts_from_what_is_inherited() -> None:
    config = retrain_config("autoformer-fine-tune", TrainConfig())
    assert (config.start, config.epochs) == ("inherited", 40)
    assert retrain_config("autoformer", TrainConfig()).start == "scratch"


def test_without_a_recipe_the_settings_are_those_of_the_run() -> None:
    run = TrainConfig(strategy="sandwich", options={"n_random": 1}, epochs=80, clip_norm=1.0)
    config = retrain_config(None, run)
    assert (config.epochs, config.clip_norm) == (80, 1.0)
    assert (config.strategy, config.options) == ("alone", {})
    tuned = retrain_config(None, run, flags={"start": "inherited"})
    assert tuned.optimizer.lr == run.optimizer.lr / 10


def test_what_belongs_to_the_machine_is_the_runs_and_not_the_papers() -> None:
    run = TrainConfig(threads=1, precision="fp32", channels_last="on")
    config = retrain_config("greedynas", run)
    assert (config.threads, config.precision, config.channels_last) == (1, "fp32", "on")


def test_overrides_win_over_the_recipe_and_flags_over_both() -> None:
    given = ["optimizer.lr=0.3", "all_data=false"]
    config = retrain_config("spos", TrainConfig(), given, {"all_data": True})
    assert (config.optimizer.lr, config.optimizer.momentum, config.all_data) == (0.3, 0.9, True)


def test_steps_take_the_place_of_the_epochs_of_a_recipe() -> None:
    assert retrain_config("spos", TrainConfig(), ["steps=120000"]).total_steps(10) == 120_000
    run = TrainConfig(steps=500)
    assert retrain_config(None, run, ["epochs=3"]).total_steps(10) == 30


def test_an_unknown_recipe_and_an_unknown_key_name_what_is_near() -> None:
    with pytest.raises(UsageError, match="no recipe is called 'greedy'") as caught:
        retrain_config("greedy", TrainConfig())
    assert caught.value.hint == "--recipe greedynas"
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        retrain_config(None, TrainConfig(), ["epoch=5"])


@pytest.mark.parametrize("key", ["options.n_random=1", 'warm_start="a.onnx"'])
def test_settings_of_supernets_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="belong to supernets"):
        retrain_config(None, TrainConfig(), [key])


def test_recipes_are_read_without_torch() -> None:
    script = (
        "import sys; import pipeline.retraining.config as c; c.recipe_summaries()\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
