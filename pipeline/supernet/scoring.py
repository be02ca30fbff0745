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
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latency_tables.arch import Arch
from latency_tables.errors import DataError, UsageError
from pipeline.spaces.base import Space, Supernet
from pipeline.supernet.policies import BN_POLICIES, BNPolicy
from pipeline.supernet.resolution import batches_at
from pipeline.supernet.tally import Tally
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


def materialise(
    space: Space, arch: Arch, supernet: Supernet, *, lasting: bool = True
) -> nn.Sequential:
    """Cut a subnet out of the supernet: parameters are shared, running statistics are copies.

    No weight is copied or initialised. Writing to a parameter of the result writes to the
    supernet; recalibrating the result does not. Where a supernet mixes the weights of each subnet,
    the result has weights of its own.

    Args:
        lasting: false: share mixed weights as well, until the supernet mixes the next ones.

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
    share = not (supernet.mixes and lasting)
    space.inherit(network, arch, supernet.source_of(arch), share=share)
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
        rungs: the validation batches once more, cut into parts in their order, for
            :meth:`tally`; one part by default.

    ``n_scored``, ``n_images``, ``n_calibration_images`` and ``seconds`` count what was done so
    far; ``n_images`` and ``seconds`` have calibration included.

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
        rungs: Sequence[Iterable[Batch]] | None = None,
    ) -> None:
        if policy not in BN_POLICIES:
            raise UsageError(f"BN policy {policy!r} is not known; allowed: {BN_POLICIES}")
        self.space, self.supernet = space, supernet
        self.calibration, self.validation = calibration, validation
        self.policy, self.precision = policy, precision or Precision()
        self.timer = timer
        self.rungs = (validation,) if rungs is None else tuple(rungs)
        self.n_scored, self.n_images, self.n_calibration_images = 0, 0, 0
        self.seconds = 0.0
        self._cut: OrderedDict[Hashable, nn.Module] = OrderedDict()
        self._statistics: dict[Arch, tuple[int, list[Tensor]]] = {}

    def score(self, arch: Arch) -> Score:
        """Accuracy and loss of one subnet; equal to the last bit when asked again.

        Raises:
            InvalidArchError: ``arch`` is not of the space.
            DataError: there are no calibration or validation images.
        """
        tally = self._tally(arch, self.validation, keep=False)
        self.n_scored += 1
        return Score(
            accuracy=tally.accuracy,
            loss=tally.loss,
            n_images=tally.n_images,
            n_calibration_images=tally.n_calibration_images,
            bn_policy=self.policy,
        )

    def tally(self, arch: Arch, rung: int | None = None, before: Tally | None = None) -> Tally:
        """Counts over the images of all rungs up to this one.

        A subnet's statistics are kept from one rung to the next, until :meth:`forget`. Where they
        were not kept, as after a restart, they are calibrated again, to the same bits.

        Args:
            arch: the subnet.
            rung: 0 ... ``len(rungs) - 1``; the last one where it is not given.
            before: its counts up to the rung before; counted again where they are not given.

        Raises:
            InvalidArchError: ``arch`` is not of the space.
            DataError: there are no calibration or validation images.
        """
        last = len(self.rungs) - 1 if rung is None else rung
        first = 0 if before is None else last
        images = chain.from_iterable(self.rungs[first : last + 1])
        found = self._tally(arch, images, keep=last + 1 < len(self.rungs))
        self.n_scored += before is None
        return found if before is None else before + found

    def forget(self) -> None:
        """Let go of the statistics that :meth:`tally` keeps."""
        self._statistics.clear()

    def network(self, arch: Arch) -> nn.Sequential:
        """The subnet as validation images meet it; the next one that is cut may change it."""
        network = self._network(arch).eval()
        self._normalise(network, arch, self.space.input_shape_of(arch)[1:], keep=False)
        return network

    def _tally(self, arch: Arch, images: Iterable[Batch], *, keep: bool) -> Tally:
        started = time.perf_counter()
        network = self._network(arch).eval()
        size = self.space.input_shape_of(arch)[1:]
        n_used, n_run = self._normalise(network, arch, size, keep=keep)
        with self.timer.part(PARTS[1]):
            n_right, loss_sum, n_images = count(network, batches_at(images, size), self.precision)
        self.timer.count(n_run, PARTS[0])
        self.timer.count(n_images, PARTS[1])
        self.n_images += n_run + n_images
        self.n_calibration_images += n_run
        self.seconds += time.perf_counter() - started  # the device was waited for
        return Tally(
            n_right=n_right,
            loss_sum=loss_sum,
            n_images=n_images,
            n_calibration_images=n_used,
            bn_policy=self.policy,
        )

    def _normalise(
        self, network: nn.Module, arch: Arch, size: tuple[int, int], *, keep: bool
    ) -> tuple[int, int]:
        """Give batch norms their statistics; images behind these, and how many of them ran now."""
        norms = _batch_norms(network)
        if self.policy == "batch":
            for norm in norms:
                norm.train()  # its statistics are the network's own copies
        if self.policy != "recalibrate":
            return 0, 0
        if arch in self._statistics:
            n_images, kept = self._statistics[arch]
            for statistic, value in zip(_statistics(norms), kept, strict=True):
                statistic.copy_(value)
            return n_images, 0
        with self.timer.part(PARTS[0]):
            n_images = recalibrate(network, batches_at(self.calibration, size))
        if keep:  # pieces are shared with the candidates that come between two rungs
            self._statistics[arch] = n_images, [s.clone() for s in _statistics(norms)]
        return n_images, n_images

    def _network(self, arch: Arch) -> nn.Sequential:
        """The subnet, put together from pieces of earlier ones where they were cut before.

        Building modules takes as long as running small ones. A piece is defined by the supernet
        that its weights come from, its name and the decisions that it depends on. Its weights are
        the supernet's own; its statistics are those of an earlier subnet, which neither
        ``recalibrate`` nor ``batch`` reads. Where the supernet mixes weights, ``source_of`` puts
        those of this subnet where all pieces look.
        """
        if self.policy == "tracked":
            return materialise(self.space, arch, self.supernet)
        self.space.validate(arch)
        segments = self.space.segments(arch)
        source = id(self.supernet.source_of(arch))
        keys = {s.name: (source, s.name, *(arch[label] for label in s.labels)) for s in segments}
        if any(key not in self._cut for key in keys.values()):
            whole = materialise(self.space, arch, self.supernet, lasting=False)
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
    n_right, loss_sum, n_images = count(network, batches, precision)
    return n_right / n_images, loss_sum / n_images, n_images


def count(
    network: nn.Module, batches: Iterable[Batch], precision: Precision
) -> tuple[int, float, int]:
    """Right answers, summed cross entropy in nats and number of images; as :func:`evaluate`."""
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
    return int(torch.stack(correct).sum()), float(torch.stack(losses).double().sum()), n_images


def _batch_norms(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def _statistics(norms: Sequence[nn.modules.batchnorm._BatchNorm]) -> list[Tensor]:
    found = [s for norm in norms for s in (norm.running_mean, norm.running_var)]
    return [s for s in found if s is not None]
