"""A trained network that teaches: its answers are learnt beside the labels.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015:

    z, z_T, T, w    logits of the student, logits of the teacher, temperature, weight

    loss = (1 − w) · CE(z, y) + w · T² · KL(softmax(z_T / T) ‖ softmax(z / T))

T² keeps the two gradients of the same size whatever T is. With ``kind = "alpha"`` the divergence is
AlphaNet's pair (:mod:`pipeline.strategies.distillation`, which teaches with the supernet's own
largest subnet; the two can be combined).

A teacher is a constant: it always runs in evaluation mode, without gradients, in fp32, and sees the
very images that the student sees, augmentation and all. Public code takes its teacher's answers
under dropout, which teaches the same picture differently every time;
here a teacher whose answers change from one call to the next is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from latency_tables.errors import UsageError
from pipeline.randomness import torch_generator
from pipeline.strategies.distillation import alpha_divergence, kl_divergence
from pipeline.training.config import TeacherConfig
from pipeline.training.step import Batch

Answer = Callable[[Tensor], Tensor]
"""Logits (N, n_classes) float32 for images (N, C, H, W) float32, on the same device."""

PROBES = 3
TOLERANCE = 1e-3
"""How far logits of one image may differ between batches, relative to the largest logit."""

logger = logging.getLogger(__name__)


class Teacher:
    """Mixes the divergence from a teacher's answers into a loss.

    Args:
        answer: the network; see ``Answer``. It must be in evaluation mode.
        config: weight, temperature and divergence.
        sha256: identity of the network's file, part of the check when a run goes on.

    >>> config = TeacherConfig(model="any", weight=0.25)
    >>> teacher = Teacher(lambda x: torch.tensor([[3.0, 1.0]]).log(), config, sha256="")
    >>> from types import SimpleNamespace
    >>> batch = SimpleNamespace(images=torch.zeros(1, 1, 2, 2), labels=torch.tensor([0]))
    >>> float(teacher.mixed(torch.tensor(1.0), torch.tensor([[3.0, 1.0]]).log(), batch))
    0.75
    """

    def __init__(self, answer: Answer, config: TeacherConfig, *, sha256: str) -> None:
        self.answer, self.config, self.sha256 = answer, config, sha256
        self._last: tuple[Tensor, Tensor] | None = None

    def mixed(self, loss: Tensor, logits: Tensor, batch: Batch) -> Tensor:
        """(1 − w) · ``loss`` + w · T² · divergence of ``logits`` (N, n_classes); a scalar."""
        config, taught = self.config, self.logits(batch).to(logits.dtype)
        if config.kind == "alpha":
            divergence = partial(alpha_divergence, logits, taught)
            low, high = divergence(alpha=-1.0), divergence(alpha=1.0)
            apart = torch.where(low.detach() > high.detach(), low, high)
        else:
            t = config.temperature
            apart = t**2 * kl_divergence(logits / t, taught / t)
        return (1 - config.weight) * loss + config.weight * apart

    def logits(self, batch: Batch) -> Tensor:
        """The teacher's logits (N, n_classes); asked once for all subnets that see one batch."""
        if self._last is None or self._last[0] is not batch.images:
            device = batch.images.device.type
            with torch.no_grad(), torch.autocast(device, enabled=False):
                self._last = batch.images, self.answer(batch.images.float()).detach()
        return self._last[1]


def one_by_one(answer: Answer) -> Answer:
    """A network whose batch is fixed at one, for batches of any size."""
    return lambda images: torch.cat([answer(images[i : i + 1]) for i in range(len(images))])


def batched(batch_answer: Answer, single: Answer, images: Tensor, *, name: str) -> Answer:
    """``batch_answer`` where it says of ``images`` what ``single`` says, else one by one."""
    slow = one_by_one(single)
    try:
        fits = _close(batch_answer(images), slow(images))
    except Exception as error:  # runtimes raise types of their own for a shape they do not take
        logger.debug("the teacher %s takes no batch of %d: %s", name, len(images), error)
        fits = False
    if fits:
        return batch_answer
    logger.warning("the teacher %s takes one image at a time: answers will be slow", name)
    return slow


def probe_images(input_shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """A few fixed images of noise, (PROBES, C, H, W)."""
    noise = torch.randn((PROBES, *input_shape), generator=torch_generator(0, "teacher", "probe"))
    return noise.to(device)


def check_answers(answer: Answer, images: Tensor, *, n_classes: int, name: str) -> None:
    """Raise UsageError unless ``answer`` gives finite logits, a row per image, reproducibly.

    A row that depends on the other images or on chance tells of a network in training mode.
    """
    first, again = answer(images), answer(images)
    if first.ndim != 2 or first.shape[1] != n_classes:
        classes = first.shape[1] if first.ndim == 2 else f"an output of {tuple(first.shape)}"
        raise UsageError(
            f"the teacher {name} tells {classes} classes apart; this run's images have {n_classes}",
            hint="train.teacher.model must be a network for the same classes",
        )
    if len(first) != len(images) or not bool(first.isfinite().all()):
        raise UsageError(
            f"the teacher {name} answers {len(images)} images with {tuple(first.shape)} numbers, "
            f"{int((~first.isfinite()).sum())} of them not finite"
        )
    alone = torch.cat([answer(images[i : i + 1]) for i in range(len(images))])
    if not torch.equal(first, again) or not _close(first, alone):
        raise UsageError(
            f"the teacher {name} gives the same images different answers: dropout or batch "
            "statistics are on",
            hint="export it in evaluation mode: network.eval() before torch.export or torch.onnx",
        )


def check_input(
    wanted: tuple[int | None, ...], input_shape: tuple[int, int, int], *, name: str
) -> None:
    """Raise UsageError unless images fit; ``wanted`` is (N, C, H, W), None where any size fits.

    >>> check_input((1, 3, 32, 32), (1, 8, 8), name="a.onnx")
    Traceback (most recent call last):
    latency_tables.errors.UsageError: the teacher a.onnx takes images 3×32×32; this run's are \
1×8×8; try: data.image_size and data.channels, or another teacher
    """
    fits = len(wanted) == 4 and all(
        w is None or w == s for w, s in zip(wanted[1:], input_shape, strict=True)
    )
    if not fits:
        shape = "×".join("any" if w is None else str(w) for w in wanted[1:])
        raise UsageError(
            f"the teacher {name} takes images {shape}; this run's are "
            f"{'×'.join(map(str, input_shape))}",
            hint="data.image_size and data.channels, or another teacher",
        )


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    a, b = a.detach(), b.detach()
    scale = max(1.0, float(b.abs().max()))
    return bool((a - b).abs().max() <= TOLERANCE * scale)
