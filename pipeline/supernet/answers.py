"""What a subnet answers to single images, where the mean over them is not enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from latency_tables.arch import Arch
from latency_tables.errors import DataError
from pipeline.supernet.resolution import batches_at

if TYPE_CHECKING:
    from pipeline.supernet.scoring import Scorer


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """By image (N,): whether it is classified correctly, and its cross entropy in nats."""

    right: NDArray[np.bool_]
    loss: NDArray[np.float64]


def answers_of(scorer: Scorer, arch: Arch) -> Answers:
    """Answers of a subnet to the validation images; their means are its accuracy and its loss.

    Raises:
        InvalidArchError: ``arch`` is not of the space.
        DataError: there are no calibration or validation images.
    """
    network, precision = scorer.network(arch), scorer.precision
    right, loss = [], []
    for batch in batches_at(scorer.validation, scorer.space.input_shape_of(arch)[1:]):
        with torch.inference_mode():
            images = batch.images.contiguous(memory_format=precision.memory_format)
            with precision.autocast(images.device):
                logits = network(images)  # (N, n_classes)
            logits = logits.float()
            right.append(logits.argmax(1) == batch.labels)
            loss.append(F.cross_entropy(logits, batch.labels, reduction="none"))
    if not right:
        raise DataError("there are no validation images; nothing can be scored")
    return Answers(
        right=torch.cat(right).cpu().numpy(), loss=torch.cat(loss).double().cpu().numpy()
    )
