"""Convolutional networks with elastic resolution, width, depth, kernel and expansion."""

from pipeline.spaces.elastic_cnn.sizes import (
    ATTENTIVE_PRESETS,
    BIG_PRESETS,
    RELEASED,
    Preset,
    Stage,
    Subnet,
)
from pipeline.spaces.elastic_cnn.space import (
    ElasticSpace,
    ElasticSupernet,
    attentivenas,
    bignas,
)

__all__ = [
    "ATTENTIVE_PRESETS",
    "BIG_PRESETS",
    "RELEASED",
    "ElasticSpace",
    "ElasticSupernet",
    "Preset",
    "Stage",
    "Subnet",
    "attentivenas",
    "bignas",
]
