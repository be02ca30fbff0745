"""Random changes of a whole batch at once: crops, mirror images, colours, erased rectangles.

Every random number is drawn on the CPU from the generator that is passed in and then moved, so a
batch is the same on every device. Shapes: images (n, C, H, W); colour values are floats 0 ... 1.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from pipeline.data.transfer import to_device

Boxes = npt.NDArray[np.float64]
_ATTEMPTS = 10
_RATIO = (3 / 4, 4 / 3)
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_RATIO = (0.3, 3.3)
# luma of ITU-R BT.601, as Pillow and every colour jitter in use
_LUMA = (0.299, 0.587, 0.114)


def random_crop(images: Tensor, padding: int, generator: Generator) -> Tensor:
    """Pad with black and cut back to the same size at a random place per image."""
    n, _, height, width = images.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, n), generator=generator)
    offsets = to_device(offsets, images.device)
    padded = F.pad(images, (padding,) * 4)
    # a view of every possible crop, (n, 2p+1, 2p+1, C, H, W); indexing copies one per image
    crops = padded.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)
    return crops[torch.arange(n, device=images.device), offsets[0], offsets[1]]


def random_flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror left and right with probability 1/2 per image."""
    chosen = to_device(torch.rand(len(images), generator=generator) < 0.5, images.device)
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def crop_boxes(numbers: Boxes, area: tuple[float, float], height: int, width: int) -> Boxes:
    """Boxes (n, 4) of left, upper, right, lower in pixels from uniform ``numbers`` (n, 10, 4).

    The first of ten attempts that fits into the image counts; if none does, the whole image with
    its ratio limited to 3/4 ... 4/3 (the usual RandomResizedCrop).
    """
    share = area[0] + (area[1] - area[0]) * numbers[..., 0]
    ratio = np.exp(math.log(_RATIO[0]) + math.log(_RATIO[1] / _RATIO[0]) * numbers[..., 1])
    w = np.sqrt(share * height * width * ratio)  # (n, 10)
    h = np.sqrt(share * height * width / ratio)
    fits = (w <= width) & (h <= height)
    first = fits.argmax(1)
    rows = np.arange(len(numbers))
    none = ~fits.any(1)
    w = np.where(none, min(width, height * _RATIO[1]), w[rows, first])
    h = np.where(none, min(height, width / _RATIO[0]), h[rows, first])
    place = numbers[rows, first, 2:]
    left = np.where(none, 0.5, place[:, 0]) * (width - w)
    upper = np.where(none, 0.5, place[:, 1]) * (height - h)
    return np.stack([left, upper, left + w, upper + h], axis=1)


def crop_numbers(n: int, generator: Generator) -> Boxes:
    """Uniform numbers (n, 10, 4) for :func:`crop_boxes`."""
    numbers: Boxes = torch.rand(n, _ATTEMPTS, 4, generator=generator, dtype=torch.float64).numpy()
    return numbers


def resized_crop(images: Tensor, boxes: Boxes) -> Tensor:
    """Scale a box of every image to the full size: uint8 in, uint8 out, bilinear."""
    n, _, height, width = images.shape
    left, upper, right, lower = torch.from_numpy(boxes).to(torch.float32).T
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = (right - left) / width, (right + left) / width - 1
    theta[:, 1, 1], theta[:, 1, 2] = (lower - upper) / height, (lower + upper) / height - 1
    theta = to_device(theta, images.device)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    out = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return out.round_().clamp_(0, 255).to(torch.uint8)


def color_jitter(images: Tensor, strength: float, generator: Generator) -> Tensor:
    """Brightness, contrast and saturation by factors 1 ± strength, in a random order per batch.

    Deviation from the per-image version: the order is drawn once per batch, the factors per
    image. Grey images have no saturation to change.
    """
    factors = 1 + strength * (2 * torch.rand(3, len(images), generator=generator) - 1)
    order = torch.randperm(3, generator=generator).tolist()
    factors = to_device(factors, images.device)[:, :, None, None, None]  # (3, n, 1, 1, 1)
    for kind in order:
        if kind == 0:
            reference = torch.zeros_like(images[:, :1])
        elif kind == 1:
            reference = _grey(images).mean((2, 3), keepdim=True)
        else:
            reference = _grey(images)
        images = (factors[kind] * images + (1 - factors[kind]) * reference).clamp_(0, 1)
    return images


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    weights = to_device(torch.tensor(_LUMA, dtype=images.dtype), images.device)
    return torch.einsum("nchw,c->nhw", images, weights)[:, None]


def erase(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Set a random rectangle of normalised images to 0, the mean colour.

    Area 2 % ... 33 % of the image, ratio 0.3 ... 3.3; a side that is too long is cut to the image.
    """
    n, _, height, width = images.shape
    u = to_device(torch.rand(5, n, generator=generator), images.device)
    area = (_ERASED_AREA[0] + (_ERASED_AREA[1] - _ERASED_AREA[0]) * u[0]) * height * width
    low, high = math.log(_ERASED_RATIO[0]), math.log(_ERASED_RATIO[1])
    ratio = torch.exp(low + (high - low) * u[1])
    h = (area * ratio).sqrt().round().clamp(1, height)
    w = (area / ratio).sqrt().round().clamp(1, width)
    # a probability of zero leaves an empty rectangle
    h = torch.where(u[4] < probability, h, torch.zeros_like(h))
    top, left = (u[2] * (height - h + 1)).floor(), (u[3] * (width - w + 1)).floor()
    return images.masked_fill(rectangles(top, left, h, w, height, width), 0.0)


def rectangles(top: Tensor, left: Tensor, h: Tensor, w: Tensor, height: int, width: int) -> Tensor:
    """Masks (n, 1, height, width) that are true inside one rectangle per image."""
    rows = torch.arange(height, device=top.device)[None]
    columns = torch.arange(width, device=top.device)[None]
    inside_rows = (rows >= top[:, None]) & (rows < (top + h)[:, None])
    inside_columns = (columns >= left[:, None]) & (columns < (left + w)[:, None])
    return (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]
