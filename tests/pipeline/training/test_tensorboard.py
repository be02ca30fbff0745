from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from latency_tables.errors import UsageError
from pipeline.training.board import BOARD_FOLDER, open_board
from pipeline.training.log import TrainLog
from tests.pipeline.training.toys import toy_config, toy_train

installed = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None,
    reason="the package tensorboard (extra hilnas[tensorboard]) is not installed",
)
KEYS = ("epoch", "loss", "lr", "images_per_s", "seconds")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar that TensorBoard would show: name → (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / BOARD_FOLDER))
    found.Reload()
    names = found.Tags()["scalars"]
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in names}


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(x) for x in (folder / "train.jsonl").read_text().splitlines()]


@installed
def test_the_scalars_are_the_numbers_of_the_lines(tmp_path: Path) -> None:
    toy_train(tmp_path, config=toy_config(tensorboard=True))
    found = scalars(tmp_path)
    for key in KEYS:
        assert [step for step, _ in found[key]] == [2, 4, 6, 8]
        values = [line[key] for line in lines(tmp_path)]
        assert [value for _, value in found[key]] == pytest.approx(values)


@installed
def test_a_run_that_goes_on_shows_no_step_twice(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(progress: object) -> None:
        if progress.step == 7:  # type: ignore[attr-defined]
            raise Stopped

    config = toy_config(tensorboard=True)
    with pytest.raises(Stopped):
        toy_train(tmp_path, config=config, on_progress=stop)
    assert [step for step, _ in scalars(tmp_path)["loss"]] == [2, 4, 6]
    toy_train(tmp_path, config=config)
    assert [step for step, _ in scalars(tmp_path)["loss"]] == [2, 4, 6, 8]
    assert len(list((tmp_path / BOARD_FOLDER).iterdir())) == 1


@installed
def test_a_board_that_is_asked_for_later_has_the_steps_before(tmp_path: Path) -> None:
    toy_train(tmp_path, config=toy_config())
    toy_train(tmp_path, config=toy_config(tensorboard=True))
    assert [step for step, _ in scalars(tmp_path)["loss"]] == [2, 4, 6, 8]


@installed
def test_what_is_no_number_is_left_out(tmp_path: Path) -> None:
    log = TrainLog(tmp_path / "train.jsonl", open_board(tmp_path))
    log.rewind(0)
    log.append({"step": 1, "loss": None, "lr": 0.5, "note": "text"})
    log.close()
    assert scalars(tmp_path) == {"lr": [(1, 0.5)]}


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match="needs the package tensorboard") as caught:
        toy_train(tmp_path, config=toy_config(tensorboard=True))
    assert "hilnas[tensorboard]" in (caught.value.hint or "")
    assert not (tmp_path / "train.jsonl").exists()


def test_training_is_the_same_with_and_without_it() -> None:
    assert toy_config().numerics() == toy_config(tensorboard=True).numerics()
