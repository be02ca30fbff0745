"""Images at the resolution of a subnet, where a space searches it.

Data come at the largest resolution. Supernets and scores shrink them on the device; what is
exported is calibrated and tested on pictures that were read at its own resolution.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.training.step import Batch


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (N, C, *size): bilinear, antialiased; the very tensor where it has that size.

    >>> import torch
    >>> resized(torch.zeros(2, 3, 8, 8), (6, 6)).shape
    torch.Size([2, 3, 6, 6])
    """
    if tuple(images.shape[2:]) == size:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


@dataclass(frozen=True, slots=True)
class _Resized:
    images: Tensor
    labels: Tensor


def batches_at(batches: Iterable[Batch], size: tuple[int, int]) -> Iterator[Batch]:
    """The same batches with their images at (height, width) ``size``."""
    for batch in batches:
        images = resized(batch.images, size)
        yield batch if images is batch.images else _Resized(images, batch.labels)
