"""Stochastic depth: residual branches that are left out at random while a network is trained.

Huang et al., "Deep Networks with Stochastic Depth", 2016: the branch of block l of L is dropped
with probability (l / L) · p, image by image, and divided by the probability that it stays.

Spaces put a :class:`DropPath` on every residual branch; it is off (rate 0) until training switches
it on, and in everything that is scored or exported, where it does not leave an operator.
"""

from __future__ import annotations

from torch import Tensor, nn

from latency_tables.errors import UsageError


class DropPath(nn.Module):
    """Drop the whole input of some images, in training mode only.

    >>> import torch
    >>> x = torch.ones(2, 3, 1, 1)
    >>> DropPath(0.5).eval()(x) is x, DropPath(0.0)(x) is x
    (True, True)
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.p = p
        """Probability that a branch is dropped."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) → (N, ...)."""
        if not self.training or self.p == 0:
            return x
        stays = 1 - self.p
        mask = x.new_empty((len(x),) + (1,) * (x.ndim - 1)).bernoulli_(stays)
        return x * (mask / stays)

    def extra_repr(self) -> str:
        """Shown by ``print(network)``."""
        return f"p={self.p:g}"


def set_drop_path(network: nn.Module, rate: float) -> int:
    """Give the residual blocks of a network rates that rise to ``rate``; gives their number.

    Blocks count in the order of the network. The alternatives of a choice block (the modules of one
    ``ModuleDict``) share a place, and so a rate.

    >>> network = nn.Sequential(DropPath(), nn.ModuleDict({"a": DropPath(), "b": DropPath()}))
    >>> set_drop_path(network, 0.2), [m.p for m in network.modules() if isinstance(m, DropPath)]
    (2, [0.1, 0.2, 0.2])
    """
    containers = {n for n, module in network.named_modules() if isinstance(module, nn.ModuleDict)}
    places: dict[str, list[DropPath]] = {}
    for name, module in network.named_modules():
        if isinstance(module, DropPath):
            above = [c for c in containers if name.startswith(f"{c}." if c else "")]
            places.setdefault(max(above, key=len, default=name), []).append(module)
    for number, blocks in enumerate(places.values(), start=1):
        for block in blocks:
            block.p = rate * number / len(places)
    return len(places)


def switch_on(network: nn.Module, rate: float) -> None:
    """:func:`set_drop_path`, where there is something to drop.

    Raises:
        UsageError: the network has no :class:`DropPath`; nothing is left out silently.
    """
    if rate and not set_drop_path(network, rate):
        raise UsageError(
            f"drop_path = {rate:g}, but this network has no residual branches whose rate could be "
            "set; 0 is allowed",
            hint="--set drop_path=0, or train.drop_path=0 for a supernet",
        )
