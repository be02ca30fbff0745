"""AutoFormer: vision transformers whose subnets share the leading part of one set of weights."""

from pipeline.spaces.autoformer.sizes import PRESETS, RELEASED, Preset, Subnet
from pipeline.spaces.autoformer.space import AutoFormerSpace, AutoFormerSupernet, autoformer

__all__ = [
    "PRESETS",
    "RELEASED",
    "AutoFormerSpace",
    "AutoFormerSupernet",
    "Preset",
    "Subnet",
    "autoformer",
]
