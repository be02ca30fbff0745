"""AutoAugment and RandAugment by kornia, seeded without touching the global generators.

kornia draws its operations once per call and takes every number from torch's global generator.
Hence a batch is split into groups that each draw their own operations, and the global state is
forked around the call. AutoAugment's operations are those found for CIFAR-10 for images below 64
pixels, and those found for ImageNet from there on. kornia takes three seconds to import, hence on
first use.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from latency_tables.errors import DataError
from pipeline.data.config import AugmentConfig

if TYPE_CHECKING:
    from collections.abc import Callable


def apply_policy(images: Tensor, config: AugmentConfig, seed: int) -> Tensor:
    """Change RGB images float (n, 3, H, W) in 0 ... 1 as ``config.policy`` says.

    Raises:
        DataError: the images are grey; the operations are defined on colours.
    """
    if images.shape[1] != 3:
        raise DataError(
            f"policy = {config.policy!r} needs RGB images; these have {images.shape[1]} channel",
            hint='data.channels = 3, or policy = "none"',
        )
    small = min(images.shape[2:]) < 64
    policy = _policy(config.policy, config.policy_operations, config.policy_magnitude, small)
    on_cuda = images.device.type == "cuda"
    devices = [images.device] if on_cuda else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        # torch.manual_seed would also reseed every GPU, which an empty fork does not restore
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(images.device):
                torch.cuda.manual_seed(seed)
        groups = images.chunk(min(config.policy_groups, len(images)))
        return torch.cat([policy(group) for group in groups]).clamp_(0, 1)


@lru_cache(maxsize=4)
def _policy(name: str, operations: int, magnitude: int, small: bool) -> Callable[[Tensor], Tensor]:
    from kornia.augmentation.auto import AutoAugment, RandAugment

    auto = name == "autoaugment"
    made = (
        AutoAugment("cifar10" if small else "imagenet")
        if auto
        else RandAugment(operations, magnitude)
    )
    return cast("Callable[[Tensor], Tensor]", made)
