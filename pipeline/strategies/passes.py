"""Forward passes that a strategy makes itself: logits, passes without dropout, probing passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from latency_tables.arch import Arch
from pipeline.spaces.policy import Policy
from pipeline.training.step import Batch, Step


def subnet_logits(step: Step, arch: Arch, batch: Batch) -> Tensor:
    """Logits (N, n_classes) of one subnet in the run's precision, given as fp32 or wider."""
    return _logits(step, lambda images: step.supernet(images, arch), batch)


def policy_logits(step: Step, policy: Policy, batch: Batch) -> Tensor:
    """:func:`subnet_logits` of a policy; gradients reach its choices.

    Raises SpaceError where the supernet has no such pass.
    """
    return _logits(step, lambda images: step.supernet.policy_forward(images, policy), batch)


def _logits(step: Step, forward: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    images = batch.images.contiguous(memory_format=step.precision.memory_format)
    with step.autocast():
        logits = forward(images)  # (N, n_classes)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@contextmanager
def without_dropout(network: nn.Module, *, track: bool = True) -> Iterator[None]:
    """Switch off dropout and its relatives; batch norms go on with the statistics of the batch.

    Args:
        track: whether the passes inside may move the running statistics.
    """
    modes = [(m, m.training) for m in network.modules()]
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    tracked = [norm.track_running_stats for norm in norms]
    try:
        for module, _ in modes:
            module.training = False
        for norm in norms:
            norm.training = True
            norm.track_running_stats = norm.track_running_stats and track
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for norm, before in zip(norms, tracked, strict=True):
            norm.track_running_stats = before


@contextmanager
def probing(network: nn.Module) -> Iterator[None]:
    """Passes that leave no trace: no gradient, no dropout, running statistics untouched."""
    with torch.no_grad(), without_dropout(network, track=False):
        yield
