from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.cli.main import run_cli
from pipeline.run.job import Job
from pipeline.run.timings import report_timing, stage_timer
from pipeline.strategies.spos import SPOS
from pipeline.supernet.scoring import Scorer
from pipeline.training import timing
from pipeline.training.config import CheckpointConfig
from pipeline.training.engine import PARTS, Progress
from pipeline.training.timing import NO_TIMER, HostClock, PartTimer, Timing, timer_for
from tests.pipeline.training.toys import ToyStream, toy_config, toy_space, toy_supernet, toy_train


class Clock(HostClock):
    """Ticks when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def mark(self) -> float:
        return self.now


class LateClock(Clock):
    """Like a GPU: marks pass only once somebody waits, or when ``reached`` says so."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.waits = -1.0, 0

    def passed(self, mark: float) -> bool:
        return mark <= self.reached

    def wait(self, mark: float) -> None:
        self.reached, self.waits = mark, self.waits + 1


def seconds(of: Timing) -> dict[str, float]:
    return {row.part: row.seconds for row in of.parts}


def test_an_inner_part_stands_apart_from_the_outer_one() -> None:
    clock = Clock()
    timer = PartTimer(clock, ("outer", "inner"))
    with timer.running():
        clock.now += 1
        with timer.part("outer"):
            clock.now += 2
            with timer.part("inner"):
                clock.now += 4
            clock.now += 8
        clock.now += 16
    found = timer.timing()
    assert seconds(found) == {"outer": 10, "inner": 4, "other": 17}
    assert found.seconds == 31


def test_nothing_is_counted_before_and_after() -> None:
    clock = Clock()
    timer = PartTimer(clock)
    with timer.part("early"):
        clock.now += 1
    with timer.running():
        clock.now += 2
    clock.now += 4
    assert seconds(timer.timing()) == {"other": 2}


def test_a_part_that_fails_still_ends() -> None:
    clock = Clock()
    timer = PartTimer(clock)
    with contextlib.suppress(ValueError), timer.running(), timer.part("a"):
        clock.now += 1
        raise ValueError("wrong")
    with timer.running():
        clock.now += 2
    assert seconds(timer.timing()) == {"a": 1, "other": 2}


def test_images_per_second_count_the_time_of_the_part_alone() -> None:
    clock = Clock()
    timer = PartTimer(clock, ("data", "own"))
    with timer.running():
        timer.count(100)
        timer.count(7, "own")
        for part, spent in (("data", 0.5), ("own", 3.5)):
            with timer.part(part):
                clock.now += spent
    rows = {row.part: row for row in timer.timing().parts}
    assert (rows["data"].images_per_s, rows["own"].images_per_s) == (200, 2)
    assert (rows["data"].share, rows["other"].images_per_s) == (0.125, None)


def test_a_late_clock_is_waited_for_once_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PENDING", 4)
    clock = LateClock()
    timer = PartTimer(clock)
    with timer.running():
        for _ in range(10):
            with timer.part("a"):
                clock.now += 1
        assert clock.waits == 0
        clock.reached = 5.0
        with timer.part("a"):
            clock.now += 1
        assert len(timer._pending) < 20  # what was reached has been read
    assert clock.waits == 1
    assert seconds(timer.timing()) == {"a": 11, "other": 0}


def test_a_gpu_gets_events_and_a_processor_its_own_clock() -> None:
    assert isinstance(timer_for(torch.device("cpu"))._clock, HostClock)
    assert isinstance(timer_for(torch.device("cuda"))._clock, timing.CudaClock)


def test_the_parts_of_training_add_up_to_its_time(tmp_path: Path) -> None:
    timer, told = timer_for(torch.device("cpu"), PARTS), []
    toy_train(tmp_path, timer=timer, on_progress=told.append)
    found = timer.timing()
    assert found.n_images == 8 * 16
    assert [row.part for row in found.parts] == [*PARTS, "other"]
    assert all(row.seconds > 0 for row in found.parts)
    assert sum(row.share for row in found.parts) == pytest.approx(1)
    assert found.seconds >= told[-1].seconds  # of the steps alone


def test_a_timer_changes_no_bit(tmp_path: Path) -> None:
    timed = toy_train(tmp_path / "timed", timer=timer_for(torch.device("cpu")))
    plain = toy_train(tmp_path / "plain", timer=NO_TIMER)
    assert timed.weights_path.read_bytes() == plain.weights_path.read_bytes()


