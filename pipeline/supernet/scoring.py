"""Score subnets with the weights of a trained supernet.

The running statistics inside a supernet are a mixture over all paths and fit none of them, so a
subnet is cut out (its weights shared, its statistics its own) and its batch norms are calibrated
on fixed images before it is scored on other fixed images, the same for every candidate. The
supernet is never written to.

Policies:

* ``recalibrate``: statistics are the cumulative mean over the calibration batches (default);
* ``batch``: every validation batch is normalised by itself; the score then depends on the batch
  size, and it is not what the exported network does;
* ``tracked``: the supernet's running statistics as they are; for comparisons only.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latency_tables.arch import Arch
from latency_tables.errors import DataError, UsageError
from pipeline.spaces.base import Space, Supernet
from pipeline.supernet.policies import BN_POLICIES, BNPolicy
from pipeline.supernet.resolution import batches_at
from pipeline.training.precision import Precision
from pipeline.training.step import Batch
from pipeline.training.timing import NO_TIMER, Timer

PARTS = ("BN calibration", "validation")
"""Parts of scoring that a timer is told of."""
KEPT_PIECES = 4096
"""Pieces of subnets that a scorer keeps; only their statistics take memory of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Quality of one subnet on the validation images.

    ``accuracy`` is the share of right answers (0 ... 1), ``loss`` the mean cross entropy in nats.
    """

    accuracy: float
    loss: float
    n_images: int
    n_calibration_images: int
    bn_policy: BNPolicy


def materialise(space: Space, arch: Arch, supernet: Supernet) -> nn.Sequential:
    """Cut a subnet out of the supernet: parameters are shared, running statistics are copies.

    No weight is copied or initialised. Writing to a parameter of the result writes to the
    supernet; recalibrating the result does not.

    Raises:
        InvalidArchError: ``arch`` is not of this space.

    >>> from pipeline.spaces import load_space
    >>> import numpy as np
    >>> space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    >>> arch = space.sample(np.random.default_rng(0))
    >>> materialise(space, arch, space.supernet())(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    with torch.device("meta"):
        network = space.network(arch)
    space.inherit(network, arch, supernet.source_of(arch), share=True)
    return network


def recalibrate(network: nn.Module, batches: Iterable[Batch]) -> int:
    """Replace the batch-norm statistics by those of ``batches``; returns the number of images.

    The statistics are reset, then set to the mean over the batches (so batches should be equal in
    size), in fp32 whatever autocast is active. Only the batch norms run in training mode: dropout
    stays off. The network is left in evaluation mode.

    Raises:
        DataError: there are no batches.
    """
    norms = _batch_norms(network)
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative mean
        norm.train()
    n_images = 0
    try:
        for batch in batches:
            device = batch.images.device
            with torch.inference_mode(), torch.autocast(device.type, enabled=False):
                network(batch.images.float())
            n_images += len(batch.images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
    if not n_images:
        raise DataError("there are no calibration images; batch norms need some")
    return n_images


class Scorer:
    """Scores architectures of one supernet, all on the same images.

    Args:
        space: the space of the supernet.
        supernet: trained weights, on the device of the batches; never written to.
        calibration: batches for the statistics, disjoint from the validation images.
        validation: batches that are scored. Few large ones are fastest.
        policy: see the module.
        precision: of the validation pass; calibration is always fp32.
        timer: told which of ``PARTS`` is at work, and how many images went through it.

    ``n_images`` and ``seconds`` count what was scored so far, calibration included.

    Raises:
        UsageError: an unknown policy.
    """

    def __init__(
        self,
        space: Space,
        supernet: Supernet,
        calibration: Iterable[Batch],
        validation: Iterable[Batch],
        *,
        policy: BNPolicy = "recalibrate",
        precision: Precision | None = None,
        timer: Timer = NO_TIMER,
    ) -> None:
        if policy not in BN_POLICIES:
            raise UsageError(f"BN policy {policy!r} is not known; allowed: {BN_POLICIES}")
        self.space, self.supernet = space, supernet
        self.calibration, self.validation = calibration, validation
        self.policy, self.precision = policy, precision or Precision()
        self.timer, self.n_images, self.seconds = timer, 0, 0.0
        self._cut: OrderedDict[Hashable, nn.Module] = OrderedDict()

    def score(self, arch: Arch) -> Score:
        """Accuracy and loss of one subnet; equal to the last bit when asked again.

        Raises:
            InvalidArchError: ``arch`` is not of the space.
            DataError: there are no calibration or validation images.
        """
        started = time.perf_counter()
        network = self._network(arch).eval()
        size = self.space.input_shape_of(arch)[1:]
        n_calibration = 0
        if self.policy == "recalibrate":
            with self.timer.part(PARTS[0]):
                n_calibration = recalibrate(network, batches_at(self.calibration, size))
        elif self.policy == "batch":
            for norm in _batch_norms(network):
                norm.train()  # its statistics are the network's own copies
        validation = batches_at(self.validation, size)
        with self.timer.part(PARTS[1]):
            accuracy, loss, n_images = evaluate(network, validation, self.precision)
        self.timer.count(n_calibration, PARTS[0])
        self.timer.count(n_images, PARTS[1])
        self.n_images += n_calibration + n_images
        self.seconds += time.perf_counter() - started  # the device was waited for
        return Score(
            accuracy=accuracy,
            loss=loss,
            n_images=n_images,
            n_calibration_images=n_calibration,
            bn_policy=self.policy,
        )

    def _network(self, arch: Arch) -> nn.Sequential:
        """The subnet, put together from pieces of earlier ones where they were cut before.

        Building modules takes as long as running small ones. A piece is defined by the supernet
        that its weights come from, its name and the decisions that it depends on. Its weights are
        the supernet's own; its statistics are those of an earlier subnet, which neither
        ``recalibrate`` nor ``batch`` reads.
        """
        if self.policy == "tracked":
            return materialise(self.space, arch, self.supernet)
        self.space.validate(arch)
        segments = self.space.segments(arch)
        source = id(self.supernet.source_of(arch))
        keys = {s.name: (source, s.name, *(arch[label] for label in s.labels)) for s in segments}
        if any(key not in self._cut for key in keys.values()):
            whole = materialise(self.space, arch, self.supernet)
            for name, key in keys.items():
                self._cut.setdefault(key, whole.get_submodule(name))
        for key in keys.values():
            self._cut.move_to_end(key)
        network = nn.Sequential(OrderedDict((n, self._cut[key]) for n, key in keys.items()))
        while len(self._cut) > KEPT_PIECES:
            self._cut.popitem(last=False)
        return network


def evaluate(
    network: nn.Module, batches: Iterable[Batch], precision: Precision
) -> tuple[float, float, int]:
    """Accuracy (0 ... 1), mean cross entropy in nats and number of images; no gradients.

    The network's mode (training or evaluation) is left to the caller.

    Raises:
        DataError: there are no batches.
    """
    correct: list[Tensor] = []
    losses: list[Tensor] = []
    n_images = 0
    for batch in batches:
        # not around the loop: batches that are made and kept inside would be inference tensors
        with torch.inference_mode():
            images = batch.images.contiguous(memory_format=precision.memory_format)
            with precision.autocast(images.device):
                logits = network(images)
            logits = logits.float()  # (N, n_classes)
            correct.append((logits.argmax(1) == batch.labels).sum())
            losses.append(F.cross_entropy(logits, batch.labels, reduction="sum"))
        n_images += len(images)
    if not n_images:
        raise DataError("there are no validation images; nothing can be scored")
    # one wait for the device, at the end
    right = int(torch.stack(correct).sum())
    loss = float(torch.stack(losses).double().sum())
    return right / n_images, loss / n_images, n_images


def _batch_norms(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
