"""Supernet Shifting: while a search runs, its supernet learns the subnets that the search likes.

Zhang et al., "Boosting Order-Preserving and Transferability for Neural Architecture Search: a
Joint Architecture Refined Search and Fine-tuning Approach", 2024, Algorithm 1 (lines 5 to 9),
sections 3.3 and 3.4.

=====================  ===========================================================================
paper                  here
=====================  ===========================================================================
W                      parameters of ``supernet``, moved in place
validate, then grad    the search scores a candidate first, then calls :meth:`Shifter.learn`
G                      ``Shifter._sums``: gradients by parameter name, summed over candidates
one step per round     :meth:`Shifter.step`, when a generation is over
transfer: immediate    a step per batch inside :meth:`Shifter.learn`; ``step`` has nothing to do
=====================  ===========================================================================

A candidate's gradient is the mean over ``batches`` training batches, each normalised by its own
statistics; running statistics and all other buffers stay as training left them. Parameters that
no candidate of the generation used get no gradient: they do not move, and their momenta do not
decay. In spaces whose sizes share weights a parameter is a whole tensor: where one candidate used
a part of it, momentum and weight decay reach all of it, as they do in training.

What a candidate is trained on follows from the seed and the number of its first batch alone. So a
search that was killed computes lost gradients anew, from the same weights: the same bits on a CPU
with the same number of threads.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from latency_tables.arch import Arch
from latency_tables.errors import DivergedError, TrainingError, UsageError
from latency_tables.files import canonical_json, write_bytes
from pipeline.randomness import child_seed, numpy_generator
from pipeline.search.shifting_config import ShiftingConfig
from pipeline.spaces.base import Space, Supernet
from pipeline.spaces.drop_path import switch_on
from pipeline.supernet.shifting_depthwise import fast_gradients, large_depthwise
from pipeline.supernet.weights import check_tensors, save_supernet
from pipeline.training.checkpoint import pack
from pipeline.training.config import OptimizerConfig
from pipeline.training.optimizers import NamedOptimizer
from pipeline.training.precision import Precision
from pipeline.training.step import Batch, Step, Stream
from pipeline.training.teacher import Teacher
from pipeline.training.timing import NO_TIMER, Timer

SCHEMA = "hilnas.shifting/1"
PART = "shifting"
"""The part of the work that a timer is told of."""
_WEIGHTS, _OPTIMIZER = "weights/", "optimizer/"


class Shifter:
    """Moves the weights of a supernet towards the candidates of a search.

    Args:
        space: the space of the supernet.
        supernet: trained weights, on the device of the batches; written to.
        stream: batches of the train split by number, of ``config.images_per_batch`` images.
        config: learning rate, batches per candidate and so on.
        seed: root of the random numbers of dropout.
        label_smoothing: of the training objective, as ``train.label_smoothing``.
        drop_path: of the training objective, as ``train.drop_path``.
        teacher: of the training objective, as ``train.teacher``.
        precision: number format of the passes; gradients and weights are fp32.
        parameters: names of the parameters that may move, such as those of a new head (paper:
            "head only"). None: all of them ("whole network").
        timer: told when ``PART`` is at work, and how many images went through it.

    ``steps`` counts optimizer steps since the supernet was trained, ``seconds`` and ``n_images``
    what this object spent.

    Raises:
        UsageError: ``parameters`` names something that the supernet does not have.

    A candidate is learnt, and the generation is over:

    >>> from pipeline.data.batches import TrainStream
    >>> from pipeline.data.config import DataConfig
    >>> from pipeline.data.dataset import load_dataset
    >>> from pipeline.spaces import load_space
    >>> import numpy as np
    >>> digits = load_dataset(DataConfig(name="digits"))
    >>> space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    >>> config = ShiftingConfig(batches=2, images_per_batch=16)
    >>> stream = TrainStream(digits, digits.pool, batch_size=16, seed=0)
    >>> shifter = Shifter(space, space.supernet(), stream, config, seed=0)
    >>> shifter.learn(space.sample(np.random.default_rng(0)), first=0)
    >>> shifter.step()
    >>> shifter.steps, shifter.n_images
    (1, 32)
    """

    def __init__(
        self,
        space: Space,
        supernet: Supernet,
        stream: Stream,
        config: ShiftingConfig,
        *,
        seed: int,
        label_smoothing: float = 0.0,
        drop_path: float = 0.0,
        teacher: Teacher | None = None,
        precision: Precision | None = None,
        parameters: Collection[str] | None = None,
        timer: Timer = NO_TIMER,
    ) -> None:
        self.space, self.supernet, self.stream, self.config = space, supernet, stream, config
        self.seed, self.label_smoothing, self.teacher = seed, label_smoothing, teacher
        self.precision, self.timer = precision or Precision(), timer
        self.steps, self.n_images, self.seconds = 0, 0, 0.0
        named = dict(supernet.named_parameters())
        if unknown := sorted(set(parameters or ()) - named.keys()):
            raise UsageError(f"the supernet has no parameter {unknown[0]!r} that could be moved")
        moving = named if parameters is None else {n: named[n] for n in named if n in parameters}
        self._still = [p for n, p in named.items() if n not in moving and p.requires_grad]
        settings = OptimizerConfig(
            kind="sgd", lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self._optimizer = NamedOptimizer(PART, moving, settings)
        self._sums: dict[str, Tensor] = {}
        self._n_learnt = 0  # candidates in the sums
        self._norms = [m for m in supernet.modules() if isinstance(m, _NormBase)]
        # autocast hands over other formats, for which there is nothing to gain
        large = [] if self.precision.dtype == "bf16" else supernet.modules()
        self._depthwise = large_depthwise(large)
        statistics = {id(buffer) for norm in self._norms for buffer in norm.buffers()}
        self._buffers = [
            (buffer, buffer.clone())
            for buffer in supernet.buffers()
            if id(buffer) not in statistics
        ]
        switch_on(supernet, drop_path)

    # -- Algorithm 1 -------------------------------------------------------------------------------

    def learn(self, arch: Arch, first: int) -> None:
        """Train on one candidate, which must have been scored before.

        Adds its gradient to those of its generation; with ``mode = "immediate"`` it makes a step
        after each batch.

        Args:
            arch: the candidate.
            first: number of its first batch in the stream.

        Raises:
            InvalidArchError: ``arch`` is not of the space.
            DivergedError: a loss or a gradient is not finite; nothing was added.
        """
        started = time.perf_counter()
        self.space.validate(arch)
        batches = range(first, first + self.config.batches)
        with self.timer.part(PART), self._training(first):
            if self.config.mode == "immediate":
                for number in batches:
                    self._gradients(arch, range(number, number + 1))
                    self._move()
            else:
                self._add(self._gradients(arch, batches))
        self.n_images += self.config.n_images
        self.timer.count(self.config.n_images, PART)
        self.seconds += time.perf_counter() - started

    def step(self) -> None:
        """Make the one step of a generation with everything that was learnt in it, if anything.

        Raises:
            DivergedError: the weights are not finite afterwards; what was saved before still is.
        """
        if not self._sums:
            return
        started = time.perf_counter()
        with self.timer.part(PART):
            scale = 1.0 if self.config.normalise == "sum" else 1.0 / self._n_learnt
            self._optimizer.clear()
            for name, gradient in self._sums.items():
                self._optimizer.parameters[name].grad = gradient
            self._optimizer.scale_and_clip(scale=scale, clip_norm=None, clip_value=None)
            touched = [self._optimizer.parameters[name] for name in self._sums]
            self._move()
            self.forget()
            if not _all_finite(touched):
                raise self._diverged(f"the weights are not finite after step {self.steps}")
        self.seconds += time.perf_counter() - started

    def forget(self) -> None:
        """Drop what was learnt since the last step."""
        self._sums, self._n_learnt = {}, 0

    def _add(self, gradients: Mapping[str, Tensor]) -> None:
        self._n_learnt += 1
        for name, gradient in gradients.items():
            if name in self._sums:
                self._sums[name].add_(gradient)
            else:
                self._sums[name] = gradient

    def _gradients(self, arch: Arch, numbers: range) -> dict[str, Tensor]:
        """The mean gradient over batches, by name; left on the parameters, too."""
        self._optimizer.clear()
        step = self._step(numbers[0])
        losses = []
        for number in numbers:
            loss = step.loss(arch, self.stream.batch(number))
            (loss / len(numbers)).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        parameters = self._optimizer.parameters.items()
        found = {name: p.grad for name, p in parameters if p.grad is not None}
        if not _all_finite([torch.stack(losses), *found.values()]):
            self._optimizer.clear()
            mean = float(torch.stack(losses).mean())
            raise self._diverged(f"the gradient of {arch!r} is not finite (mean loss {mean:.4g})")
        return found

    def _move(self) -> None:
        self._optimizer.step(self.config.lr)
        self._optimizer.clear()
        self.steps += 1

    def _step(self, number: int) -> Step:
        """The training objective, as strategies see it."""
        return Step(
            index=number,
            supernet=self.supernet,
            rng=numpy_generator(self.seed, "shifting", number),
            device=next(self.supernet.parameters()).device,
            next_batch=self._no_batch,
            precision=self.precision,
            label_smoothing=self.label_smoothing,
            teacher=self.teacher,
        )

    def _no_batch(self, split: str) -> Batch:
        raise UsageError(f"batches are asked for by number here, not of the split {split!r}")

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(
            f"{what} while shifting (learning rate {self.config.lr:g}); the trained supernet and "
            "the journal are kept",
            hint=f"the same command with --set search.shifting.lr={self.config.lr / 10:g}",
        )

    @contextmanager
    def _training(self, number: int) -> Iterator[None]:
        """Training mode with batch statistics; every buffer is as before afterwards.

        Dropout follows from the seed and ``number``; torch's own random numbers do not move.
        """
        mode = self.supernet.training
        tracked = [norm.track_running_stats for norm in self._norms]
        device = next(self.supernet.parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(child_seed(self.seed, "shifting", "torch", number))
            try:
                self.supernet.train()
                for norm in self._norms:
                    norm.track_running_stats = False
                for parameter in self._still:
                    parameter.requires_grad_(False)
                with fast_gradients(self._depthwise):
                    yield
            finally:
                for parameter in self._still:
                    parameter.requires_grad_(True)
                for norm, before in zip(self._norms, tracked, strict=True):
                    norm.track_running_stats = before
                self.supernet.train(mode)
                for buffer, kept in self._buffers:
                    buffer.copy_(kept)
                self._optimizer.clear()

    # -- the state on the disk ---------------------------------------------------------------------

    def save(self, path: Path, state: Mapping[str, Any]) -> None:
        """Write weights, momenta and the number of steps, between two generations.

        Args:
            path: the file; whole or untouched.
            state: JSON-ready; :meth:`saved` gives it back.

        Raises:
            TrainingError: the file cannot be written; the one before it is whole.
        """
        tensors = {f"{_WEIGHTS}{k}": v for k, v in self.supernet.state_dict().items()}
        for name, value in self._optimizer.state_tensors().items():
            tensors[f"{_OPTIMIZER}{name}"] = value
        body = {"schema": SCHEMA, "steps": self.steps, "state": dict(state)}
        with _disk(path):
            write_bytes(path, pack(tensors, {"hilnas": canonical_json(body)}))

    def saved(self, path: Path) -> dict[str, Any] | None:
        """What :meth:`save` was told, without loading it; None where no file can be read."""
        body = _metadata(path)
        return None if body is None else dict(body["state"])

    def load(self, path: Path) -> None:
        """Go on from a file of :meth:`save`.

        Raises:
            CheckpointError: its tensors are not those of the supernet.
        """
        body = _metadata(path)
        if body is None:
            raise TrainingError(f"{path} holds no state of a shifted supernet")
        with safe_open(path, framework="pt") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        weights = _below(tensors, _WEIGHTS)
        check_tensors(self.supernet, weights, path)
        self.supernet.load_state_dict(weights)
        self._optimizer.load_state_tensors(_below(tensors, _OPTIMIZER))
        self._buffers = [(buffer, buffer.clone()) for buffer, _ in self._buffers]
        self.steps = int(body["steps"])
        self.forget()

    def write_supernet(self, path: Path, extra: Mapping[str, Any]) -> None:
        """Write the weights as a supernet file, which ``load_supernet`` reads.

        Raises:
            TrainingError: the file cannot be written.
        """
        with _disk(path):
            save_supernet(
                self.space, self.supernet, path, extra={**extra, "shifting_steps": self.steps}
            )


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be written: {error.strerror or error}; every score is kept in the "
            "journal",
            hint="free some disk space and start the same command again",
        ) from error


def _metadata(path: Path) -> dict[str, Any] | None:
    """The JSON of a state file; None where there is no whole one of this version."""
    try:
        with safe_open(path, framework="pt") as stream:
            body: Any = json.loads((stream.metadata() or {}).get("hilnas", "null"))
    except (OSError, SafetensorError, ValueError):
        return None
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        return None
    return body


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _all_finite(tensors: Collection[Tensor]) -> bool:
    """Waits for the device once: a sum of norms is finite only where every element is."""
    norms = torch._foreach_norm([t.detach().float() for t in tensors])
    return bool(torch.stack(list(norms)).isfinite().all())
