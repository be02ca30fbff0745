"""Sizes of the AttentiveNAS and BigNAS spaces, and of the subnets that were released.

Wang et al., "AttentiveNAS: Improving Neural Architecture Search via Attentive Sampling", 2021,
table 7 and the authors' run files; Yu et al., "BigNAS: Scaling up Neural Architecture Search with
Big Single-Stage Models", 2020, with the choices of its public reproduction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from latency_tables.errors import SpaceError
from pipeline.spaces.elastic_cnn.blocks import BlockSize

RESOLUTION, STEM_WIDTH, LAST_WIDTH = "resolution", "stem_width", "last_width"

MAX_UNIT = 32
"""Resolutions are multiples of at most this: the stride of the whole network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Choices of the blocks that share a width. ``stride`` is that of the first of them."""

    name: str
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    kernels: tuple[int, ...]
    expands: tuple[int, ...]
    stride: int
    se: bool = False

    def __post_init__(self) -> None:
        for choices in (self.widths, self.depths, self.kernels, self.expands):
            if list(choices) != sorted(set(choices)) or not choices:
                raise ValueError(f"choices of a stage go from small to large, unlike {choices}")
        if 1 in self.expands and len(self.expands) > 1:
            raise ValueError("a block of expansion 1 has no expanding convolution to share")
        if self.depths[0] < 1:
            raise ValueError(f"a stage has at least one block, not {self.depths[0]}")


def block_name(stage: Stage, index: int) -> str:
    """Name of the block of a stage with ``index`` blocks before it."""
    return f"{stage.name}_{index + 1}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Choices and fixed sizes of a space.

    ``resolutions`` are for pictures of the last of them; others are scaled. ``wide_head``:
    expansion, pooling, then a layer on the pooled features (MobileNetV3) instead of a layer and
    pooling. ``project``: every block has a shortcut, which pools and projects where shapes differ;
    otherwise a stage's first block has none. ``dropout``: before the classifier; ``drop_path``:
    rate that a block after the last one would have.
    """

    resolutions: tuple[int, ...]
    stem_widths: tuple[int, ...]
    stem_stride: int
    stages: tuple[Stage, ...]
    last_widths: tuple[int, ...]
    wide_head: bool
    project: bool
    dropout: float = 0.2
    drop_path: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Subnet:
    """Sizes of one network; ``widths`` and so on have one entry per stage."""

    resolution: int
    stem: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    kernels: tuple[int, ...]
    expands: tuple[int, ...]
    last: int

    def blocks(self) -> tuple[tuple[BlockSize, ...], ...]:
        """Size of every block, stage by stage.

        >>> [len(stage) for stage in RELEASED["A3"].blocks()]
        [2, 3, 3, 4, 3, 5, 1]
        """
        stages, in_channels = [], self.stem
        for width, depth, kernel, expand in zip(
            self.widths, self.depths, self.kernels, self.expands, strict=True
        ):
            sizes = []
            for _ in range(depth):
                sizes.append(
                    BlockSize(in_channels=in_channels, channels=width, kernel=kernel, expand=expand)
                )
                in_channels = width
            stages.append(tuple(sizes))
        return tuple(stages)


def scaled_resolutions(resolutions: Sequence[int], size: int) -> tuple[int, ...]:
    """The resolutions for pictures of ``size`` pixels, in proportion.

    The last one is ``size``. The others are rounded to multiples of a power of two: the largest
    one, up to 32, that is no more than half the distance of two resolutions (or 1), so none
    coincide.

    Raises:
        SpaceError: the pictures are too small for that many resolutions.

    >>> scaled_resolutions((192, 224, 256, 288), 288), scaled_resolutions((192, 224, 256, 288), 224)
    ((192, 224, 256, 288), (152, 176, 200, 224))
    """
    wanted = [size * r / resolutions[-1] for r in resolutions]
    distance = min((b - a for a, b in pairwise(resolutions)), default=resolutions[-1])
    gap = size * distance / resolutions[-1]
    if gap < 1:
        raise SpaceError(
            f"pictures of {size} pixels are too small for the {len(resolutions)} resolutions of "
            f"this preset; they need {-(-resolutions[-1] // distance)} or more"
        )
    unit = 2 ** int(math.log2(min(max(gap / 2, 1), MAX_UNIT)))
    return (*(unit * math.floor(w / unit + 0.5) for w in wanted[:-1]), size)


def _stage(
    name: str,
    widths: tuple[int, ...],
    depths: range,
    kernels: tuple[int, ...],
    expands: tuple[int, ...],
    *,
    stride: int,
    se: bool = False,
) -> Stage:
    return Stage(
        name=name,
        widths=widths,
        depths=tuple(depths),
        kernels=kernels,
        expands=expands,
        stride=stride,
        se=se,
    )


_K, _E = (3, 5), (4, 5, 6)

