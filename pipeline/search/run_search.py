"""The search loop: ask, screen, journal, score, journal, tell, refine; the same after a kill.

Results are told in ask order at the end of a generation. What the journal holds is taken from
there, so a resumed search tells its searcher exactly what it was told before, evaluates nothing
twice and ends in the same archive.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from latency_tables.arch import Arch
from latency_tables.errors import LimitError
from pipeline.search.assisted import Assistant
from pipeline.search.config import SearchConfig
from pipeline.search.evaluation import Candidate, Evaluation
from pipeline.search.evaluator import Evaluator
from pipeline.search.evolution import EvolutionSearch
from pipeline.search.generation import OneByOne, Scoring
from pipeline.search.in_loop import InLoop
from pipeline.search.journal import Journal
from pipeline.search.learning import Reviser
from pipeline.search.limits import COST_METRICS
from pipeline.search.nsga2 import NSGA2
from pipeline.search.objectives import Objectives
from pipeline.search.random_search import RandomSearch
from pipeline.search.searcher import Propose, Searcher


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the search is; ``best`` is the most accurate feasible candidate so far."""

    n_done: int
    n_total: int
    generation: int
    best: Evaluation | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What a search found.

    ``archive`` holds every evaluation in the order told; where the weights moved meanwhile, only
    the best, with their scores by the final weights. ``n_evaluated`` were told, ``n_scored`` were
    scored by this call, ``n_cached`` came from the accuracy cache, ``n_replayed`` from the
    journal. ``exhausted`` says that no new subnet keeping the limits was left.
    """

    archive: tuple[Evaluation, ...]
    n_scored: int
    n_cached: int
    n_replayed: int
    n_generations: int
    n_evaluated: int
    exhausted: bool
    seconds: float


def make_searcher(
    config: SearchConfig,
    evaluator: Evaluator,
    *,
    seed: int,
    propose: Propose | None = None,
    initial: Sequence[Arch] = (),
    repeat: bool = False,
) -> EvolutionSearch | NSGA2 | RandomSearch:
    """The searcher that ``config.method`` names, over the evaluator's space and limits.

    Args:
        repeat: whether candidates may be proposed again, see :class:`ArchiveSearcher`.

    Raises:
        UsageError: an objective that the cost table lacks, or chances of unknown decisions.
        MissingLatencyError: an objective on a device that nothing answers for.
    """
    common: dict[str, Any] = {
        "space": evaluator.space,
        "violations": evaluator.violations,
        "seed": seed,
        "propose": propose,
        "initial": initial,
        "repeat": repeat,
    }
    if config.method == "random":
        return RandomSearch(config, **common)
    if config.assisted:
        common["assistant"] = Assistant(space=evaluator.space, screen=evaluator.screen)
    if config.method == "evolution":
        return EvolutionSearch(config, **common)
    table = evaluator.cost_table
    metrics = [m for m in COST_METRICS if m in table.column_names()]
    objectives = Objectives.of(config.objectives, list(evaluator.latency), metrics)
    return NSGA2(config, objectives=objectives, **common)


def search_identity(
    config: SearchConfig, evaluator: Evaluator, *, seed: int, space_id: str
) -> dict[str, Any]:
    """What a journal's search depends on; the planned length is left out, so it may be raised."""
    return {
        "space": space_id,
        "seed": seed,
        "method": config.lineage(),
        **evaluator.identity(),
    }


