"""What evolving searchers share: a random first generation, then children of the best."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from latency_tables.arch import Arch
from pipeline.search.assisted import Assistant
from pipeline.search.evaluation import Evaluation
from pipeline.search.searcher import ArchiveSearcher


class BreedingSearch(ArchiveSearcher, ABC):
    """``population`` candidates per generation, ``generations`` times after the first.

    A method says how it orders what it knows (:meth:`ordered`) and how children come about
    (:meth:`_children`).

    Args:
        assistant: chooses among many more children whom to ask; without it, all are asked.
    """

    def __init__(self, *args: Any, assistant: Assistant | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.assistant = assistant

    @abstractmethod
    def ordered(self, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
        """The evaluations, best first."""

    @abstractmethod
    def _children(self, taken: dict[Arch, Arch], n: int) -> None:
        """Add up to n children of the best so far to ``taken``."""

    @property
    def done(self) -> bool:
        """Whether every generation was told."""
        return self.generation > self.config.generations

    def best(self, n: int) -> list[Evaluation]:
        """The n best so far in the order of :meth:`ordered`."""
        return self.ordered(self._current())[:n]

    def ask(self) -> list[Arch]:
        """Random candidates at first, then children, filled up with random ones."""
        if self.done:
            return []
        taken: dict[Arch, Arch] = {}
        n = self.config.population
        if not self._archive:
            self._admit(self.initial, taken, n)
        elif self.assistant is None:
            self._children(taken, n)
        else:
            self._children(taken, n * self.assistant.children)
        self._fill(taken, n)
        if len(taken) <= n or self.assistant is None:
            return list(taken.values())
        current = self._current()
        predicted = self.assistant.predict(list(taken.values()), current)
        chosen = {id(e) for e in predicted}
        ordered = self.ordered([*current, *predicted])
        return [e.arch for e in ordered if id(e) in chosen][:n] or list(taken.values())[:n]
