"""A moving average of all weights: less noise than the last step has.

    t   number of the training step, from 1
    d   min(decay, (1 + t) / (10 + t))
    A ← d A + (1 − d) W

The ramp of d (TensorFlow's ``num_updates``) keeps the random weights of the beginning out of the
average: at step t it covers about t / 9 steps until ``decay`` takes over, with 0.9999 after 90,000
steps.

Averaged are parameters and floating-point buffers, the running statistics of batch norms among
them; counters are copied. In a supernet all weights share one clock: a parameter that a step does
not sample is averaged with itself, so one that was never sampled keeps its initial value, and the
average is always that of one whole network over one span of steps. Averages with a clock of their
own per parameter would mix weights of different times.

Strategies see the last weights, not the average; the average is what is saved at the end.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def averaging_rate(decay: float, t: int) -> float:
    """d of step ``t`` (from 1).

    >>> averaging_rate(0.9, 1), averaging_rate(0.9, 8), averaging_rate(0.9, 1000)
    (0.18181818181818182, 0.5, 0.9)
    """
    return min(decay, (1 + t) / (10 + t))


class WeightAverage:
    """The average of a network's tensors; starts as a copy of them.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> average = WeightAverage(layer, decay=0.9)
    >>> before = layer.weight.item()
    >>> layer.weight.data.add_(11.0).shape
    torch.Size([1, 1])
    >>> average.update()
    >>> round(average.tensors()["weight"].item() - before, 4)  # (1 − 2 / 11) · 11
    9.0
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.n_updates = 0
        # the tensors themselves: optimizers and load_state_dict write into them
        self._weights: dict[str, Tensor] = dict(network.state_dict())
        self._averages = {name: value.clone() for name, value in self._weights.items()}
        self._floats = [name for name, value in self._weights.items() if value.is_floating_point()]
        self._others = [name for name in self._weights if name not in set(self._floats)]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now; call it once after every step."""
        self.n_updates += 1
        rate = averaging_rate(self.decay, self.n_updates)
        averages, weights = self._pairs(self._floats)
        torch._foreach_lerp_(averages, weights, 1 - rate)
        if self._others:
            torch._foreach_copy_(*self._pairs(self._others))

    @torch.no_grad()
    def give(self) -> None:
        """Put the average into the network; its own weights are lost."""
        for name, weight in self._weights.items():
            weight.copy_(self._averages[name])

    def tensors(self) -> dict[str, Tensor]:
        """The average by the names of the network's ``state_dict``."""
        return dict(self._averages)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], n_updates: int) -> None:
        """Take back what :meth:`tensors` gave, and the number of updates so far."""
        for name, average in self._averages.items():
            average.copy_(tensors[name])
        self.n_updates = n_updates

    def _pairs(self, names: list[str]) -> tuple[list[Tensor], list[Tensor]]:
        return [self._averages[n] for n in names], [self._weights[n] for n in names]
