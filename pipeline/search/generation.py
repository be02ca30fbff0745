"""The seam between the search loop and whatever gives a generation its accuracies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.search.evaluation import Candidate, Score
from pipeline.search.evaluator import Evaluator


class Scoring(Protocol):
    """Scores the candidates of one generation after the other."""

    def scores(
        self, generation: int, candidates: Sequence[Candidate], known: Sequence[Score]
    ) -> Iterator[Score]:
        """One score per candidate, in order.

        ``known`` are those that the journal holds of the first candidates; they come first,
        unchanged. Each score is journalled before the next one is asked for, so what follows a
        ``yield`` happens after its candidate's score is safe.
        """
        ...

    def end(self, generation: int) -> None:
        """Every score of the generation is on the disk, and nobody was told of them yet."""
        ...


@dataclass(frozen=True, slots=True)
class OneByOne:
    """One candidate after the other, each once per supernet (the accuracy cache)."""

    evaluator: Evaluator

    def scores(
        self, generation: int, candidates: Sequence[Candidate], known: Sequence[Score]
    ) -> Iterator[Score]:
        """What the journal holds, then what the evaluator says."""
        for candidate, score in zip(candidates, known, strict=False):
            self.evaluator.remember(candidate.arch, score)
            yield score
        for candidate in candidates[len(known) :]:
            score, _ = self.evaluator.score(candidate)
            yield score

    def end(self, generation: int) -> None:
        """Nothing to do."""