ATTENTIVE_PRESETS = {
    "paper": Preset(
        resolutions=(192, 224, 256, 288),
        stem_widths=(16, 24),
        stem_stride=2,
        stages=(
            _stage("mb1", (16, 24), range(1, 3), _K, (1,), stride=1),
            _stage("mb2", (24, 32), range(3, 6), _K, _E, stride=2),
            _stage("mb3", (32, 40), range(3, 7), _K, _E, stride=2, se=True),
            _stage("mb4", (64, 72), range(3, 7), _K, _E, stride=2),
            _stage("mb5", (112, 120, 128), range(3, 9), _K, _E, stride=1, se=True),
            _stage("mb6", (192, 200, 208, 216), range(3, 9), _K, (6,), stride=2, se=True),
            _stage("mb7", (216, 224), range(1, 3), _K, (6,), stride=1, se=True),
        ),
        last_widths=(1792, 1984),
        wide_head=True,
        project=True,
    ),
    "tiny": Preset(
        resolutions=(6, 8),
        stem_widths=(8, 16),
        stem_stride=1,
        stages=(
            _stage("mb1", (8, 16), range(1, 3), (3,), (1,), stride=1),
            _stage("mb2", (16, 24), range(1, 3), _K, (2, 3), stride=2),
            _stage("mb3", (24, 32), range(1, 3), _K, (2, 3), stride=2, se=True),
        ),
        last_widths=(48, 64),
        wide_head=True,
        project=True,
    ),
}
"""The paper's space (for 288 px) and one for tests (for 8 to 32 px)."""

BIG_PRESETS = {
    "paper": Preset(
        resolutions=(192, 224, 288, 320),
        stem_widths=(32, 40),
        stem_stride=2,
        stages=(
            _stage("mb1", (16, 24), range(1, 3), (3,), (1,), stride=1),
            _stage("mb2", (24, 32), range(2, 4), (3,), (6,), stride=2),
            _stage("mb3", (40, 48), range(2, 4), _K, (6,), stride=2),
            _stage("mb4", (80, 88), range(2, 5), _K, (6,), stride=2),
            _stage("mb5", (112, 120, 128), range(2, 7), _K, (6,), stride=1),
            _stage("mb6", (192, 200, 208, 216), range(2, 7), _K, (6,), stride=2),
            _stage("mb7", (320, 328, 336, 344, 352), range(1, 3), _K, (6,), stride=1),
        ),
        last_widths=(1280, 1408),
        wide_head=False,
        project=False,
    ),
    "tiny": Preset(
        resolutions=(6, 8),
        stem_widths=(8, 16),
        stem_stride=1,
        stages=(
            _stage("mb1", (8, 16), range(1, 3), (3,), (1,), stride=1),
            _stage("mb2", (16, 24), range(1, 3), _K, (3,), stride=2),
            _stage("mb3", (24, 32), range(1, 4), _K, (3,), stride=2),
        ),
        last_widths=(48, 64),
        wide_head=False,
        project=False,
    ),
}
"""The paper's space (for 320 px, without SE) and one for tests (for 8 to 32 px)."""


def _released(
    resolution: int, mb4: int, mb6: int, mb7: int, last: int,
    depths: tuple[int, ...], kernels: tuple[int, ...], expands: tuple[int, ...],
) -> Subnet:  # fmt: skip
    """A released subnet; those widths that all of them share are filled in."""
    widths = (16, 24, 32, mb4, 112, mb6, mb7)
    return Subnet(resolution=resolution, stem=16, widths=widths, depths=depths, kernels=kernels,
                  expands=expands, last=last)  # fmt: skip


RELEASED = {
    "A0": _released(192, 64, 192, 216, 1792,
                    (1, 3, 3, 3, 3, 3, 1), (3, 3, 3, 3, 3, 3, 3), (1, 4, 4, 4, 4, 6, 6)),
    "A1": _released(224, 64, 192, 216, 1984,
                    (1, 3, 3, 3, 3, 3, 1), (3, 3, 3, 5, 3, 5, 3), (1, 4, 4, 4, 4, 6, 6)),
    "A2": _released(224, 64, 200, 224, 1984,
                    (1, 3, 3, 3, 3, 4, 1), (3, 3, 3, 3, 3, 5, 3), (1, 4, 5, 4, 4, 6, 6)),
    "A3": _released(224, 64, 208, 224, 1984,
                    (2, 3, 3, 4, 3, 5, 1), (3, 3, 3, 5, 3, 3, 3), (1, 4, 4, 4, 4, 6, 6)),
    "A4": _released(256, 64, 192, 216, 1984,
                    (1, 3, 3, 4, 3, 5, 1), (3, 3, 3, 5, 3, 5, 3), (1, 4, 4, 5, 4, 6, 6)),
    "A5": _released(256, 72, 192, 216, 1792,
                    (1, 3, 3, 3, 4, 6, 1), (3, 3, 3, 5, 3, 3, 3), (1, 4, 5, 4, 4, 6, 6)),
    "A6": _released(288, 64, 216, 224, 1984,
                    (1, 3, 3, 4, 4, 6, 1), (3, 3, 3, 3, 3, 5, 3), (1, 4, 6, 5, 4, 6, 6)),
}  # fmt: skip
"""AttentiveNAS-A0 to A6, all in the paper's space."""
