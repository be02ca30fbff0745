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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latency_tables.errors import (
    CheckpointError,
    DivergedError,
    RunChangedError,
    TrainingError,
    UsageError,
)
from pipeline.randomness import child_seed, numpy_generator
from pipeline.spaces.base import Space, Supernet
from pipeline.supernet.weights import check_tensors, save_supernet
from pipeline.training.checkpoint import Checkpoint, CheckpointFolder, join_state, split_state
from pipeline.training.config import ScheduleConfig, TrainConfig
from pipeline.training.divergence import LossMonitor
from pipeline.training.interrupt import Interrupts
from pipeline.training.log import TrainLog
from pipeline.training.optimizers import NamedOptimizer
from pipeline.training.precision import Precision, choose
from pipeline.training.schedules import learning_rate
from pipeline.training.step import Batch, Step, Strategy, Stream, Update
from pipeline.training.threads import torch_threads

WEIGHTS_FILE = "supernet.safetensors"
LOG_FILE = "train.jsonl"
CHECKPOINTS = "checkpoints"

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
) -> TrainResult:
    """Train a supernet in place and write ``supernet.safetensors`` to ``folder``.

    Continues from the newest checkpoint in ``folder``, if there is one; then the weights that
    ``supernet`` comes with do not matter.

    Args:
        streams: by split; ``"train"`` gives the length of an epoch.
        seed: root seed of the run.
        on_progress: called after every step; keep it short.

    Raises:
        DivergedError: the loss is not finite or blew up; the last good checkpoint is kept.
        RunChangedError: the checkpoints in ``folder`` belong to other settings.
        CheckpointError: no checkpoint in ``folder`` is whole.
        TrainingError: a checkpoint cannot be written, for example because the disk is full.
        KeyboardInterrupt: on Ctrl-C, after a checkpoint was written.
    """
    if "train" not in streams:
        raise UsageError(f"streams has the splits {sorted(streams)}; 'train' is needed")
    device = torch.device(device)
    with (
        torch_threads(config.threads),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        Interrupts() as interrupts,
    ):
        run = _Run(space, supernet, strategy, streams, config, folder, seed, device)
        run.begin()
        run.loop(interrupts, on_progress or (lambda _: None))
        return run.finish()


