"""Mix the weights of K supernets into those of one subnet, and take gradients back.

    θ̃ = Σ_k λ_k θ_k          ∂L/∂θ_k = λ_k g          ∂L/∂λ_k = ⟨g, θ_k⟩          g = ∂L/∂θ̃

(Su et al., "K-shot NAS: Learnable Weight-Sharing for NAS with K-shot Supernets", 2021, equation 4.)
The derivatives are written out instead of left to autograd: no graph reaches through the K copies,
nothing is kept for the backward pass but the weights themselves, and of both gradients only the one
that somebody asks for is computed. All tensors of a subnet are mixed together, K passes over a list
of tensors, in their own number format whatever autocast is active.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def merge(code: Tensor, copies: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The mixed tensors θ̃, differentiable in the code and in the copies.

    Args:
        code: λ (K,).
        copies: K lists of n tensors of equal shapes.

    The numbers of a worked example, with g = (1, −1):

    >>> code = torch.tensor([0.25, 0.75], requires_grad=True)
    >>> one, two = (torch.tensor(t, requires_grad=True) for t in ([2.0, 4.0], [6.0, 8.0]))
    >>> (mixed,) = merge(code, [[one], [two]])
    >>> mixed.backward(torch.tensor([1.0, -1.0]))
    >>> mixed.tolist(), one.grad.tolist(), code.grad.tolist()
    ([5.0, 7.0], [0.25, -0.25], [-2.0, -2.0])
    """
    flat = [tensor for copy in copies for tensor in copy]
    mixed = _Merge.apply(code, len(copies), *flat)  # type: ignore[no-untyped-call]
    return list(mixed)


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, code: Tensor, k: int, *flat: Tensor) -> tuple[Tensor, ...]:
        n = len(flat) // k
        ctx.set_materialize_grads(False)
        ctx.k, ctx.needs_code = k, ctx.needs_input_grad[0]
        # no copies: the weights are alive anyway
        ctx.save_for_backward(code, *(flat if ctx.needs_code else ()))
        factors = _factors(code)
        mixed = torch._foreach_mul(flat[:n], factors[0])
        for i in range(1, k):
            _add_scaled(mixed, flat[i * n : (i + 1) * n], factors[i])
        return tuple(mixed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        code, *flat = ctx.saved_tensors
        n, k = len(gradients), ctx.k
        used = [i for i, g in enumerate(gradients) if g is not None]
        present = [g for g in gradients if g is not None]
        d_code = None
        if ctx.needs_code and used:
            d_code = _products(present, [[flat[c * n + i] for i in used] for c in range(k)])
        d_copies: list[Tensor | None] = [None] * (k * n)
        factors = _factors(code)
        for c in range(k):
            needed = ctx.needs_input_grad[2 + c * n : 2 + (c + 1) * n]
            wanted = [(i, g) for i, g in zip(used, present, strict=True) if needed[i]]
            if wanted:
                scaled = torch._foreach_mul([g for _, g in wanted], factors[c])
                for (i, _), gradient in zip(wanted, scaled, strict=True):
                    d_copies[c * n + i] = gradient
        return (d_code, None, *d_copies)


def _factors(code: Tensor) -> Sequence[Any]:
    """The entries of λ: numbers on the CPU; on a GPU tensors, for which nobody has to wait."""
    values = code.detach()
    return values.unbind() if values.is_cuda else values.tolist()


def _add_scaled(into: tuple[Tensor, ...], tensors: tuple[Tensor, ...], factor: Any) -> None:
    if isinstance(factor, Tensor):
        torch._foreach_add_(into, torch._foreach_mul(tensors, factor))
    else:
        torch._foreach_add_(into, tensors, alpha=factor)


def _products(gradients: Sequence[Tensor], copies: Sequence[Sequence[Tensor]]) -> Tensor:
    """⟨g, θ_k⟩ (K,), summed over all tensors."""
    gradient = _flat(gradients)
    return torch.stack([torch.dot(gradient, _flat(copy)) for copy in copies])


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])
