"""The ProxylessNAS-like mobile space: 21 layers, 7 operators each, 7^21 ≈ 5.6e17 subnets.

Cai et al., "ProxylessNAS", 2019 (its GPU network's channels); also the space in which SPOS-style
supernets of MobileNet blocks and AngleNAS are compared, usually under 465 million MACs.

Operators: six inverted residuals (expansion 3 or 6, kernel 3, 5 or 7) and ``identity``, which is a
1×1 convolution with batch norm in a stage's first layer. Stem (conv 3×3 to 40 channels), ``mb1``
(24 channels) and head (1728 features) are fixed.

Presets: ``paper`` (224 px), ``tiny`` (8 layers, for 8 to 32 px). Deviation: ReLU, where public
configurations of this space have ReLU6. The rest is as in :mod:`pipeline.spaces.mobilenetv2`.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.spaces.mobile_blocks import IDENTITY, PLAIN
from pipeline.spaces.mobilenetv2 import PRESETS as MOBILENET_PRESETS
from pipeline.spaces.mobilenetv2 import MobileSpace, Preset, mobile_space

OPERATORS = (*PLAIN, IDENTITY)

PRESETS = {
    "paper": Preset(
        operators=OPERATORS,
        stem_channels=40,
        stem_stride=2,
        mb1_channels=24,
        channels=(32, 56, 112, 128, 256, 432),
        repeats=(4, 4, 4, 4, 4, 1),
        strides=(2, 2, 2, 1, 2, 1),
        features=1728,
    ),
    "tiny": replace(MOBILENET_PRESETS["tiny"], operators=OPERATORS),
}


def proxyless(*, preset: str, input_shape: tuple[int, int, int], n_classes: int) -> MobileSpace:
    """Make the space.

    >>> space = proxyless(preset="paper", input_shape=(3, 224, 224), n_classes=1000)
    >>> len(space.decisions), len(space.decisions[0].choices)
    (21, 7)
    """
    return mobile_space(
        "proxyless", PRESETS, preset=preset, input_shape=input_shape, n_classes=n_classes
    )
