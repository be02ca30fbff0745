"""Passes of a transformer supernet in which gradients reach the choices.

Where masks of :mod:`pipeline.spaces.matrix_mapping` stand:

    embed_dim   γ and β of the layer norms: they alone read the residual stream, of which patches,
                class token, positions and the output of every block are part
    heads       columns of ``proj``, which reads the heads; attention is scaled by the dimension of
                a head, which is fixed
    mlp_ratio   columns of ``fc2``; the hidden width follows from the embedding dimension as well,
                which therefore has a part in this mask
    depth       both branches of a block: x + gate · attention, x + gate · MLP; the blocks of the
                shallowest network are the first group, of which every depth is part

In the dense pass layer norms take mean and variance over the chosen entries only. How many those
are is a number, not a function of the mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pipeline.spaces.autoformer.blocks import Block, Classifier
from pipeline.spaces.autoformer.sizes import (
    DEPTH,
    EMBED_DIM,
    Preset,
    block_name,
    hidden_width,
    own_labels,
)
from pipeline.spaces.base import Supernet
from pipeline.spaces.matrix_mapping import Gates, Masked

if TYPE_CHECKING:
    from pipeline.spaces.policy import Policy


def policy_logits(
    supernet: Supernet, sizes: Preset, x: Tensor, policy: Policy, *, dense: bool
) -> Tensor:
    """Logits (B, n_classes) of ``policy.arch``; see :meth:`Supernet.policy_forward`."""
    like = supernet.get_parameter("head.norm.weight")
    with torch.autocast(like.device.type, enabled=False):
        gates, masked = Gates(policy, like), Masked(supernet)
        depth = sizes.depths[-1] if dense else int(gates.arch[DEPTH])
        _multiply(masked, gates, sizes, depth)
    if not dense:
        return masked.run(x, gates.arch)
    weights = {f"supernet.{name}": weight for name, weight in masked.weights.items()}
    embed_dim = int(gates.arch[EMBED_DIM])
    logits: Tensor = functional_call(
        _Dense(supernet, depth), weights, (x, embed_dim), tie_weights=False
    )
    return logits


def _multiply(masked: Masked, gates: Gates, sizes: Preset, depth: int) -> None:
    e, d = sizes.supernet_embed_dim, sizes.head_dim
    hidden_widths = tuple(
        tuple(hidden_width(n, ratio) for ratio in sizes.mlp_ratios) for n in sizes.embed_dims
    )
    query_widths = tuple(d * h for h in sizes.heads)
    names = [block_name(i) for i in range(depth)]
    heads, mlp_ratios = zip(*map(own_labels, names), strict=True)
    embed_mask = gates.mask(e, sizes.embed_dims, EMBED_DIM)  # (E,)
    block_gates = gates.mask(sizes.depths[-1], sizes.depths, DEPTH)[:depth, None]  # (depth, 1)
    head_masks = gates.masks(query_widths[-1], query_widths, each=heads)  # (depth, q)
    hidden_masks = gates.masks(
        hidden_width(e, sizes.mlp_ratios[-1]), hidden_widths, EMBED_DIM, each=mlp_ratios
    )  # (depth, f)
    of_heads, of_hidden = (block_gates * m for m in (head_masks, hidden_masks))
    for name, head_mask, hidden_mask in zip(names, of_heads, of_hidden, strict=True):
        masked.multiply(f"{name}.proj.weight", head_mask, axis=1)
        masked.multiply(f"{name}.fc2.weight", hidden_mask, axis=1)
    for bias in ("proj.bias", "fc2.bias"):
        masked.multiply_vectors([f"{name}.{bias}" for name in names], block_gates)
    norms = [f"{name}.{norm}" for name in names for norm in ("norm1", "norm2")]
    masked.multiply_vectors(
        [f"{norm}.{part}" for norm in (*norms, "head.norm") for part in ("weight", "bias")],
        embed_mask,
    )


class _Dense(nn.Module):
    """The first ``depth`` blocks of a supernet, all of them at full size."""

    def __init__(self, supernet: Supernet, depth: int) -> None:
        super().__init__()
        self.supernet, self.depth = supernet, depth

    def forward(self, x: Tensor, embed_dim: int) -> Tensor:
        """Images (B, C, H, W) → (B, n_classes); ``embed_dim`` entries are normalised."""
        x = self.supernet.get_submodule("patch_embed")(x)  # (B, N, E)
        for i in range(self.depth):
            block = self.supernet.get_submodule(block_name(i))
            if not isinstance(block, Block):
                raise TypeError(f"{block_name(i)} is a {type(block).__name__}, not a block")
            x = _block(block, x, embed_dim)
        head = self.supernet.get_submodule("head")
        if not isinstance(head, Classifier):
            raise TypeError(f"head is a {type(head).__name__}, not a classifier")
        logits: Tensor = head.linear(_norm(head.norm, x, embed_dim)[:, 1:].mean(dim=1))
        return logits


def _block(block: Block, x: Tensor, embed_dim: int) -> Tensor:
    """:class:`Block` at full size, with layer norms over the first ``embed_dim`` entries."""
    y = block.attention(_norm(block.norm1, x, embed_dim), block.size.heads)
    x = x + block.drop_path(y)
    z: Tensor = block.fc2(block.activation(block.fc1(_norm(block.norm2, x, embed_dim))))
    return x + cast("Tensor", block.drop_path(z))


def _norm(norm: nn.LayerNorm, x: Tensor, embed_dim: int) -> Tensor:
    """All entries of ``x``, normalised with mean and variance of the first ``embed_dim``."""
    active = x[..., :embed_dim]
    mean = active.mean(dim=-1, keepdim=True)
    variance = active.var(dim=-1, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + norm.eps) * norm.weight + norm.bias
