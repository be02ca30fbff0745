"""Which single images a subnet gets right, where a share of them is not enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from latency_tables.arch import Arch
from latency_tables.errors import DataError
from pipeline.supernet.resolution import batches_at

if TYPE_CHECKING:
    from pipeline.supernet.scoring import Scorer


def right_answers(scorer: Scorer, arch: Arch) -> NDArray[np.bool_]:
    """Which validation images (N,) a subnet classifies correctly; their mean is its accuracy.

    Raises:
        InvalidArchError: ``arch`` is not of the space.
        DataError: there are no calibration or validation images.
    """
    network, precision = scorer.network(arch), scorer.precision
    found = []
    for batch in batches_at(scorer.validation, scorer.space.input_shape_of(arch)[1:]):
        with torch.inference_mode():
            images = batch.images.contiguous(memory_format=precision.memory_format)
            with precision.autocast(images.device):
                logits = network(images)  # (N, n_classes)
            found.append(logits.float().argmax(1) == batch.labels)
    if not found:
        raise DataError("there are no validation images; nothing can be scored")
    return torch.cat(found).cpu().numpy()