def test_calibration_and_validation_are_told_apart() -> None:
    space = toy_space()
    timer = timer_for(torch.device("cpu"))
    batches = [ToyStream().batch(i) for i in range(2)]
    scorer = Scorer(space, toy_supernet(space), batches, batches[:1], timer=timer)
    with timer.running():
        scorer.score(space.sample(np.random.default_rng(0)))
    rows = {row.part: row for row in timer.timing().parts}
    assert rows.keys() == {"BN calibration", "validation", "other"}
    images = {part: row.seconds * (row.images_per_s or 0) for part, row in rows.items()}
    assert images == pytest.approx({"BN calibration": 32, "validation": 16, "other": 0})
    assert (scorer.n_images, scorer.seconds > 0) == (48, True)


class Context:
    """What the report needs of a run."""

    def __init__(self, folder: Path, *, profile: bool) -> None:
        self.said: list[str] = []
        self.profile, self.torch_device = profile, torch.device("cpu")
        self.ranks = SimpleNamespace(leads=True)
        self.folder = SimpleNamespace(file=lambda name: folder / name)
        self.reporter = SimpleNamespace(say=self.said.append)


def test_a_profile_is_printed_and_kept_by_stage(tmp_path: Path) -> None:
    context: Any = Context(tmp_path, profile=True)
    for stage in ("train", "search", "train"):
        timer = stage_timer(context, ("data",))
        with timer.running(), timer.part("data"):
            timer.count(3)
        report_timing(context, stage, timer)
    stored = json.loads((tmp_path / "timing.json").read_text())
    assert stored.keys() == {"train", "search"}
    assert stored["train"]["n_images"] == 3
    assert [part["part"] for part in stored["search"]["parts"]] == ["data", "other"]
    assert context.said[0].split() == ["part", "seconds", "share", "images/s"]


def test_without_a_profile_nothing_is_timed_and_nothing_written(tmp_path: Path) -> None:
    context: Any = Context(tmp_path, profile=False)
    timer = stage_timer(context, PARTS)
    assert timer is NO_TIMER
    report_timing(context, "train", timer)
    assert not context.said
    assert not list(tmp_path.iterdir())


class Reads(TorchDispatchMode):
    """Counts how often a value leaves its tensor, which on a GPU is a wait."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.n += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", [{}, {"kind": "adamw", "lr": 1e-3}], ids=["sgd", "adamw"])
def test_no_step_between_two_log_lines_reads_a_value(
    tmp_path: Path, optimizer: dict[str, Any]
) -> None:
    space, counted = toy_space("shufflenetv2"), []
    config = toy_config(
        log_every=4, clip_norm=1.0, optimizer=optimizer, checkpoint=CheckpointConfig(seconds=0)
    )
    with Reads() as reads:

        def note(progress: Progress) -> None:
            counted.append(reads.n)
            reads.n = 0

        toy_train(tmp_path, space=space, strategy=SPOS(space), config=config, on_progress=note)
        float(torch.ones(1))
    assert reads.n == 1  # the mode does count
    assert counted[1:3] == [0, 0]
    assert counted[4:7] == [0, 0, 0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: only there a copy waits")
def test_steps_between_two_log_lines_never_wait_for_the_gpu(tmp_path: Path) -> None:
    from pipeline.data.batches import TrainStream
    from pipeline.data.config import AugmentConfig, DataConfig
    from pipeline.data.dataset import load_dataset
    from pipeline.spaces import load_space
    from pipeline.training.engine import train

    device = torch.device("cuda")
    data = load_dataset(DataConfig(name="digits")).to(device)
    augment = AugmentConfig(crop_padding=1, flip=True, color_jitter=0.2, erasing=0.2, cutmix=1.0)
    stream = TrainStream(data, data.pool, batch_size=16, seed=0, augment=augment, device=device)
    space = load_space("shufflenetv2", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    config = toy_config(steps=8, log_every=8, checkpoint=CheckpointConfig(seconds=0))
    timer = timer_for(device, PARTS)

    def watch(progress: Progress) -> None:
        mode: Callable[[str], None] = torch.cuda.set_sync_debug_mode
        mode("error" if progress.step < 7 else "default")

    try:
        train(
            space, toy_supernet(space).to(device), SPOS(space), {"train": stream}, config, tmp_path,
            seed=0, device=device, on_progress=watch, timer=timer,
        )  # fmt: skip
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(row.seconds > 0 for row in timer.timing().parts)


@pytest.mark.parametrize(
    ("command", "until"), [("run", None), ("train", "train"), ("search", "search")]
)
def test_the_option_of_the_command_reaches_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, until: str | None
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(Job, "run", lambda self, **how: asked.append(how))
    monkeypatch.setattr(Job, "print_summary", lambda self, **how: None)
    common = [command, "digits", "--out", str(tmp_path), "--table", str(tmp_path / "t.sqlite")]
    assert run_cli([*common, "--profile"]) == 0
    assert run_cli(common) == 0
    assert asked == [{"until": until, "profile": True}, {"until": until, "profile": False}]
