"""Commands under torchrun: which rank this process is, and who says what.

torchrun starts the same command line several times. Rank 0 runs it as if it were alone; the others
take part in training and in scoring candidates, and keep quiet. What they would have printed is
held back, and comes out only where one of them failed and rank 0 cannot say so any more.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from latency_tables.errors import UsageError

if TYPE_CHECKING:
    from pipeline.training.ranks import Ranks

COMMANDS = ("run", "train", "search", "export")
"""Commands that may train or score; all others run in one process."""
INTERRUPTED = 130


@dataclass(slots=True, kw_only=True)
class Launch:
    """How torchrun started this process, and after how many restarts."""

    rank: int
    world: int
    local_rank: int
    attempt: int = 0
    ranks: Ranks | None = None
    """This rank, once it has met the others."""

    def join(self) -> Ranks:
        """Meet the other processes. Raises TrainingError where they cannot be reached."""
        import torch

        from pipeline.training.distributed import join

        if self.ranks is None:
            self.ranks = join(
                local_rank=self.local_rank, cuda=torch.cuda.is_available(), attempt=self.attempt
            )
        return self.ranks


def launched(environ: Mapping[str, str]) -> Launch | None:
    """What torchrun says in the environment; None for a process that is alone.

    >>> launched({}) is launched({"RANK": "0", "WORLD_SIZE": "1"}) is None
    True
    >>> launched({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}).rank
    1
    """
    world = int(environ.get("WORLD_SIZE", "1"))
    if world < 2 or "RANK" not in environ:
        return None
    rank = int(environ["RANK"])
    return Launch(
        rank=rank,
        world=world,
        local_rank=int(environ.get("LOCAL_RANK", rank)),
        attempt=int(environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
    )


def run_rank(launch: Launch, command: Callable[[], int]) -> int:
    """Run a command line as one rank and give its exit code."""
    if launch.rank == 0:
        code = command()
        if launch.ranks is not None:
            if code:
                launch.ranks.spoke()
            launch.ranks.close()
        return code
    held = io.StringIO()
    with redirect_stdout(held), redirect_stderr(held):
        code = command()
    if launch.ranks is not None:  # before they have met, all fail alike and rank 0 says so
        if code not in (0, INTERRUPTED) and launch.ranks.speaks():
            sys.stderr.write(f"rank {launch.rank}: {held.getvalue()}")
        launch.ranks.close()
    return code


def require_training(arguments: Sequence[str]) -> None:
    """Raise UsageError for a command that several processes cannot share."""
    name = next((a for a in arguments if not a.startswith("-")), "")
    if name not in COMMANDS:
        raise UsageError(
            f"'hilnas {name}' runs in one process; under torchrun: {', '.join(COMMANDS)}",
            hint=f"hilnas {' '.join(arguments)}",
        )


def current_launch() -> Launch | None:
    """The launch that the running command belongs to."""
    context = click.get_current_context(silent=True)
    found = None if context is None else context.find_root().obj
    return found if isinstance(found, Launch) else None