def search(
    searcher: Searcher,
    evaluator: Evaluator,
    journal: Journal,
    *,
    scoring: Scoring | None = None,
    in_loop: InLoop | None = None,
    refiner: Reviser | None = None,
    n_total: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    reassess: Callable[[Searcher], tuple[Evaluation, ...]] | None = None,
) -> SearchResult:
    """Run a searcher to its end, from wherever the journal got to.

    Args:
        searcher: fresh; the journal's generations are told to it first.
        evaluator: screens and scores.
        journal: open; belongs to this search.
        scoring: how a generation gets its accuracies; one candidate after the other by default.
        in_loop: measures every candidate while it is scored; without it and a refiner, latencies
            stay predicted.
        refiner: knows latencies better after each generation, for having measured.
        n_total: planned number of candidates, for the progress.
        on_progress: called after every candidate.
        reassess: gives the final archive of a searcher that is done, for where scores have aged.

    Raises:
        LimitError: not one subnet that keeps all limits was found.
        DeviceError: a board failed; nothing is lost, the same call goes on.
    """
    began = time.monotonic()
    scoring = OneByOne(evaluator) if scoring is None else scoring
    scored, cached, replayed = evaluator.n_scored, evaluator.n_cached, 0
    exhausted, best = False, None
    while not searcher.done:
        generation = searcher.generation
        candidates = journal.candidates(generation)
        if candidates is None:
            archs = searcher.ask()
            if not archs:
                exhausted = True
                break
            candidates = evaluator.screen(archs)
            journal.asked(generation, candidates)
        else:
            evaluator.adopt(candidates)
        if in_loop is not None:
            in_loop.begin(generation, candidates)
        known = journal.scores(generation)
        replayed += len(known)
        evaluations: list[Evaluation] = []
        scores = scoring.scores(generation, candidates, known)
        for index, (candidate, score) in enumerate(zip(candidates, scores, strict=True)):
            if index >= len(known):
                journal.scored(generation, index, score)
            evaluation = Evaluation(candidate=candidate, score=score, generation=generation)
            evaluations.append(evaluation)
            best = _better(best, evaluation)
            if on_progress is not None:
                done = len(searcher.archive) + len(evaluations)
                on_progress(
                    Progress(
                        n_done=done,
                        n_total=max(n_total, done),
                        generation=generation,
                        best=best,
                    )
                )
        journal.sync()
        scoring.end(generation)
        if in_loop is not None:
            measured = in_loop.finish(candidates)
            evaluations = [
                replace(e, candidate=c) for e, c in zip(evaluations, measured, strict=True)
            ]
        searcher.tell(evaluations)
        if refiner is not None:
            searcher.revise(refiner.refine(generation, searcher.archive))
            best = reduce(_better, searcher.archive, None)
    if not searcher.archive:
        raise nothing_feasible(evaluator)
    archive = searcher.archive if reassess is None else reassess(searcher)
    return SearchResult(
        archive=archive,
        n_scored=evaluator.n_scored - scored,
        n_cached=evaluator.n_cached - cached,
        n_replayed=replayed,
        n_generations=searcher.generation,
        n_evaluated=len(searcher.archive),
        exhausted=exhausted,
        seconds=time.monotonic() - began,
    )


def nothing_feasible(evaluator: Evaluator) -> LimitError:
    """Say how close the screened candidates came to keeping all limits."""
    screened = evaluator.screened
    limits = ", ".join(str(limit) for limit in evaluator.limits)
    closest = min(screened, key=lambda c: c.violation, default=None)
    near = f"; the closest: {_broken(closest, evaluator)}" if closest is not None else ""
    return LimitError(
        f"none of the {len(screened):,} subnets that were drawn keeps all limits ({limits}){near}",
        hint="higher limits, or see 'hilnas space profile'",
    )


def _broken(candidate: Candidate, evaluator: Evaluator) -> str:
    parts = []
    for limit in evaluator.limits:
        on = ""
        if limit.metric == "latency_ms":
            estimate = candidate.latency.get(limit.device or "")
            value = None if estimate is None else estimate.latency_ms
            on = "" if estimate is None else f" ({estimate.source}) on {limit.device}"
        else:
            value = candidate.costs.get(limit.metric)
        if value is not None and value > limit.bound:
            parts.append(f"{limit.show(value)}{on}, limit {limit.show(limit.bound)}")
    return "; ".join([*parts, *(f"{d}: {fault}" for d, fault in candidate.faults.items())])


def _better(best: Evaluation | None, new: Evaluation) -> Evaluation | None:
    if not new.feasible or (best is not None and new.standing >= best.standing):
        return best
    return new
