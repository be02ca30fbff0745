"""Stage ``search``: evolve subnets under the limits, measure the front, name the winner.

While it runs, latencies come from the run's frozen table and the model fitted on it. With
``measure = "refine"`` devices measure where that decides most and the model learns from it, with
``measure = "all"`` they measure every candidate; the journal ``search.jsonl`` holds every score and
measurement before the searcher is told of it, ``boards.jsonl`` what boards finished meanwhile.

With several devices there is a search per device and one for all of them, one after the other. They
share the accuracy cache, and every front is chosen among what any of them has scored. What one of
them cannot do is no reason to drop what the others found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from latency_tables.arch import Arch
from latency_tables.errors import DeviceError, LimitError
from pipeline.run.context import RunContext
from pipeline.run.scoring import (
    PRECISION_FILE,
    choose_precision,
    follow_search,
    make_scorer,
    make_scoring,
    say_scoring,
    scored_how,
    scoring_crew,
)
from pipeline.run.searching import (
    Oracles,
    Settled,
    devices_of,
    known_candidates,
    make_evaluator,
    make_measuring,
    measuring_boards,
    open_journal,
    proposer_of,
    target_config,
)
from pipeline.run.shifting import (
    ShiftedSearch,
    shifted_files,
    shifted_search,
    supernet_to_score,
    weights_entry,
    working_files,
)
from pipeline.run.stability import stability_files, write_stability
from pipeline.run.stage import Stage
from pipeline.run.stages.table import write_records
from pipeline.run.targets import run_targets, target_files
from pipeline.run.timings import report_timing, stage_timer
from pipeline.search.evaluation import Evaluation
from pipeline.search.evaluator import AccuracyCache, Evaluator
from pipeline.search.front import Front, choose_winner
from pipeline.search.generation import Scoring
from pipeline.search.journal import Journal
from pipeline.search.learning import BackgroundSource, sources_of
from pipeline.search.measuring import LiveMeasurer
from pipeline.search.nsga2 import NSGA2
from pipeline.search.objectives import Objectives
from pipeline.search.refiner import refined
from pipeline.search.run_search import Progress, make_searcher, search
from pipeline.search.sources import live_source
from pipeline.search.targets import Target, shared_candidates, write_missing
from pipeline.supernet.scoring import PARTS

MEASURING, JUDGING = "measuring the front", "rank stability"
"""Parts of the stage that ``--profile`` tells apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """A finished search, its journal still open."""

    target: Target
    evaluator: Evaluator
    journal: Journal
    archive: tuple[Evaluation, ...]
    objectives: Objectives | None


def run_search(context: RunContext) -> None:
    """Search, then measure; write ``front.json``, for every target.

    Raises:
        LimitError: nothing that was measured keeps all limits, for no target.
        DeviceError: a device failed; the same command goes on.
    """
    if not context.ranks.leads:
        follow_search(context)
        return
    timer = stage_timer(context, (*PARTS, MEASURING, JUDGING))
    precision = choose_precision(context, context.supernet)
    scorer = make_scorer(context, supernet_to_score(context), timer, precision=precision)
    targets, cache = run_targets(context), AccuracyCache()
    troubles = Troubles(context, alone=len(targets) == 1)
    with ExitStack() as kept, Oracles.opened(context) as oracles, timer.running():
        searched: list[Searched] = []
        crew = kept.enter_context(scoring_crew(context, scorer))
        for target in targets:
            with troubles.of(target):
                evaluator = make_evaluator(context, target, oracles, scorer, cache)
                journal = kept.enter_context(open_journal(context, target, evaluator))
                scoring = make_scoring(context, evaluator, journal, crew)
                with (
                    measuring_boards(context, target) as sources,
                    shifted_search(
                        context, target, scoring, evaluator, journal, scorer, crew, timer
                    ) as shifted,
                ):
                    searched.append(
                        _search(
                            context, target, oracles, evaluator, journal, sources, scoring, shifted
                        )
                    )
        for found in searched:
            with troubles.of(found.target):
                with timer.part(MEASURING):
                    winner = _finish(context, found, [e for s in searched for e in s.archive])
                with timer.part(JUDGING):
                    write_stability(context, found.target, found.archive, winner)
    troubles.settle(targets)
    say_scoring(context, scorer, [s.evaluator for s in searched])
    report_timing(context, "search", timer)


class Troubles:
    """What kept targets from a winner; with one target alone an error goes on at once."""

    def __init__(self, context: RunContext, *, alone: bool) -> None:
        self.context, self.alone = context, alone
        self.found: dict[Target, LimitError | DeviceError] = {}

    @contextmanager
    def of(self, target: Target) -> Iterator[None]:
        """Note what fails; the other targets go on."""
        try:
            yield
        except (LimitError, DeviceError) as error:
            if self.alone:
                raise
            self.found[target] = error
            self.context.reporter.warn(f"{target}: {error.message}")

    def settle(self, targets: Sequence[Target]) -> None:
        """Raise what stops the stage; write down which targets have no winner.

        Raises:
            DeviceError: a device failed. What others found is kept.
            LimitError: there is no winner at all.
        """
        for error in self.found.values():
            if isinstance(error, DeviceError):
                raise error
        if self.found and len(self.found) == len(targets):
            raise list(self.found.values())[-1]
        for target, error in self.found.items():
            write_missing(self.context.folder.file(target.file("front.json")), target, error)
            write_records(self.context, target.file("front.jsonl"), [], ())


