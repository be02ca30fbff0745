"""The seam between the search loop and whatever gives a generation its accuracies.

:class:`Scoring` is what the loop asks, a generation at a time; :class:`Crew` is who does the work,
this process alone or several.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from latency_tables.arch import Arch
from pipeline.search.evaluation import Candidate, Score
from pipeline.search.evaluator import Evaluator
from pipeline.supernet.tally import Tally


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One subnet to count on the images up to a rung, or on all; ``before`` are its counts so far.

    >>> task = Task(arch=Arch({"block": "k3"}))
    >>> Task.from_dict(task.to_dict()) == task
    True
    """

    arch: Arch
    rung: int | None = None
    before: Tally | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; :meth:`from_dict` reads it back."""
        before = None if self.before is None else self.before.to_dict()
        return {"arch": dict(self.arch), "rung": self.rung, "before": before}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Task:
        """Read what :meth:`to_dict` wrote."""
        before = None if data["before"] is None else Tally.from_dict(data["before"])
        rung = None if data["rung"] is None else int(data["rung"])
        return cls(arch=Arch.from_dict(data["arch"]), rung=rung, before=before)


class Crew(Protocol):
    """Whoever counts right answers."""

    def tallies(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Tally]]:
        """(place in ``tasks``, counts), as they come, about in order. A few tasks are at work at a
        time; the next ones are begun when all of these were taken."""
        ...

    def forget(self) -> None:
        """No subnet so far goes on to another rung."""
        ...


class Tallying(Protocol):
    """What :class:`pipeline.supernet.scoring.Scorer` offers a crew."""

    def tally(self, arch: Arch, rung: int | None = None, before: Tally | None = None) -> Tally:
        """Counts over the images of all rungs up to this one, or over all images."""
        ...

    def forget(self) -> None:
        """Let go of what is kept between rungs."""
        ...


@dataclass(frozen=True, slots=True)
class OneWorker:
    """The crew of one process: one task after the other."""

    scorer: Tallying

    def tallies(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Tally]]:
        """In order, each when it is asked for."""
        for place, task in enumerate(tasks):
            yield place, self.scorer.tally(task.arch, task.rung, task.before)

    def forget(self) -> None:
        """Let the scorer forget."""
        self.scorer.forget()


@dataclass(frozen=True, slots=True)
class OneByOne:
    """One candidate after the other, each once per supernet (the accuracy cache)."""

    evaluator: Evaluator

    def scores(
        self, generation: int, candidates: Sequence[Candidate], known: Sequence[Score]
    ) -> Iterator[Score]:
        """What the journal holds, then what the evaluator says."""
        yield from _replayed(self.evaluator, candidates, known)
        for candidate in candidates[len(known) :]:
            score, _ = self.evaluator.score(candidate)
            yield score

    def end(self, generation: int) -> None:
        """Nothing to do."""


@dataclass(frozen=True, slots=True)
class ByCrew:
    """The same scores as :class:`OneByOne`, where a crew may be at work on several candidates."""

    evaluator: Evaluator
    crew: Crew

    def scores(
        self, generation: int, candidates: Sequence[Candidate], known: Sequence[Score]
    ) -> Iterator[Score]:
        """What the journal holds, what the cache holds, and what the crew counts."""
        yield from _replayed(self.evaluator, candidates, known)
        rest = candidates[len(known) :]
        found = [self.evaluator.cached(c) for c in rest]
        asked = [place for place, score in enumerate(found) if score is None]
        tallies = self.crew.tallies([Task(arch=rest[place].arch) for place in asked])
        for place in range(len(rest)):
            while found[place] is None:
                done, tally = next(tallies)
                at = asked[done]
                found[at] = self.evaluator.take(rest[at], tally)
            known_now = found[place]
            assert known_now is not None  # the loop above
            yield known_now

    def end(self, generation: int) -> None:
        """Nothing is kept from one generation to the next."""
        self.crew.forget()


def _replayed(
    evaluator: Evaluator, candidates: Sequence[Candidate], known: Sequence[Score]
) -> Iterator[Score]:
    """The journalled scores, put into the cache on the way."""
    for candidate, score in zip(candidates, known, strict=False):
        evaluator.remember(candidate.arch, score)
        yield score
