"""The pieces of a vision transformer, which run whole or on the leading part of their weights.

Chen et al., "AutoFormer: Searching Transformers for Visual Recognition", 2021: section 3.1 is
weight entanglement (a smaller choice is a slice of a larger one's weights), section 3.2 the block.

    B  images            E  embedding dimension     h  heads
    N  tokens, the       q  h · d, width of the     d  dimension of a head, fixed
       class token is       queries                 f  hidden width of the MLP
       the first of them

Deviation: the rows of ``qkv`` lie in the order (head, query | key | value, d), so that the weights
*and* the biases of the first h heads are the first 3q rows. The authors' code takes rows of the
weight with a stride of three but the first 3q entries of the bias, so biases change their role
with the number of heads.

Attention is explicit matrix products: fused kernels differ per device, and what is counted here is
what is exported.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.spaces.drop_path import DropPath
from pipeline.spaces.entangled import leading


def _linear(layer: nn.Linear, x: Tensor, width: int) -> Tensor:
    """(..., n) → (..., width) with the leading part of the layer."""
    return F.linear(x, leading(layer.weight, width, x.shape[-1]), leading(layer.bias, width))


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Normalise the entries that are there: absent ones have no part in mean or variance."""
    n = x.shape[-1]
    return F.layer_norm(x, (n,), leading(norm.weight, n), leading(norm.bias, n), norm.eps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """How patches lie, and up to which distance their relative positions are told apart."""

    height: int
    width: int
    max_distance: int

    @property
    def n_tokens(self) -> int:
        """Patches and the class token."""
        return self.height * self.width + 1


class PatchEmbedding(nn.Module):
    """Patches → tokens: a linear map of each patch, the class token before them, positions."""

    def __init__(self, in_channels: int, embed_dim: int, patch: int, n_tokens: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, embed_dim, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.position = nn.Parameter(torch.zeros(1, n_tokens, embed_dim))

    def forward(self, x: Tensor, embed_dim: int | None = None) -> Tensor:
        """(B, C, H, W) → (B, N, E)."""
        weight, n_tokens = self.project.weight, self.position.shape[1]
        e = weight.shape[0] if embed_dim is None else embed_dim
        kernel = leading(weight, e, *weight.shape[1:])
        bias = None if self.project.bias is None else leading(self.project.bias, e)
        x = F.conv2d(x, kernel, bias, stride=self.project.stride)
        x = x.flatten(2).transpose(1, 2)  # (B, N - 1, E)
        token = leading(self.class_token, 1, 1, e).expand(x.shape[0], -1, -1)
        return torch.cat((token, x), dim=1) + leading(self.position, 1, n_tokens, e)


class RelativePosition(nn.Module):
    """A vector per pair of tokens: the sum of one per vertical and one per horizontal distance.

    Shaw et al., "Self-Attention with Relative Position Representations", 2018, over two axes.
    Entry 0 of each table is for pairs with the class token; entry 1 + max_distance is distance 0;
    longer distances share the entry of the longest.
    """

    def __init__(self, head_dim: int, grid: Grid) -> None:
        super().__init__()
        n_entries = 2 * grid.max_distance + 2
        self.vertical = nn.Parameter(torch.zeros(n_entries, head_dim))
        self.horizontal = nn.Parameter(torch.zeros(n_entries, head_dim))
        device = self.vertical.device  # indices have values even where weights have none
        device = torch.device("cpu") if device.type == "meta" else device
        self.register_buffer("rows", _entries(grid.height, grid.max_distance, device))
        self.register_buffer("columns", _entries(grid.width, grid.max_distance, device))

    def forward(self) -> Tensor:
        """(N, N, d), from the first axis' token to the second's."""
        down = F.embedding(self.get_buffer("rows"), self.vertical)  # (H, H, d)
        across = F.embedding(self.get_buffer("columns"), self.horizontal)  # (W, W, d)
        h, w, d = down.shape[0], *across.shape[1:]
        n = h * w
        patches = (down[:, None, :, None] + across[None, :, None]).reshape(n, n, d)
        with_class = self.vertical[0] + self.horizontal[0]  # (d,)
        rest = torch.cat((with_class.expand(n, 1, d), patches), dim=1)
        return torch.cat((with_class.expand(1, n + 1, d), rest), dim=0)


def _entries(length: int, max_distance: int, device: torch.device) -> Tensor:
    """Entry of a distance table for every pair of places on an axis: int64 (length, length)."""
    place = torch.arange(length, device=device)
    distance = place[None] - place[:, None]
    return distance.clamp(-max_distance, max_distance) + max_distance + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSize:
    """What a block may choose: its E (the same in all blocks), h and f."""

    embed_dim: int
    heads: int
    hidden: int


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); any smaller :class:`BlockSize` runs as well.

    >>> block = Block(BlockSize(embed_dim=8, heads=2, hidden=16), head_dim=4)
    >>> block(torch.zeros(1, 5, 6), BlockSize(embed_dim=6, heads=1, hidden=12)).shape
    torch.Size([1, 5, 6])
    """

    def __init__(self, size: BlockSize, *, head_dim: int, grid: Grid | None = None) -> None:
        super().__init__()
        self.size, self.head_dim = size, head_dim
        e, q, f = size.embed_dim, size.heads * head_dim, size.hidden
        self.norm1 = nn.LayerNorm(e)
        self.qkv = nn.Linear(e, 3 * q)
        self.relative_key = RelativePosition(head_dim, grid) if grid else None
        self.relative_value = RelativePosition(head_dim, grid) if grid else None
        self.proj = nn.Linear(q, e)
        self.norm2 = nn.LayerNorm(e)
        self.fc1 = nn.Linear(e, f)
        self.activation = nn.GELU()
        self.fc2 = nn.Linear(f, e)
        self.drop_path = DropPath()

    def forward(self, x: Tensor, size: BlockSize | None = None) -> Tensor:
        """(B, N, E) → (B, N, E)."""
        size = self.size if size is None else size
        x = x + self.drop_path(self.attention(_norm(self.norm1, x), size.heads))
        hidden = _linear(self.fc1, _norm(self.norm2, x), size.hidden)  # (B, N, f)
        y: Tensor = self.drop_path(_linear(self.fc2, self.activation(hidden), size.embed_dim))
        return x + y

    def attention(self, x: Tensor, heads: int) -> Tensor:
        """(B, N, E) → (B, N, E) by the first ``heads`` heads."""
        b, n, e = x.shape
        d = self.head_dim
        qkv = _linear(self.qkv, x, 3 * heads * d).reshape(b, n, heads, 3, d)
        qkv = qkv.permute(3, 0, 2, 1, 4)  # (3, B, h, N, d)
        q, k, v = qkv[0] * d**-0.5, qkv[1], qkv[2]  # d is fixed, unlike E and q
        scores = q @ k.transpose(-2, -1)  # (B, h, N, N)
        if self.relative_key is not None:
            scores = scores + _per_token(q, self.relative_key().transpose(-2, -1))
        weights = scores.softmax(dim=-1)
        y = weights @ v  # (B, h, N, d)
        if self.relative_value is not None:
            y = y + _per_token(weights, self.relative_value())
        return _linear(self.proj, y.transpose(1, 2).reshape(b, n, heads * d), e)


def _per_token(x: Tensor, matrices: Tensor) -> Tensor:
    """Every token by a matrix of its own: (B, h, N, m) by (N, m, n) → (B, h, N, n)."""
    b, h, n, m = x.shape
    y = torch.bmm(x.permute(2, 0, 1, 3).reshape(n, b * h, m), matrices)
    return y.reshape(n, b, h, -1).permute(1, 2, 0, 3)


class Classifier(nn.Module):
    """Norm, mean over the patches (the class token is left out), linear layer."""

    def __init__(self, embed_dim: int, n_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.linear = nn.Linear(embed_dim, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, E) → (B, n_classes)."""
        pooled = _norm(self.norm, x)[:, 1:].mean(dim=1)  # (B, E)
        return _linear(self.linear, pooled, self.linear.out_features)


def initialise(network: nn.Module) -> None:
    """Truncated normal of deviation 0.02 for matrices, tokens and tables; biases are zero."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, PatchEmbedding):
            nn.init.trunc_normal_(module.class_token, std=0.02)
            nn.init.trunc_normal_(module.position, std=0.02)
        elif isinstance(module, RelativePosition):
            nn.init.trunc_normal_(module.vertical, std=0.02)
            nn.init.trunc_normal_(module.horizontal, std=0.02)
