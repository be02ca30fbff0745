from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest
from pydantic import ValidationError

from pipeline.training.config import TrainConfig

PAPER = """
strategy = "spos"
steps = 150_000
batch_size = 1024
label_smoothing = 0.1
[optimizer]
kind = "sgd"
lr = 0.5
momentum = 0.9
weight_decay = 4e-5
decay = "matrices"
[schedule]
kind = "linear"
final_lr = 0.0
"""


def test_the_paper_recipe_can_be_written_as_a_run_file() -> None:
    config = TrainConfig.model_validate(tomllib.loads(PAPER))
    assert config.total_steps(batches_per_epoch=1252) == 150_000
    assert (config.optimizer.lr, config.optimizer.decay) == (0.5, "matrices")


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="epoch"):
        TrainConfig.model_validate({"epoch": 3})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 1, "steps": 1}, "exclude each other"),
        ({"steps": 5, "schedule": {"warmup_steps": 5}}, "leaves nothing"),
        ({"optimizer": {"nesterov": True, "momentum": 0}}, "momentum > 0"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "betas"),
        ({"optimizer": {"lr": 0}}, "greater than 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate(settings)


def test_a_part_of_an_epoch_is_rounded_up() -> None:
    assert TrainConfig(epochs=0.5).total_steps(batches_per_epoch=5) == 3


def test_about_two_hundred_log_lines_are_written_by_default() -> None:
    assert TrainConfig().log_interval(2000) == 10
    assert TrainConfig().log_interval(50) == 1
    assert TrainConfig().log_interval(150_000) == 100
    assert TrainConfig(log_every=7).log_interval(150_000) == 7


def test_settings_and_strategy_names_are_read_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import pipeline.training.config, "
        "pipeline.strategies, pipeline.supernet, pipeline.training, pipeline.training.schedules"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
