"""Sizes of the AutoFormer spaces, and of the subnets that the paper's authors released."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.spaces.autoformer.blocks import BlockSize

EMBED_DIM, DEPTH = "embed_dim", "depth"


def block_name(index: int) -> str:
    """Name of the block with ``index`` blocks before it.

    >>> block_name(0), own_labels(block_name(0))
    ('block01', ('block01_heads', 'block01_mlp_ratio'))
    """
    return f"block{index + 1:02d}"


def own_labels(name: str) -> tuple[str, str]:
    """Labels of what a block decides for itself."""
    return f"{name}_heads", f"{name}_mlp_ratio"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Choices and fixed sizes of a space.

    ``supernet_embed_dim`` may be more than any choice, as in the paper's supernets: what is
    beyond the largest choice never takes part.
    """

    patch: int
    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    mlp_ratios: tuple[float, ...]
    head_dim: int
    supernet_embed_dim: int
    max_distance: int
    relative_position: bool = True

    def __post_init__(self) -> None:
        for choices in (self.embed_dims, self.depths, self.heads, self.mlp_ratios):
            if list(choices) != sorted(choices):
                raise ValueError(f"choices of a preset go from small to large, unlike {choices}")


_RELATIVE = {
    "tiny": Preset(
        patch=16,
        embed_dims=(192, 216, 240),
        depths=(12, 13, 14),
        heads=(3, 4),
        mlp_ratios=(3.5, 4.0),
        head_dim=64,
        supernet_embed_dim=256,
        max_distance=14,
    ),
    "small": Preset(
        patch=16,
        embed_dims=(320, 384, 448),
        depths=(12, 13, 14),
        heads=(5, 6, 7),
        mlp_ratios=(3.0, 3.5, 4.0),
        head_dim=64,
        supernet_embed_dim=448,
        max_distance=14,
    ),
    "base": Preset(
        patch=16,
        embed_dims=(528, 576, 624),
        depths=(14, 15, 16),
        heads=(9, 10),
        mlp_ratios=(3.0, 3.5, 4.0),
        head_dim=64,
        supernet_embed_dim=640,
        max_distance=14,
    ),
    "micro": Preset(
        patch=4,
        embed_dims=(16, 24, 32),
        depths=(2, 3),
        heads=(1, 2),
        mlp_ratios=(2.0, 3.0),
        head_dim=16,
        supernet_embed_dim=32,
        max_distance=3,
    ),
}

PRESETS = _RELATIVE | {
    f"{name}-absolute": replace(preset, relative_position=False)
    for name, preset in _RELATIVE.items()
}
"""The paper's three spaces and one for tests, each also without relative positions."""


def hidden_width(embed_dim: int, mlp_ratio: float) -> int:
    """Hidden width of an MLP, rounded down.

    >>> hidden_width(216, 3.5)
    756
    """
    return int(embed_dim * mlp_ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subnet:
    """Sizes of one network; it need not be in a space. Depth = number of blocks."""

    embed_dim: int
    heads: tuple[int, ...]
    mlp_ratios: tuple[float, ...]

    def blocks(self) -> tuple[BlockSize, ...]:
        """Size of every block; the hidden width is rounded down.

        >>> Subnet(embed_dim=216, heads=(3,), mlp_ratios=(3.5,)).blocks()[0].hidden
        756
        """
        return tuple(
            BlockSize(embed_dim=self.embed_dim, heads=h, hidden=hidden_width(self.embed_dim, ratio))
            for h, ratio in zip(self.heads, self.mlp_ratios, strict=True)
        )


RELEASED = {
    "tiny": Subnet(
        embed_dim=192,
        heads=(3,) * 10 + (4, 3, 3),
        mlp_ratios=(3.5, 3.5, 3.0, 3.5, 3.0, 3.0, 4.0, 4.0, 3.5, 4.0, 3.5, 4.0, 3.5),
    ),
    "small": Subnet(
        embed_dim=384,
        heads=(6, 6, 5, 7, 5, 5, 5, 6, 6, 7, 7, 6, 7),
        mlp_ratios=(3.0, 3.5, 3.0, 3.5, *(4.0,) * 7, 3.5, 4.0),
    ),
    "base": Subnet(
        embed_dim=576,
        heads=(9, 9, 9, 9, 9, 10, 9, 9, 10, 9, 10, 9, 9, 10),
        mlp_ratios=(3.5, 3.5, 4.0, 3.5, 4.0, 3.5, 3.5, 3.0, 4.0, 4.0, 3.0, 4.0, 3.0, 3.5),
    ),
}
"""The authors' subnets. The tiny one has MLP ratios of 3, which its space lacks."""
