"""Weights that several sizes of a layer share: the smaller one is a part of the larger one."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class Part(Protocol):
    """Which entries of a tensor a smaller layer uses; a view, or the tensor where that is all."""

    def __call__(self, tensor: Tensor, /, *sizes: int) -> Tensor: ...


def leading(tensor: Tensor, *sizes: int) -> Tensor:
    """The first ``sizes[i]`` entries of every axis i: a view, the tensor itself where that is all.

    >>> import torch
    >>> leading(torch.arange(6).reshape(2, 3), 2, 1).tolist()
    [[0], [3]]
    """
    if tuple(tensor.shape) == sizes:
        return tensor
    return tensor[tuple(slice(n) for n in sizes)]


def inherit_part(
    target: nn.Module, source: nn.Module, *, share: bool, part: Part = leading
) -> None:
    """Give ``target`` its part of the weights of ``source``, whose tensors have the same names.

    A shared parameter is the source's own where all of it is used, otherwise a view of it: writing
    to one writes to the other, but gradients do not flow through the view. Buffers are copied.
    """
    state: dict[str, Tensor] = {
        name: part(source.get_buffer(name), *buffer.shape).clone()
        for name, buffer in target.named_buffers()
    }
    for name, wanted in target.named_parameters():
        whole = source.get_parameter(name)
        piece = part(whole, *wanted.shape)
        if not share:
            piece = nn.Parameter(piece.detach().clone().contiguous())
        elif piece is not whole:
            piece = nn.Parameter(piece.detach())
        state[name] = piece
    target.load_state_dict(state, assign=True)
