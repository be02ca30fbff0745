"""Successive halving: all candidates see a few images, the better half of them twice as many.

Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization",
2016, with images as the budget. With R rungs the first one has 1/2^(R-1) of the images, and each
further one doubles what was seen so far; after each rung the better half goes on: what keeps the
limits before what does not, then the more accurate, of equal ones the first. So a generation costs
(R + 1) / 2^R of what it costs to show everything to everyone: 75 % with two rungs, 50 % with three.

Deviations: halving is within a generation, because a searcher is told whole generations; the paper
spends equally on every rung, here rungs follow the batches. What a candidate has seen is added up
and never shown to it again. One that reached the last rung has the score of a search without
halving on the same batches; the others are not ``complete`` and stand behind all that are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from latency_tables.errors import UsageError
from pipeline.search.evaluation import Candidate, Score, merit_of
from pipeline.search.evaluator import Evaluator
from pipeline.search.generation import Crew, Task
from pipeline.search.journal import Journal
from pipeline.supernet.tally import Tally


def rung_ends(n_batches: int, n_rungs: int) -> tuple[int, ...]:
    """Where the rungs end, in batches: each has about half of those of the next one behind it.

    Raises:
        UsageError: there are too few batches for so many different rungs.

    >>> rung_ends(8, 3), rung_ends(5, 2)
    ((2, 4, 8), (3, 5))
    """
    ends = tuple(-(-n_batches // 2 ** (n_rungs - 1 - r)) for r in range(n_rungs))
    if len(set(ends)) < n_rungs:
        raise UsageError(
            f"{n_batches} batches of images cannot be cut into {n_rungs} rungs that double",
            hint="fewer rungs with --set search.halving, or more images",
        )
    return ends


def cost_share(n_rungs: int) -> float:
    """What a generation costs, as a share of showing all images to everyone.

    >>> [cost_share(n) for n in (1, 2, 3, 4)]
    [1.0, 0.75, 0.5, 0.3125]
    """
    return (n_rungs + 1) / float(2**n_rungs)


class Halving:
    """A :class:`pipeline.search.generation.Scoring` that gives up the worse half early.

    Args:
        evaluator: keeps complete scores, of earlier searches too: these cost nothing and displace
            nobody.
        crew: counts; its rungs must be as many.
        journal: gets the counts of every rung before anything follows from them, so that a search
            that was killed goes on within the rung.
        n_rungs: at least 2.

    Raises:
        UsageError: fewer than two rungs.
    """

    def __init__(self, evaluator: Evaluator, crew: Crew, journal: Journal, *, n_rungs: int) -> None:
        if n_rungs < 2:
            raise UsageError(f"{n_rungs} rungs halve nothing; at least 2 are needed")
        self.evaluator, self.crew, self.journal = evaluator, crew, journal
        self.n_rungs = n_rungs

    def scores(
        self, generation: int, candidates: Sequence[Candidate], known: Sequence[Score]
    ) -> Iterator[Score]:
        """What the journal holds, then what came out of the rungs."""
        found = list(known)
        if len(found) < len(candidates):
            found += self._compete(generation, candidates)[len(known) :]
        for candidate, score in zip(candidates, found, strict=True):
            if score.complete:
                self.evaluator.remember(candidate.arch, score)
            yield score

    def end(self, generation: int) -> None:
        """Statistics were kept until here."""
        self.crew.forget()

    def _compete(self, generation: int, candidates: Sequence[Candidate]) -> list[Score]:
        """Scores of a generation, each after the last rung that its candidate reached."""
        final = {i: s for i, c in enumerate(candidates) if (s := self.evaluator.cached(c))}
        going = [i for i in range(len(candidates)) if i not in final]
        tallies: dict[int, Tally] = {}
        for rung in range(self.n_rungs):
            tallies |= self._rung(generation, rung, candidates, going, tallies)
            last = rung + 1 == self.n_rungs
            ranked = sorted(
                going, key=lambda i: (candidates[i].violation, -self._merit(tallies[i]))
            )
            n_kept = len(going) if last else (len(going) + 1) // 2
            for place, i in enumerate(ranked):
                if last or place >= n_kept:
                    score = Score.of(tallies[i], candidates[i].arch, self.evaluator.rank_by)
                    final[i] = replace(score, complete=last)
            going = sorted(ranked[:n_kept])
        return [final[i] for i in range(len(candidates))]

    def _merit(self, tally: Tally) -> float:
        return merit_of(tally, self.evaluator.rank_by)

    def _rung(
        self,
        generation: int,
        rung: int,
        candidates: Sequence[Candidate],
        going: Sequence[int],
        before: dict[int, Tally],
    ) -> dict[int, Tally]:
        """Counts of those who go on, by place; what the journal holds is not counted again."""
        found = {i: t for i in going if (t := self.journal.rung(generation, rung, i))}
        missing = [i for i in going if i not in found]
        tasks = [Task(arch=candidates[i].arch, rung=rung, before=before.get(i)) for i in missing]
        for place, tally in self.crew.tallies(tasks):
            i = missing[place]
            self.journal.climbed(generation, rung, i, tally)
            found[i] = tally
            self.evaluator.n_scored += rung == 0
        return found
