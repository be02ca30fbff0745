"""Progress on stderr: bars with a time to go for whatever takes longer than a moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[[int, int, str], None]
"""Called with (done, total, note)."""


class Reporter:
    """Says what happens. Where stderr is no terminal, one line per stage and no bars."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.quiet = quiet

    def say(self, text: str) -> None:
        """One line for the person."""
        if not self.quiet:
            self.console.print(text)

    def warn(self, text: str) -> None:
        """One line that matters."""
        self.console.print(f"[yellow]warning:[/yellow] {text}")

    @contextmanager
    def busy(self, title: str) -> Iterator[None]:
        """A spinner for what takes a while and cannot say how far it is."""
        if self.quiet or not self.console.is_terminal:
            yield
            return
        with self.console.status(f"  {title}"):
            yield

    @contextmanager
    def bar(self, title: str) -> Iterator[Advance]:
        """A progress bar; the function it gives sets done, total and a note."""
        if self.quiet or not self.console.is_terminal:
            yield lambda done, total, note: None
            return
        columns = (
            TextColumn("  [progress.description]{task.description:<16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(title, total=None, note="")

            def advance(done: int, total: int, note: str) -> None:
                progress.update(task, completed=done, total=total, note=note)

            yield advance