class _Run:
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
    ) -> None:
        self.space, self.supernet, self.strategy = space, supernet, strategy
        self.streams, self.config, self.seed, self.device = streams, config, seed, device
        self.folder = folder
        self.per_epoch = streams["train"].batches_per_epoch
        self.total = config.total_steps(self.per_epoch)
        self.log_interval = config.log_interval(self.total)
        self.log = TrainLog(folder / LOG_FILE)
        self.checkpoints = CheckpointFolder(folder / CHECKPOINTS)
        self.monitor = LossMonitor(
            factor=config.blow_up_factor, after=config.blow_up_after, n_classes=space.n_classes
        )
        self.done = 0  # steps
        self.saved = -1  # step of the newest checkpoint
        self.counters = dict.fromkeys(streams, 0)  # batches handed out, by split
        self.n_images, self.seconds = 0, 0.0
        self.logged_images, self.logged_seconds = 0, 0.0  # at the last log line
        self.precision = Precision()
        self.optimizers: dict[str, NamedOptimizer] = {}
        self.schedules: dict[str, ScheduleConfig] = {}

    # -- beginning and end -----------------------------------------------------------------

    def begin(self) -> None:
        """Continue from the newest checkpoint, or choose the precision and write the first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint = self.checkpoints.read_newest()
        self.supernet.to(self.device).train()
        if checkpoint is None:
            self._choose_precision()
        else:
            self._check_settings(checkpoint.state["settings"])
            self.precision = Precision(**checkpoint.state["precision"])
        self.precision.place(self.supernet, self.device)
        self._make_optimizers()
        if checkpoint is None:
            self.log.rewind(0)
            # at once, so that a run that is killed early keeps the precision it chose
            self._save()
        else:
            self._restore(checkpoint)
            self.log.rewind(self.done)

    def finish(self) -> TrainResult:
        """Write the weights."""
        path = self.folder / WEIGHTS_FILE
        extra = {"strategy": self.config.strategy, "steps": self.total, "seed": self.seed}
        try:
            save_supernet(self.space, self.supernet, path, extra=extra)
        except OSError as error:
            raise TrainingError(
                f"{path} cannot be written: {error.strerror or error}; all steps are kept in "
                f"the checkpoint of step {self.saved}",
                hint="free some disk space and start the same command again",
            ) from error
        return TrainResult(
            weights_path=path,
            steps=self.total,
            seconds=self.seconds,
            final_loss=self.monitor.mean,
            precision=self.precision,
            images_per_s=self.n_images / self.seconds if self.seconds else 0.0,
        )

    def _choose_precision(self) -> None:
        batch = self.streams["train"].batch(0)
        self.precision, seconds = choose(
            self.space, self.supernet, batch, self.config, seed=self.seed, device=self.device
        )
        timed = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in seconds.items())
        logger.info("training in %s%s", self.precision, f" (timed: {timed})" if timed else "")

    def _make_optimizers(self) -> None:
        for name, plan in self.strategy.optimizers().items():
            parameters = plan.parameters
            if parameters is None:
                parameters = dict(self.supernet.named_parameters())
            settings = plan.optimizer or self.config.optimizer
            self.optimizers[name] = NamedOptimizer(name, parameters, settings)
            self.schedules[name] = plan.schedule or self.config.schedule

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
                    self.monitor.read()
                    waiting = self.monitor.doubtful and self.done < self.total
                    if not waiting:
                        self._save()
                        last_saved = time.monotonic()
                on_progress(self._progress())
                if interrupts.asked:
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
        torch.manual_seed(child_seed(self.seed, "training", "torch", index))
        step = Step(
            index=index,
            supernet=self.supernet,
            rng=numpy_generator(self.seed, "training", "step", index),
            device=self.device,
            next_batch=self._next_batch,
            precision=self.precision,
            label_smoothing=self.config.label_smoothing,
        )
        losses: list[Tensor] = []
        for update in self.strategy.updates(step):
            losses.extend(self._execute(update, index))
        if losses:
            lr = self._lr(next(iter(self.optimizers)), index)
            self.monitor.add(index, lr, torch.stack(losses).mean())
        self.done += 1
        self.seconds += time.perf_counter() - started

    def _execute(self, update: Update, index: int) -> list[Tensor]:
        """Make the gradients of one update and step its optimizer; returns the losses."""
        optimizer = self.optimizers.get(update.optimizer)
        if optimizer is None:
            raise UsageError(
                f"an update names the optimizer {update.optimizer!r}; the strategy declares "
                f"{', '.join(sorted(self.optimizers))}"
            )
        for each in self.optimizers.values():
            each.clear()
        losses: list[Tensor] = []
        clip_norm, clip_value = update.clip_norm, update.clip_value
        if update.gradients is None:
            clip_norm = self.config.clip_norm if clip_norm is None else clip_norm
            clip_value = self.config.clip_value if clip_value is None else clip_value
            for make_loss in update.losses:
                with self.precision.autocast(self.device):
                    loss = make_loss()
                loss.backward()  # type: ignore[no-untyped-call]
                losses.append(loss.detach())
        else:
            ready = update.gradients() if callable(update.gradients) else update.gradients
            optimizer.clear()  # making them may have left some behind
            optimizer.set_gradients(ready)
        optimizer.scale_and_clip(scale=update.scale, clip_norm=clip_norm, clip_value=clip_value)
        optimizer.step(self._lr(update.optimizer, index))
        for each in self.optimizers.values():
            each.clear()
        return losses

    def _next_batch(self, split: str) -> Batch:
        stream = self.streams.get(split)
        if stream is None:
            known = ", ".join(sorted(self.streams))
            raise UsageError(f"the strategy asks for the split {split!r}; there are: {known}")
        batch = stream.batch(self.counters[split])
        self.counters[split] += 1
        self.n_images += len(batch.images)
        return batch

    def _lr(self, optimizer: str, index: int) -> float:
        lr = self.optimizers[optimizer].config.lr
        return learning_rate(self.schedules[optimizer], lr, index, self.total)

    # -- log and checkpoints ---------------------------------------------------------------

    def _write_log(self) -> None:
        self.monitor.read()
        seconds = self.seconds - self.logged_seconds
        self.log.append(
            {
                "step": self.done,
                "epoch": round(self.done / self.per_epoch, 4),
                "loss": self.monitor.take_logged(),
                "lr": self._lr(next(iter(self.optimizers)), self.done - 1),
                "images_per_s": round((self.n_images - self.logged_images) / seconds, 1),
                "seconds": round(self.seconds, 3),
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

    def _settings(self) -> dict[str, Any]:
        return {
            **self.config.numerics(),
            "space_id": self.space.space_id,
            "seed": self.seed,
            "device": self.device.type,
            "total_steps": self.total,
            "batches_per_epoch": {k: s.batches_per_epoch for k, s in self.streams.items()},
        }

    def _check_settings(self, saved: Mapping[str, Any]) -> None:
        now = self._settings()
        changed = sorted(k for k in now.keys() | saved.keys() if now.get(k) != saved.get(k))
        if changed:
            shown = "; ".join(f"{k}: {saved.get(k)} then, {now.get(k)} now" for k in changed)
            raise RunChangedError(
                f"the checkpoints in {self.checkpoints.folder} belong to other settings ({shown})",
                hint="undo the change, or train into another run folder",
            )

    def _save(self) -> None:
        """Write a checkpoint of a state that was found sane. Raises DivergedError otherwise."""
        self.monitor.read()
        strategy, tensors = split_state(self.strategy.state_dict(), "strategy")
        tensors |= {f"weights/{k}": v for k, v in self.supernet.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for key, value in optimizer.state_tensors().items():
                tensors[f"optimizer/{name}/{key}"] = value
        _refuse_non_finite(tensors, self.done)
        state = {
            "settings": self._settings(),
            "precision": self.precision.to_dict(),
            "threads": torch.get_num_threads(),
            "counters": self.counters,
            "n_images": self.n_images,
            "seconds": self.seconds,
            "logged": [self.logged_images, self.logged_seconds],
            "monitor": self.monitor.state_dict(),
            "strategy": strategy,
        }
        self.log.sync()
        self.checkpoints.write(Checkpoint(step=self.done, tensors=tensors, state=state))
        self.saved = self.done

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        if state["threads"] != torch.get_num_threads() and self.device.type == "cpu":
            logger.warning(
                "the run was started with %d threads and goes on with %d: the last bits may differ",
                state["threads"],
                torch.get_num_threads(),
            )
        weights = _below(checkpoint.tensors, "weights/")
        check_tensors(self.supernet, weights, f"checkpoint {checkpoint.step}")
        self.supernet.load_state_dict(weights)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_tensors(_below(checkpoint.tensors, f"optimizer/{name}/"))
        self.strategy.load_state_dict(join_state(state["strategy"], checkpoint.tensors))
        self.monitor.load_state_dict(state["monitor"])
        self.counters |= state["counters"]
        self.n_images, self.seconds = state["n_images"], state["seconds"]
        self.logged_images, self.logged_seconds = state["logged"]
        self.done = self.saved = checkpoint.step
        if self.done > self.total:
            raise CheckpointError(f"checkpoint {self.done} lies beyond the last step {self.total}")


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _refuse_non_finite(tensors: Mapping[str, Tensor], step: int) -> None:
    """One wait for the device; the names are only looked for when something is wrong."""
    floats = {k: v for k, v in tensors.items() if v.is_floating_point()}
    if not floats or bool(torch.stack([v.isfinite().all() for v in floats.values()]).all()):
        return
    names = [k for k, v in floats.items() if not bool(v.isfinite().all())]
    raise DivergedError(
        f"{len(names)} tensors are not finite after step {step}, for example {names[0]}; "
        "the last good checkpoint is kept",
        hint="a lower train.optimizer.lr, some train.schedule.warmup_steps or train.clip_norm = 5",
    )
