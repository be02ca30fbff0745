"""Several supernets of one space, each for a part of it (few-shot NAS).

The parts are the combinations of choices of some decisions. Until :meth:`SplitSupernet.divide`
the first one holds the weights of all subnets, as a one-shot supernet does.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from latency_tables.arch import Arch, Choice
from latency_tables.errors import CheckpointError, UsageError
from pipeline.spaces.base import Space, Supernet

MAX_PARTS = 64


class SplitSupernet(Supernet):
    """One supernet for every combination of choices of ``labels``.

    Args:
        first: the supernet that every part starts from.

    Raises:
        UsageError: an unknown label, or more parts than 64.

    >>> from pipeline.spaces import load_space
    >>> space = load_space("nasbench_macro", preset="tiny", input_shape=(1, 8, 8), n_classes=10)
    >>> len(SplitSupernet(space, ["layer1"], space.supernet()).parts)
    3
    """

    def __init__(self, space: Space, labels: Sequence[str], first: Supernet) -> None:
        super().__init__()
        self.labels = tuple(labels)
        self.combinations = _combinations(space, self.labels)
        self._index = {combination: i for i, combination in enumerate(self.combinations)}
        siblings = (_sibling(space, first) for _ in self.combinations[1:])
        self.parts = nn.ModuleList([first, *siblings])
        self.divided = True

    def divide(self) -> None:
        """Give every part the weights and statistics of the first one."""
        first = self.parts[0].state_dict()
        for part in self.parts[1:]:
            part.load_state_dict(first)

    def source_of(self, arch: Arch) -> Supernet:
        """The part that ``arch`` belongs to."""
        index = self._index[tuple(arch[label] for label in self.labels)] if self.divided else 0
        part = self.parts[index]
        if not isinstance(part, Supernet):
            raise TypeError(f"part {index} is a {type(part).__name__}, not a supernet")
        return part

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        """Logits (N, n_classes) of ``arch`` with the weights of its part."""
        logits: Tensor = self.source_of(arch)(x, arch)
        return logits

    def subnet_parameters(self, arch: Arch) -> list[nn.Parameter]:
        """The parameters that ``arch`` uses in its part."""
        return self.source_of(arch).subnet_parameters(arch)

    def layout(self) -> dict[str, Any]:
        """The decisions that divide the space."""
        return {"split": list(self.labels)}


def supernet_of_layout(space: Space, layout: Mapping[str, Any]) -> Supernet:
    """A supernet with the tensors that :meth:`Supernet.layout` described.

    Raises:
        CheckpointError: another version of hilnas wrote it.
        UsageError: the layout does not fit the space.
    """
    if not layout:
        return space.supernet()
    if set(layout) == {"kshot"}:
        from pipeline.kshot.dictionary import kshot_of_layout

        return kshot_of_layout(space, layout["kshot"])
    if set(layout) != {"split"}:
        raise CheckpointError(
            f"a supernet is laid out as {dict(layout)}; 'kshot' or 'split' is known here"
        )
    return SplitSupernet(space, layout["split"], space.supernet())


def _combinations(space: Space, labels: tuple[str, ...]) -> list[tuple[Choice, ...]]:
    known = {d.label: d.choices for d in space.decisions}
    unknown = [label for label in labels if label not in known]
    if unknown or not labels:
        raise UsageError(
            f"{space.name} cannot be split by {unknown or 'no decision'}; its decisions are "
            f"{', '.join(known)}"
        )
    combinations = list(itertools.product(*(known[label] for label in labels)))
    if len(combinations) > MAX_PARTS:
        raise UsageError(
            f"splitting by {', '.join(labels)} makes {len(combinations)} supernets; "
            f"{MAX_PARTS} are allowed",
            hint="split by fewer decisions",
        )
    return combinations


def _sibling(space: Space, first: Supernet) -> Supernet:
    """A supernet with the first one's weights, on its device; no random number is used."""
    with torch.device("meta"):
        sibling = space.supernet()
    device = next(first.parameters()).device
    sibling.to_empty(device=device).load_state_dict(first.state_dict())
    return sibling
