"""A space whose networks bring images of another size to their own, by a layer that learns.

The layer stands in front of the first one: two matrices per image, one for the columns and one for
the rows,

    y = R x Cᵀ      x (H, W), R (H', H), C (W', W), y (H', W')

the same for all channels. It begins as bilinear resizing with antialiasing, so that a supernet
that was trained on resized images knows what it is given. It is part of the network: its MACs,
weights and latency count, and it is exported as two matrix products.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latency_tables.errors import UsageError
from pipeline.spaces.base import Space
from pipeline.spaces.chain import FIXED, ChainSpace, Position

NAME = "resample"


def bilinear(n_in: int, n_out: int) -> Tensor:
    """Weights (n_out, n_in) of bilinear resizing, with antialiasing where it makes smaller.

    >>> bilinear(2, 4).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    scale = n_in / n_out
    centres = (torch.arange(n_out) + 0.5) * scale - 0.5
    distance = (torch.arange(n_in)[None, :] - centres[:, None]).abs() / max(scale, 1.0)
    weights = (1.0 - distance).clamp(min=0.0)
    return weights / weights.sum(dim=1, keepdim=True)


class Resample(nn.Module):
    """Bring images (N, C, H, W) to another height and width by matrices that learn."""

    def __init__(self, size: tuple[int, int], to: tuple[int, int]) -> None:
        super().__init__()
        self.rows = nn.Parameter(bilinear(size[0], to[0]))
        self.columns = nn.Parameter(bilinear(size[1], to[1]))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H', W')."""
        x = F.linear(x, self.columns)  # (N, C, H, W')
        return F.linear(x.transpose(2, 3), self.rows).transpose(2, 3)  # (N, C, H', W')


def resampled(space: Space, size: tuple[int, int]) -> Space:
    """The space for images of (height, width) ``size``, brought to those of ``space`` first.

    Raises:
        UsageError: a space whose blocks depend on each other has no place for the layer.

    >>> from pipeline.spaces import load_space
    >>> inner = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    >>> space = resampled(inner, (12, 12))
    >>> space.input_shape, space.positions()[0], space.space_id == inner.space_id
    ((1, 12, 12), ('resample', ()), False)
    >>> space.cost_table().minimum("macs")[0] - inner.cost_table().minimum("macs")[0]
    1920.0
    """
    if not isinstance(space, ChainSpace) or type(space).segments is not ChainSpace.segments:
        raise UsageError(
            f"learned resampling is for chains of blocks; {space.name} is none",
            hint="resized images: without space.resample_to",
        )
    channels, height, width = space.input_shape
    front = Position(
        name=NAME,
        choices=(FIXED,),
        key=(NAME, size, (height, width)),
        build=lambda choice, affine: Resample(size, (height, width)),
    )
    outer = copy.copy(space)
    outer.__dict__.pop("space_id", None)
    outer.options = {**space.options, "resampled_to": [height, width]}
    outer.input_shape = (channels, *size)
    outer.chain = (front, *space.chain)
    outer._cost_table = None
    return cast("Space", outer)