def _search(
    context: RunContext,
    target: Target,
    oracles: Oracles,
    evaluator: Evaluator,
    journal: Journal,
    sources: Mapping[str, BackgroundSource],
    scoring: Scoring,
    shifted: ShiftedSearch | None,
) -> Searched:
    config = target_config(context, target)
    searcher = make_searcher(
        config,
        evaluator,
        seed=context.config.seed,
        propose=proposer_of(context, evaluator.limits, oracles.models),
        initial=known_candidates(context),
        repeat=shifted is not None,
    )
    objectives = searcher.objectives if isinstance(searcher, NSGA2) else None
    measuring = make_measuring(context, target, oracles, evaluator, journal, sources, objectives)
    several = len(context.config.device) > 1
    with context.reporter.bar(f"searching for {target}" if several else "searching") as advance:

        def show(progress: Progress) -> None:
            context.give_way()
            best = progress.best
            note = "" if best is None else f"best {best.accuracy:.2%}"
            advance(progress.n_done, progress.n_total, note)

        result = search(
            searcher,
            evaluator,
            journal,
            scoring=scoring if shifted is None else shifted.shifting,
            in_loop=measuring.in_loop,
            refiner=measuring.reviser,
            n_total=config.n_candidates,
            on_progress=show,
            reassess=None if shifted is None else shifted.shifting.reassess,
        )
    if shifted is not None:
        shifted.finish()
    ended = ", no further network keeps the limits" if result.exhausted else ""
    context.reporter.say(
        f"  {f'{target}: ' if several else ''}{result.n_evaluated} candidates "
        f"({result.n_scored} scored now, {result.n_replayed} from the journal) in "
        f"{result.seconds:.1f} s{ended}"
    )
    for device in devices_of(context, target):
        context.reporter.say(f"  {device.name}: {sources_of(result.archive, device.name)}")
        if measuring.refines:
            told = refined(journal, device.name, oracles.of_table(device))
            context.reporter.say(f"  {device.name}: {told}")
    return Searched(
        target=target,
        evaluator=evaluator,
        journal=journal,
        archive=result.archive,
        objectives=objectives,
    )


def _finish(context: RunContext, found: Searched, scored: Sequence[Evaluation]) -> Arch:
    """Measure the front of a target, choose among all that was ``scored``, write it down."""
    target = found.target
    shared = shared_candidates(found.evaluator, found.archive, scored)
    front = _measure_front(context, found, [*found.archive, *shared])
    front.write(
        context.folder.file(target.file("front.json")),
        **weights_entry(context, target),
        scoring=scored_how(found.journal, found.evaluator.bn_policy),
    )
    _freeze_measurements(context, target, front)
    winner = front.winner
    measured = ", ".join(
        f"{e.latency_ms:.4g} ms {e.source} on {d}" for d, e in winner.measured.items()
    )
    whose = f" for {target}" if len(context.config.device) > 1 else ""
    context.reporter.say(
        f"  winner{whose}: accuracy {winner.evaluation.accuracy:.2%} on search-validation, "
        f"{measured or 'not measured'}"
    )
    return winner.evaluation.arch


def _measure_front(context: RunContext, found: Searched, candidates: Sequence[Evaluation]) -> Front:
    devices = devices_of(context, found.target)
    with context.reporter.bar("measuring front") as advance:
        measurer = LiveMeasurer(
            sources={d.name: live_source(Settled(context, d)) for d in devices},
            journal=found.journal,
            on_progress=lambda device, done, total: advance(done, total, device),
        )
        return choose_winner(
            candidates,
            found.target.limits,
            measurer,
            front_size=context.config.latency.remeasure,
            objectives=found.objectives,
        )


def _freeze_measurements(context: RunContext, target: Target, front: Front) -> None:
    """Copy the records behind the front's measured latencies from the live table."""
    records = []
    for point in front.points:
        for estimate in point.measured.values():
            same = [
                m
                for m in context.store.records(estimate.key)
                if m.latency_ms == estimate.latency_ms
            ]
            records += same[-1:]
    write_records(context, target.file("front.jsonl"), records, devices_of(context, target))


def _settings(context: RunContext) -> dict[str, object]:
    """What the fronts depend on."""
    found = context.config.search.in_use()
    if len(context.config.device) == 1:
        del found["targets"]  # there is one target in any case
    remeasure, seed = context.config.latency.remeasure, context.config.seed
    return {"search": found, "remeasure": remeasure, "seed": seed}


def _lineage(context: RunContext) -> dict[str, object]:
    """What the journal depends on: not how long the search is, nor how much is measured again."""
    return {"search": context.config.search.lineage(), "seed": context.config.seed}


SEARCH = Stage(
    name="search",
    title="searching under the limits",
    run=run_search,
    settings=_settings,
    needs=("table", "train"),
    outputs=("front.json", "front.jsonl"),
    working=("search.jsonl", "boards.jsonl", PRECISION_FILE),
    further_outputs=lambda context: [
        *target_files(context, "front.json", "front.jsonl"),
        *shifted_files(context),
        *stability_files(context),
    ],
    further_working=lambda context: [
        *target_files(context, "search.jsonl", "boards.jsonl"),
        *working_files(context),
    ],
    lineage=_lineage,
    on_all_ranks=True,
)
