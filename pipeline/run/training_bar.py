"""The bar of everything that trains in a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.run.context import RunContext
from pipeline.training.engine import Progress


@contextmanager
def training_bar(context: RunContext, title: str) -> Iterator[Callable[[Progress], None]]:
    """Shows steps and loss; between steps it gives way to whoever measures on this machine."""
    with context.reporter.bar(title) as advance:

        def show(progress: Progress) -> None:
            if context.ranks.leads:
                context.give_way()
            loss = "" if progress.loss is None else f"loss {progress.loss:.3f}"
            advance(progress.step, progress.steps, loss)

        yield show
