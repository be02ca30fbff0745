"""The one training loop.

For every step: learning rates from the schedule, torch's generator seeded from (seed, step), the
strategy's updates executed one by one, the loss remembered on the device. In intervals: a log
line and a checkpoint, each after the losses were read and found sane.

Nothing random outlives a step except what the strategy keeps itself, and batches are a function
of their number, so a state is: weights, optimizer state, batch counters, the strategy's state,
recent losses and the chosen precision. A run that is killed at any moment and started again ends
with the same bits on a CPU, given the same number of threads.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latency_tables.errors import TrainingError, UsageError
from pipeline.randomness import child_seed, numpy_generator
from pipeline.spaces.base import Space, Supernet
from pipeline.spaces.drop_path import switch_on
from pipeline.supernet.weights import save_supernet
from pipeline.training.board import open_board
from pipeline.training.checkpoint import Checkpoint, CheckpointFolder
from pipeline.training.compiling import compiled
from pipeline.training.config import ScheduleConfig, TrainConfig
from pipeline.training.divergence import LossMonitor
from pipeline.training.ema import WeightAverage
from pipeline.training.global_norm import GlobalBatchNorm
from pipeline.training.interrupt import Interrupts
from pipeline.training.log import TrainLog
from pipeline.training.optimizers import NamedOptimizer
from pipeline.training.precision import Precision, choose
from pipeline.training.ranks import ALONE, Ranks
from pipeline.training.schedules import learning_rate
from pipeline.training.state import check_settings, restore, shared, snapshot
from pipeline.training.step import Batch, Step, Strategy, Stream, Update
from pipeline.training.teacher import Teacher
from pipeline.training.threads import torch_threads
from pipeline.training.timing import NO_TIMER, Timer

WEIGHTS_FILE = "supernet.safetensors"
LOG_FILE = "train.jsonl"
CHECKPOINTS = "checkpoints"
PARTS = ("data", "strategy", "forward", "backward", "optimizer")
"""Parts of the loop that a timer is told of; ``strategy`` is what strategies compute themselves.
Several ranks have ``reduction`` as well: averaging gradients, waiting for each other included."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands after a step; ``loss`` is the mean of the losses read last."""

    step: int
    steps: int
    loss: float | None
    seconds: float
    images_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a finished run says; ``seconds`` counts all its parts since the first start."""

    weights_path: Path
    steps: int
    seconds: float
    final_loss: float | None
    precision: Precision
    images_per_s: float


def train(
    space: Space,
    supernet: Supernet,
    strategy: Strategy,
    streams: Mapping[str, Stream],
    config: TrainConfig,
    folder: Path,
    *,
    seed: int,
    device: str | torch.device = "cpu",
    on_progress: Callable[[Progress], None] | None = None,
    timer: Timer = NO_TIMER,
    teacher: Teacher | None = None,
    ranks: Ranks = ALONE,
) -> TrainResult:
    """Train a supernet in place and write ``supernet.safetensors`` to ``folder``.

    Continues from the newest checkpoint in ``folder``, if there is one; then the weights that
    ``supernet`` comes with do not matter.

    Args:
        streams: by split; ``"train"`` gives the length of an epoch.
        seed: root seed of the run.
        on_progress: called after every step; keep it short.
        timer: told which of ``PARTS`` is at work, and how many images there were.
        teacher: the network of ``config.teacher``.
        ranks: the processes that train together; only rank 0 writes to ``folder``.

    Raises:
        DivergedError: the loss is not finite or blew up; the last good checkpoint is kept.
        RunChangedError: the checkpoints in ``folder`` belong to other settings.
        CheckpointError: no checkpoint in ``folder`` is whole.
        TrainingError: a checkpoint cannot be written, for example because the disk is full; or a
            compiled region needs too many graphs.
        KeyboardInterrupt: on Ctrl-C, after a checkpoint was written.
    """
    if "train" not in streams:
        raise UsageError(f"streams has the splits {sorted(streams)}; 'train' is needed")
    device = torch.device(device)
    compiling = compiled(supernet, device) if config.compile else nullcontext()
    with (
        ranks.together(),
        torch_threads(config.threads),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        Interrupts() as interrupts,
    ):
        run = Run(
            space, supernet, strategy, streams, config, folder, seed, device, timer, teacher, ranks
        )
        with closing(run.log), compiling:
            run.begin()
            with timer.running():
                run.loop(interrupts, on_progress or (lambda _: None))
            return run.finish()


class Run:
    """State of one run and the steps of its loop."""

    def __init__(
        self,
        space: Space,
        supernet: Supernet,
        strategy: Strategy,
        streams: Mapping[str, Stream],
        config: TrainConfig,
        folder: Path,
        seed: int,
        device: torch.device,
        timer: Timer,
        teacher: Teacher | None,
        ranks: Ranks,
    ) -> None:
        if (config.teacher is None) != (teacher is None):
            raise UsageError("a teacher and the settings train.teacher come together or not at all")
        self.timer, self.teacher, self.ranks = timer, teacher, ranks
        self.space, self.supernet, self.strategy = space, supernet, strategy
        self.streams, self.config, self.seed, self.device = streams, config, seed, device
        self.folder = folder
        self.per_epoch = streams["train"].batches_per_epoch
        self.total = config.total_steps(self.per_epoch)
        self.log_interval = config.log_interval(self.total)
        with_board = config.tensorboard and ranks.leads
        self.log = TrainLog(folder / LOG_FILE, open_board(folder) if with_board else None)
        self.checkpoints = CheckpointFolder(folder / CHECKPOINTS)
        self.monitor = LossMonitor(
            factor=config.blow_up_factor, after=config.blow_up_after, n_classes=space.n_classes
        )
        # whose images batch norms see
        self.statistics: AbstractContextManager[Any] = nullcontext()
        if ranks.world > 1 and config.ranks.global_batch_norm:
            self.statistics = GlobalBatchNorm(ranks, compiled=config.compile)
        self.done = 0  # steps
        self.saved = -1  # step of the newest checkpoint
        self.counters = dict.fromkeys(streams, 0)  # batches handed out, by split
        self.n_images, self.seconds = 0, 0.0
        self.logged_images, self.logged_seconds = 0, 0.0  # at the last log line
        self.precision = Precision()
        self.optimizers: dict[str, NamedOptimizer] = {}
        self.schedules: dict[str, ScheduleConfig] = {}
        self.average: WeightAverage | None = None

    # -- beginning and end -----------------------------------------------------------------

    def begin(self) -> None:
        """Continue from the newest checkpoint, or choose the precision and write the first.

        Rank 0 does, and the others take over its state.
        """
        self.supernet.to(self.device).train()
        checkpoint, fresh = None, False
        if self.ranks.leads:
            self.folder.mkdir(parents=True, exist_ok=True)
            checkpoint = self.checkpoints.read_newest()
            fresh = checkpoint is None
        if fresh:
            self._choose_precision()
            self._prepare()
            self.log.rewind(0)
            # at once, so that a run that is killed early keeps the precision it chose
            checkpoint = self._save()
        checkpoint = shared(self.ranks, checkpoint)
        if not fresh:
            check_settings(self, checkpoint.state["settings"])
            self.precision = Precision(**checkpoint.state["precision"])
            self._prepare()
            restore(self, checkpoint)
            if self.ranks.leads:
                self.log.rewind(self.done)

    def _prepare(self) -> None:
        """Make what depends on the precision."""
        self.precision.place(self.supernet, self.device)
        self._make_optimizers()
        switch_on(self.supernet, self.config.drop_path)
        if self.config.ema is not None:
            self.average = WeightAverage(self.supernet, self.config.ema)

    def finish(self) -> TrainResult:
        """Write the weights, the average of them where there is one."""
        path = self.folder / WEIGHTS_FILE
        if self.average is not None:
            self.average.give()
        extra = {"strategy": self.config.strategy, "steps": self.total, "seed": self.seed}
        try:
            if self.ranks.leads:
                save_supernet(self.space, self.supernet, path, extra=extra)
                if hasattr(self.strategy, "save"):
                    self.strategy.save(self.folder)
        except OSError as error:
            raise TrainingError(
                f"{path} cannot be written: {error.strerror or error}; all steps are kept in "
                f"the checkpoint of step {self.saved}",
                hint="free some disk space and start the same command again",
            ) from error
        self.ranks.compare(self.supernet.parameters())
        if self.ranks.stop(False):
            raise KeyboardInterrupt
        return TrainResult(
            weights_path=path,
            steps=self.total,
            seconds=self.seconds,
            final_loss=self.monitor.mean,
            precision=self.precision,
            images_per_s=self.n_images / self.seconds if self.seconds else 0.0,
        )

    def _choose_precision(self) -> None:
        batch = self.ranks.part(self.streams["train"].batch(0))
        self.precision, seconds = choose(
            self.space, self.supernet, batch, self.config, seed=self.seed, device=self.device
        )
        timed = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in seconds.items())
        logger.info("training in %s%s", self.precision, f" (timed: {timed})" if timed else "")

    def _make_optimizers(self) -> None:
        if hasattr(self.strategy, "plan"):
            self.strategy.plan(self.total)
        for name, plan in self.strategy.optimizers().items():
            parameters = plan.parameters
            if parameters is None:
                parameters = dict(self.supernet.named_parameters())
            settings = plan.optimizer or self.config.optimizer
            self.optimizers[name] = NamedOptimizer(name, parameters, settings)
            schedule = plan.schedule or self.config.schedule
            self.schedules[name] = schedule.in_steps(self.per_epoch, self.total)

    # -- the loop --------------------------------------------------------------------------

    def loop(self, interrupts: Interrupts, on_progress: Callable[[Progress], None]) -> None:
        """Take the steps that are left."""
        last_saved = time.monotonic()
        between_steps = True
        waiting = False  # a checkpoint is due, and the state is doubtful
        try:
            while self.done < self.total:
                between_steps = False
                self._take_step()
                between_steps = True
                if self.done % self.log_interval == 0 or self.done == self.total:
                    self._write_log()
                if waiting or self._due(last_saved) or self.done == self.total:
                    self._read_losses()
                    waiting = self.monitor.doubtful and self.done < self.total
                    if not waiting:
                        self._save()
                        last_saved = time.monotonic()
                on_progress(self._progress())
                if self.ranks.stop(interrupts.asked):
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            # in the middle of a step the weights are of no step: the last checkpoint counts
            if between_steps and self.saved != self.done:
                self._save()
            raise

    def _due(self, last_saved: float) -> bool:
        every = self.config.checkpoint
        by_steps = every.steps > 0 and self.done % every.steps == 0
        return by_steps or 0 < every.seconds <= time.monotonic() - last_saved

    def _take_step(self) -> None:
        started, index = time.perf_counter(), self.done
        config, rank = self.config.ranks, self.ranks.rank
        # dropout differs from rank to rank in any case; rank 0 draws what a single process draws
        own = (rank,) if rank else ()
        torch.manual_seed(child_seed(self.seed, "training", "torch", index, *own))
        own_paths = config.paths == "per_rank" and self.ranks.world > 1
        drawing = (rank,) if own_paths else ()
        step = Step(
            index=index,
            n_steps=self.total,
            supernet=self.supernet,
            rng=numpy_generator(self.seed, "training", "step", index, *drawing),
            device=self.device,
            next_batch=self._next_batch,
            precision=self.precision,
            label_smoothing=self.config.label_smoothing,
            teacher=self.teacher,
            ranks=self.ranks,
            own_paths=own_paths,
        )
        losses: list[Tensor] = []
        with self.timer.part("strategy"), self.statistics:
            for update in self.strategy.updates(step):
                losses.extend(self._execute(update, index))
        if self.average is not None:
            self.average.update()
        if losses:
            lr = self._lr(next(iter(self.optimizers)), index)
            self.monitor.add(index, lr, torch.stack(losses).mean())
        self.done += 1
        self.seconds += time.perf_counter() - started

    def _execute(self, update: Update, index: int) -> list[Tensor]:
        """Make the gradients of one update and step its optimizer; returns the losses."""
        moved = {name: self._optimizer(name) for name in (update.optimizer, *update.also)}
        for each in self.optimizers.values():
            each.clear()
        losses: list[Tensor] = []
        clip_norm, clip_value = update.clip_norm, update.clip_value
        if update.gradients is None:
            clip_norm = self.config.clip_norm if clip_norm is None else clip_norm
            clip_value = self.config.clip_value if clip_value is None else clip_value
            for make_loss in (*update.losses, *update.beside):
                with self.timer.part("forward"), self.precision.autocast(self.device):
                    loss = make_loss()
                with self.timer.part("backward"):
                    loss.backward()  # type: ignore[no-untyped-call]
                losses.append(loss.detach())
            losses = losses[: len(update.losses)]
        else:
            ready = update.gradients() if callable(update.gradients) else update.gradients
            moved[update.optimizer].clear()  # making them may have left some behind
            moved[update.optimizer].set_gradients(ready)
        for name, optimizer in moved.items():
            if self.ranks.world > 1:
                what = f"update of {name!r} in step {index}"
                with self.timer.part("reduction"):
                    shared_losses = losses if name == update.optimizer else []
                    means = self.ranks.reduce(optimizer.parameters, shared_losses, what=what)
                    losses = means or losses
        with self.timer.part("optimizer"):
            for name, optimizer in moved.items():
                optimizer.scale_and_clip(
                    scale=update.scale, clip_norm=clip_norm, clip_value=clip_value
                )
                optimizer.step(self._lr(name, index))
            for each in self.optimizers.values():
                each.clear()
        return losses

    def _optimizer(self, name: str) -> NamedOptimizer:
        """One that the strategy declares. Raises UsageError naming those that there are."""
        optimizer = self.optimizers.get(name)
        if optimizer is None:
            raise UsageError(
                f"an update names the optimizer {name!r}; the strategy declares "
                f"{', '.join(sorted(self.optimizers))}"
            )
        return optimizer

    def _next_batch(self, split: str) -> Batch:
        stream = self.streams.get(split)
        if stream is None:
            known = ", ".join(sorted(self.streams))
            raise UsageError(f"the strategy asks for the split {split!r}; there are: {known}")
        with self.timer.part("data"):
            batch = stream.batch(self.counters[split])
        self.counters[split] += 1
        self.n_images += len(batch.images)
        self.timer.count(len(batch.images))
        return self.ranks.part(batch) if split == "train" else batch

    def _lr(self, optimizer: str, index: int) -> float:
        lr = self.optimizers[optimizer].config.lr
        return learning_rate(self.schedules[optimizer], lr, index, self.total)

    # -- log and checkpoints ---------------------------------------------------------------

    def _read_losses(self) -> None:
        """Wait for the device and check the losses; steps that it had left to do count as time."""
        started = time.perf_counter()
        self.monitor.read()
        self.seconds += time.perf_counter() - started

    def _write_log(self) -> None:
        self._read_losses()
        if not self.ranks.leads:
            return
        seconds = self.seconds - self.logged_seconds
        numbers: dict[str, Any] = getattr(self.strategy, "log_numbers", dict)()
        self.log.append(
            {
                "step": self.done,
                "epoch": round(self.done / self.per_epoch, 4),
                "loss": self.monitor.take_logged(),
                "lr": self._lr(next(iter(self.optimizers)), self.done - 1),
                "images_per_s": round((self.n_images - self.logged_images) / seconds, 1),
                "seconds": round(self.seconds, 3),
                **numbers,
            }
        )
        self.logged_images, self.logged_seconds = self.n_images, self.seconds

    def _progress(self) -> Progress:
        return Progress(
            step=self.done,
            steps=self.total,
            loss=self.monitor.mean,
            seconds=self.seconds,
            images_per_s=self.n_images / self.seconds if self.seconds else 0.0,
        )

    def _save(self) -> Checkpoint | None:
        """Write a checkpoint of a state that was found sane (rank 0).

        Raises DivergedError where it was not.
        """
        self.monitor.read()
        checkpoint = None
        if self.ranks.leads:
            checkpoint = snapshot(self)
            self.log.sync()
            self.checkpoints.write(checkpoint)
        self.saved = self.done
        return checkpoint
