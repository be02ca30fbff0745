"""Supernet Shifting around any way of scoring: score first, then learn, one step per generation.

Algorithm 1 of Zhang et al., 2024 (:mod:`pipeline.supernet.shifting` has the gradients), for every
searcher, strategy and space:

* line 1: the first population is only scored;
* lines 5 to 8: a candidate is scored with the weights of the generation's beginning, its score is
  journalled, and only then its gradient is computed and added;
* line 9: one step when the generation is over, and every score from here on is one of new weights:
  candidates that come again are scored again, and their newest score counts;
* not in the paper: when the search is over, the best ``keep`` are scored once more with the final
  weights, because scores of different weights do not compare. The winner is one of them.

Weights, momenta and the number of finished generations are saved after every generation, behind
the journal. A search that was killed loads them, computes the gradients of the candidates that the
journal has scores of anew, and goes on: it ends with the same archive and the same weights. What
was saved by another search, or does not follow from the journal, is not used: then the weights are
shifted again from the trained supernet on, without scoring anything twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

from latency_tables.arch import Arch
from latency_tables.files import sha256_json
from pipeline.search.evaluation import Candidate, Evaluation, Score
from pipeline.search.evaluator import Evaluator
from pipeline.search.generation import Scoring
from pipeline.search.journal import Journal
from pipeline.search.searcher import Searcher
from pipeline.search.shifting_config import ShiftingConfig

CLEAN = "0" * 64
"""Of no generation."""


class Shifter(Protocol):
    """The weights, as the search sees them; :class:`pipeline.supernet.shifting.Shifter`."""

    @property
    def steps(self) -> int:
        """Optimizer steps since the supernet was trained: the version of the weights."""
        ...

    def learn(self, arch: Arch, first: int) -> None:
        """Train on a candidate, beginning with batch number ``first``."""
        ...

    def step(self) -> None:
        """Move the weights by what was learnt since the last step."""
        ...

    def forget(self) -> None:
        """Drop what was learnt since the last step."""
        ...

    def save(self, path: Path, state: Mapping[str, Any]) -> None:
        """Write weights and momenta, whole or not at all."""
        ...

    def saved(self, path: Path) -> dict[str, Any] | None:
        """The state that a file was saved with; None where there is no whole file."""
        ...

    def load(self, path: Path) -> None:
        """Take back weights and momenta."""
        ...


class Shifting:
    """A :class:`Scoring` that shifts the supernet between generations.

    Args:
        scoring: gives the scores. In mode "immediate" it must score a candidate only when its
            score is asked for, as :class:`pipeline.search.generation.OneByOne` does.
        evaluator: its ``supernet`` is set anew with every new version of the weights.
        shifter: the weights, as training left them.
        journal: of this search.
        config: how many batches, and when they are learnt.
        path: where weights and momenta are saved.
        identity: JSON-ready; everything that the weights depend on besides the trained ones, the
            candidates and the settings of shifting.
        on_note: told where a saved state could not be used.
        on_step: called with the number of finished generations after every generation that moved
            the weights, for whoever follows them.
    """

    def __init__(
        self,
        scoring: Scoring,
        evaluator: Evaluator,
        shifter: Shifter,
        journal: Journal,
        config: ShiftingConfig,
        *,
        path: Path,
        identity: Mapping[str, Any],
        on_note: Callable[[str], None] | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        self.scoring, self.evaluator, self.shifter = scoring, evaluator, shifter
        self.journal, self.config, self.path = journal, config, path
        self.on_note = on_note or (lambda _: None)
        self.on_step = on_step or (lambda _: None)
        self.n_learnt = 0
        """Candidates that were learnt by this object, anew ones after a kill included."""
        self._trained = evaluator.supernet
        self._identity = sha256_json(
            {"identity": identity, "shifting": config.lineage(), "supernet": self._trained}
        )
        self._chain = CLEAN  # of the generations so far
        self._first = 0  # number of the next generation's first batch
        self._waiting: list[tuple[int, Candidate]] = []  # scored, not yet learnt; with its batch
        self._done = self._resume()

    # -- a generation ------------------------------------------------------------------------------

    def scores(
        self, generation: int, candidates: Sequence[Candidate], known: Sequence[Score]
    ) -> Iterator[Score]:
        """Scores by the weights of the time, each followed by learning its candidate."""
        self._waiting = []
        self.shifter.forget()
        steps = known[0].shift if known else None
        self._at(self.shifter.steps if steps is None else steps)
        scores = self.scoring.scores(generation, candidates, known)
        for index, (candidate, score) in enumerate(zip(candidates, scores, strict=True)):
            if generation >= self._done and self._learns(generation):
                self._waiting.append((self._first + index * self.config.batches, candidate))
            yield score if index < len(known) else replace(score, shift=self.shifter.steps)
            self._learn()

    def end(self, generation: int) -> None:
        """Make the step, save, and let scores be of the new weights from here on."""
        self._learn()
        self.scoring.end(generation)
        candidates = self.journal.candidates(generation) or []
        self._chain = _linked(self._chain, candidates)
        if self._learns(generation):
            self._first += len(candidates) * self.config.batches
            if generation >= self._done:
                self.shifter.step()
                self._done = generation + 1
                self._save()
                self.on_step(self._done)
        self._at(self.shifter.steps)

    def _save(self) -> None:
        state = {"identity": self._identity, "generations": self._done, "chain": self._chain}
        self.shifter.save(self.path, state)

    def _learn(self) -> None:
        """Learn what was scored, now that its score is in the journal."""
        while self._waiting:
            first, candidate = self._waiting[0]
            self.shifter.learn(candidate.arch, first)
            self._waiting.pop(0)
            self.n_learnt += 1
            self._at(self.shifter.steps)

    def _learns(self, generation: int) -> bool:
        return generation > 0 or self.config.learns_first

    def _at(self, steps: int) -> None:
        """Let scores from here on be of the weights after so many steps."""
        version = sha256_json([self._identity, self._chain, steps])
        self.evaluator.supernet = version if steps else self._trained

    # -- the end of the search ---------------------------------------------------------------------

    def reassess(self, searcher: Searcher) -> tuple[Evaluation, ...]:
        """The best ``keep`` of a finished search, scored with the final weights, best first.

        Their scores are journalled under the number of generations, so that a longer search makes
        its own.
        """
        after = searcher.generation
        best = searcher.best(self.config.keep)
        journalled = self.journal.reassessed(after)
        known = [journalled[e.arch] for e in takewhile(lambda e: e.arch in journalled, best)]
        self._at(self.shifter.steps)
        scores = self.scoring.scores(after, [e.candidate for e in best], known)
        found: list[Evaluation] = []
        for index, (evaluation, score) in enumerate(zip(best, scores, strict=True)):
            if index >= len(known):
                score = replace(score, shift=self.shifter.steps)
                self.journal.reassess(after, evaluation.arch, score)
            found.append(replace(evaluation, score=score))
        self.journal.sync()
        self.scoring.end(after)
        return tuple(sorted(found, key=lambda e: e.standing))

    # -- going on ----------------------------------------------------------------------------------

    def _resume(self) -> int:
        """Load what was saved, where it follows from the journal; gives finished generations."""
        if not self.path.exists():
            return 0
        state = self.shifter.saved(self.path)
        wrong = "it is damaged"
        if state is not None:
            wrong = self._misfit(state)
        if state is None or wrong:
            self.on_note(
                f"{self.path.name} is not used: {wrong}; the supernet is shifted again from the "
                "beginning, and no candidate is scored twice"
            )
            return 0
        self.shifter.load(self.path)
        return int(state["generations"])

    def _misfit(self, state: Mapping[str, Any]) -> str:
        """Why a saved state does not belong to this search as the journal has it, if so."""
        if state.get("identity") != self._identity:
            return "it belongs to another search"
        chain, n = CLEAN, int(state["generations"])
        for generation in range(n):
            candidates = self.journal.candidates(generation)
            if candidates is None or len(self.journal.scores(generation)) < len(candidates):
                return f"the journal has less than its {n} generations"
            chain = _linked(chain, candidates)
        return "" if chain == state.get("chain") else "the journal holds other candidates"


def _linked(chain: str, candidates: Sequence[Candidate]) -> str:
    """The hash of all generations up to one, in order."""
    return sha256_json([chain, [dict(candidate.arch) for candidate in candidates]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """What shifting cost beside scoring, against the arithmetic.

    A training image costs three forward passes (one forward, two backward), an image that
    calibrates batch norm 1.25, one that is scored 1.

    >>> cost = Overhead(scoring_s=10.0, shifting_s=8.0, n_scored=50, n_learnt=50,
    ...                 n_shift=640, n_bn=1024, n_val=1280)
    >>> round(cost.measured, 2), round(cost.arithmetic, 2), round(cost.bound, 2)
    (1.8, 1.75, 1.93)
    """

    scoring_s: float
    shifting_s: float
    n_scored: int
    n_learnt: int
    n_shift: int
    n_bn: int
    n_val: int

    @property
    def measured(self) -> float:
        """Seconds of scoring and shifting, in those of scoring alone."""
        return (self.scoring_s + self.shifting_s) / self.scoring_s

    @property
    def arithmetic(self) -> float:
        """The same by passes through networks."""
        per_candidate = 3 * self.n_shift / (1.25 * self.n_bn + self.n_val)
        return 1 + per_candidate * self.n_learnt / self.n_scored

    @property
    def bound(self) -> float:
        """What is promised: a tenth above the arithmetic."""
        return 1.1 * self.arithmetic

    def __str__(self) -> str:
        return (
            f"{self.shifting_s:.1f} s beside {self.scoring_s:.1f} s of scoring: "
            f"{self.measured:.2f} × scoring alone; by arithmetic {self.arithmetic:.2f} ×, budget "
            f"{self.bound:.2f} × "
            f"({self.n_learnt} candidates learnt with {self.n_shift:,} images each, "
            f"{self.n_scored} scored: {self.n_bn:,} calibrate, {self.n_val:,} validate)"
        )
