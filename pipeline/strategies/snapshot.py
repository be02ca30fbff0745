"""A copy of all weights of a network, and passes that see it in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class WeightSnapshot:
    """The parameters of a network as they were when :meth:`take` was called last.

    Running statistics are not part of it.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> snapshot = WeightSnapshot(layer)
    >>> snapshot.take()
    >>> with torch.no_grad():
    ...     before = layer.weight.item()
    ...     _ = layer.weight.fill_(7.0)
    >>> with snapshot.in_place():
    ...     layer.weight.item() == before
    True
    >>> layer.weight.item()
    7.0
    """

    def __init__(self, network: nn.Module) -> None:
        self._parameters = dict(network.named_parameters())
        self._kept: dict[str, Tensor] = {}

    @property
    def taken(self) -> bool:
        """Whether there is one."""
        return bool(self._kept)

    def take(self) -> None:
        """Copy the weights as they are now, into the memory of the copy before."""
        if not self._kept:
            self._kept = {k: torch.empty_like(p.detach()) for k, p in self._parameters.items()}
        torch._foreach_copy_(
            list(self._kept.values()), [p.detach() for p in self._parameters.values()]
        )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Passes inside see the copy; gradients must be taken inside, too. Nothing is copied."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self._kept[name] = self._kept[name], parameter.data

    def state_dict(self) -> dict[str, Any]:
        """The copy by parameter name."""
        return dict(self._kept)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take it back, in the memory format of the weights, which decides last bits."""
        self._kept = {
            name: torch.empty_like(self._parameters[name].detach()).copy_(value)
            for name, value in state.items()
        }
