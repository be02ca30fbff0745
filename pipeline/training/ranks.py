"""What one of several equal processes can do, and the process that is alone.

The engine, strategies and stages ask :class:`Ranks`; :mod:`pipeline.training.distributed` has the
one that talks to other processes. A process that is alone pays nothing for the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Ranks:
    """The process that trains alone: rank 0 of 1. Every method costs nothing.

    >>> alone = Ranks()
    >>> alone.leads, alone.gather({"loss": 0.5})
    (True, [{'loss': 0.5}])
    """

    world = 1
    rank = 0
    local_rank = 0
    apart = False
    """Whether the ranks compute different things right now: nothing may be shared."""

    @property
    def leads(self) -> bool:
        """Whether this rank prints, writes and does whatever is not training."""
        return self.rank == 0

    def part(self, batch: Any) -> Any:
        """This rank's images of a batch. Raises UsageError where they do not divide equally."""
        return batch

    def reduce(
        self, parameters: Mapping[str, nn.Parameter], losses: Sequence[Tensor], *, what: str
    ) -> list[Tensor]:
        """Replace all gradients by their means over the ranks; returns the mean losses.

        ``what`` names the update, alike on all ranks.
        """
        return list(losses)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the ranks, element by element."""
        return values

    def spread(self, functions: Sequence[Callable[[], Tensor]], device: torch.device) -> Tensor:
        """Values (n,) of functions that give scalars, the same on every rank: each runs on one."""
        return torch.stack([function() for function in functions])

    def stacked(self, values: Tensor) -> Tensor:
        """The values of all ranks (world, ...), in the order of the ranks."""
        return values[None]

    def gather(self, value: Any) -> list[Any]:
        """A JSON value of every rank, in the order of the ranks."""
        return [value]

    def first(self, data: bytes | None) -> bytes | None:
        """What rank 0 gives, on every rank; what the others give is not looked at."""
        return data

    def compare(self, parameters: Iterable[Tensor]) -> None:
        """Wait for all ranks at the end; warn where their weights are not the same bits."""

    def stop(self, asked: bool) -> bool:
        """Whether to stop after this step, because somebody asked any rank to."""
        return asked

    def say(self, text: str) -> None:
        """Tell the waiting ranks what to do next (rank 0)."""

    def hear(self) -> str:
        """Wait for what rank 0 says next (the others)."""
        raise RuntimeError("there is no other rank to listen to")

    def fail(self, error: BaseException) -> None:
        """Let the others know that this rank stops, and why."""

    def speaks(self) -> bool:
        """Whether it is for this rank to tell the user what went wrong: rank 0, if it can."""
        return True

    def spoke(self) -> None:
        """Let the others know that the user was told."""

    @contextmanager
    def together(self) -> Iterator[None]:
        """An error inside ends the other ranks, too."""
        try:
            yield
        except Exception as error:
            self.fail(error)
            raise

    def close(self) -> None:
        """Leave the others, who need nothing more."""


ALONE = Ranks()
