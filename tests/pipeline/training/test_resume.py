from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latency_tables.errors import CheckpointError, RunChangedError
from pipeline.strategies.spos import SPOS
from pipeline.training.config import CheckpointConfig, OptimizerConfig
from pipeline.training.engine import Progress
from pipeline.training.step import Step, Update
from tests.pipeline.training.toys import toy_config, toy_space, toy_train

SCRIPT = Path(__file__).with_name("killed_run.py")


def kill(folder: Path, space: str, moment: str, count: int) -> None:
    """Train in another process until it kills itself."""
    command = [sys.executable, str(SCRIPT), str(folder), space, moment, str(count)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def log_without_times(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "train.jsonl").read_text().splitlines()
    timed = ("seconds", "images_per_s")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


@pytest.mark.parametrize("space_name", ["nasbench_macro", "shufflenetv2"])
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(
    tmp_path: Path, space_name: str
) -> None:
    space, config = toy_space(space_name), toy_config(steps=14)
    whole = toy_train(tmp_path / "whole", space=space, config=config)
    rng = np.random.default_rng(len(space_name))
    broken = tmp_path / "broken"
    kill(broken, space_name, "step", int(rng.integers(1, 7)))
    kill(broken, space_name, str(rng.choice(["tensors", "json"])), int(rng.integers(1, 3)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)  # whatever the second process starts with must not matter
        resumed = toy_train(broken, space=space, supernet=space.supernet(), config=config)
    assert resumed.weights_path.read_bytes() == whole.weights_path.read_bytes()
    assert log_without_times(broken) == log_without_times(tmp_path / "whole")
    assert not list(broken.rglob("*.part"))


def stop_at(step: int) -> Any:
    def on_progress(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return on_progress


def interrupted(folder: Path, step: int = 5, **more: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        toy_train(folder, on_progress=stop_at(step), **more)


def test_an_interrupt_between_steps_saves_the_very_step(tmp_path: Path) -> None:
    interrupted(tmp_path, 5)  # checkpoints are due at 3 and 6
    assert (tmp_path / "checkpoints" / "step-000000005.json").exists()


class CtrlC(SPOS):
    """Presses Ctrl-C between the loss and the update of one step."""

    presses = 1

    def updates(self, step: Step) -> Iterator[Update]:
        for update in super().updates(step):
            if step.index == 4:
                for _ in range(self.presses):
                    signal.raise_signal(signal.SIGINT)
            yield update


@pytest.fixture
def foreground() -> Iterator[None]:
    """Ctrl-C as in the foreground; a shell's background job starts with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("foreground")
def test_ctrl_c_in_the_middle_of_a_step_saves_after_the_step(tmp_path: Path) -> None:
    whole, space = toy_train(tmp_path / "whole"), toy_space()
    with pytest.raises(KeyboardInterrupt):
        toy_train(tmp_path / "broken", space=space, strategy=CtrlC(space))
    assert (tmp_path / "broken" / "checkpoints" / "step-000000005.json").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = toy_train(tmp_path / "broken")
    assert resumed.weights_path.read_bytes() == whole.weights_path.read_bytes()


@pytest.mark.usefixtures("foreground")
def test_a_second_ctrl_c_ends_at_once_and_saves_nothing(tmp_path: Path) -> None:
    space = toy_space()
    strategy = CtrlC(space)
    strategy.presses = 2
    with pytest.raises(KeyboardInterrupt):
        toy_train(tmp_path, space=space, strategy=strategy)
    newest = max((tmp_path / "checkpoints").glob("*.json"))
    assert newest.name == "step-000000003.json"


def test_training_works_outside_the_main_thread(tmp_path: Path) -> None:
    results = []
    thread = threading.Thread(target=lambda: results.append(toy_train(tmp_path)))
    thread.start()
    thread.join()
    assert results[0].steps == 8


def test_adamw_resumes_with_the_same_bits(tmp_path: Path) -> None:
    config = toy_config(optimizer=OptimizerConfig(kind="adamw", lr=1e-3))
    whole = toy_train(tmp_path / "whole", config=config)
    interrupted(tmp_path / "broken", 5, config=config)
    resumed = toy_train(tmp_path / "broken", config=config)
    assert resumed.weights_path.read_bytes() == whole.weights_path.read_bytes()


def test_dropout_goes_on_with_the_same_numbers(tmp_path: Path) -> None:
    space = toy_space("shufflenetv2")
    whole = toy_train(tmp_path / "whole", space=space)
    interrupted(tmp_path / "broken", space=space)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        resumed = toy_train(tmp_path / "broken", space=space)
    assert resumed.weights_path.read_bytes() == whole.weights_path.read_bytes()


def test_two_generations_of_checkpoints_are_kept(tmp_path: Path) -> None:
    toy_train(tmp_path)
    steps = sorted(path.name for path in (tmp_path / "checkpoints").glob("*.json"))
    assert steps == ["step-000000006.json", "step-000000008.json"]


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = toy_train(tmp_path / "whole")
    folder = tmp_path / "broken"
    interrupted(folder)
    newest = folder / "checkpoints" / f"step-000000005.{suffix}"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(bytes(data))
    with caplog.at_level(logging.WARNING):
        resumed = toy_train(folder)
    assert "step-000000005" in caplog.text
    assert resumed.weights_path.read_bytes() == whole.weights_path.read_bytes()
    assert log_without_times(folder) == log_without_times(tmp_path / "whole")


def test_only_when_no_checkpoint_is_whole_is_resuming_refused(tmp_path: Path) -> None:
    interrupted(tmp_path)
    for path in (tmp_path / "checkpoints").glob("*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
        toy_train(tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optimizer": OptimizerConfig(lr=0.06)}, "optimizer"),
        ({"steps": 9}, "total_steps: 8 then, 9 now"),
        ({"label_smoothing": 0.0}, "label_smoothing: 0.1 then, 0.0 now"),
    ],
)
def test_other_settings_are_refused_and_named(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    interrupted(tmp_path)
    with pytest.raises(RunChangedError, match=named):
        toy_train(tmp_path, config=toy_config(**changes))


def test_other_intervals_of_checkpoints_and_log_lines_are_no_other_settings(
    tmp_path: Path,
) -> None:
    whole = toy_train(tmp_path / "whole")
    interrupted(tmp_path / "broken")
    often = toy_config(checkpoint=CheckpointConfig(seconds=0, steps=1), log_every=1)
    resumed = toy_train(tmp_path / "broken", config=often)
    assert resumed.weights_path.read_bytes() == whole.weights_path.read_bytes()


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = toy_train(tmp_path)
    data = first.weights_path.read_bytes()
    steps: list[Progress] = []
    again = toy_train(tmp_path, on_progress=steps.append)
    assert not steps
    assert again.weights_path.read_bytes() == data
    assert again.final_loss == first.final_loss


def test_a_log_line_cut_off_by_a_kill_is_replaced(tmp_path: Path) -> None:
    whole = toy_train(tmp_path / "whole")
    interrupted(tmp_path / "broken")
    with (tmp_path / "broken" / "train.jsonl").open("a") as stream:
        stream.write('{"step": 6, "epo')
    toy_train(tmp_path / "broken")
    assert log_without_times(tmp_path / "broken") == log_without_times(tmp_path / "whole")
    assert whole.steps == 8
