"""Mixup and CutMix: pairs of images become one, and so do their labels.

Mixup (Zhang et al., 2018): x = λ x_i + (1 - λ) x_j, one λ ~ Beta(α, α) per batch. CutMix (Yun et
al., 2019): a rectangle of area 1 - λ comes from x_j, and λ is corrected to the part that really
stayed. Partners are a random permutation of the batch.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.config import AugmentConfig
from pipeline.data.transfer import to_device


def mix(
    images: Tensor, labels: Tensor, n_classes: int, config: AugmentConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Mix a batch as the settings say.

    Args:
        images: float (n, C, H, W).
        labels: int64 (n,).
        rng: everything random is drawn from it.

    Returns:
        Images of the same shape and soft targets float32 (n, n_classes). The targets are soft
        (one-hot) also for a batch that was not mixed, so that a loss sees one kind only.
    """
    targets = F.one_hot(labels, n_classes).to(torch.float32)
    # drawn in a fixed order, whatever is switched on, so that settings do not shift each other
    mixed, coin = rng.random() < config.mix_probability, rng.random()
    partner = to_device(torch.from_numpy(rng.permutation(len(images))), images.device)
    if not mixed or not (config.mixup or config.cutmix):
        return images, targets
    if config.mixup and (not config.cutmix or coin < 0.5):
        kept = float(rng.beta(config.mixup, config.mixup))
        images = images.lerp(images[partner], 1 - kept)
    else:
        images, kept = _cutmix(images, partner, float(rng.beta(config.cutmix, config.cutmix)), rng)
    return images, targets.lerp(targets[partner], 1 - kept)


def _cutmix(
    images: Tensor, partner: Tensor, kept: float, rng: np.random.Generator
) -> tuple[Tensor, float]:
    """One rectangle for the whole batch, centred anywhere and cut off at the border."""
    height, width = images.shape[2:]
    half_h, half_w = height * math.sqrt(1 - kept) / 2, width * math.sqrt(1 - kept) / 2
    y, x = rng.random() * height, rng.random() * width
    top, bottom = max(0, round(y - half_h)), min(height, round(y + half_h))
    left, right = max(0, round(x - half_w)), min(width, round(x + half_w))
    images = images.clone()
    images[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    return images, 1 - (bottom - top) * (right - left) / (height * width)
