"""Stage ``search``: evolve subnets under the limits, measure the front, name the winner.

While it runs, latencies come from the run's frozen table and the model fitted on it. With
``measure = "refine"`` devices measure where that decides most and the model learns from it, with
``measure = "all"`` they measure every candidate; the journal ``search.jsonl`` holds every score and
measurement before the searcher is told of it, ``boards.jsonl`` what boards finished meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from latency_tables import LatencyModel
from latency_tables.arch import Arch
from latency_tables.cost_table import CostTable
from latency_tables.files import sha256_file
from latency_tables.interchange import import_table, read_measurements
from latency_tables.oracle import Oracle
from latency_tables.records import Measurement
from latency_tables.store import TableStore
from pipeline.randomness import numpy_generator
from pipeline.run.background import background_sources
from pipeline.run.context import RunContext
from pipeline.run.devices import RunDevice, reference_of
from pipeline.run.relearning import Relearning
from pipeline.run.stage import Stage
from pipeline.run.stages.table import load_limits, write_records
from pipeline.run.timings import report_timing, stage_timer
from pipeline.search.evaluation import Evaluation
from pipeline.search.evaluator import Evaluator, LatencySource
from pipeline.search.front import Front, choose_winner
from pipeline.search.in_loop import BackgroundSource, InLoop
from pipeline.search.journal import Journal
from pipeline.search.limits import Limit
from pipeline.search.measuring import LiveMeasurer
from pipeline.search.operators import random_genes, sizes_of
from pipeline.search.refiner import Refiner, refined
from pipeline.search.run_search import Progress, make_searcher, search, search_identity
from pipeline.search.searcher import Propose
from pipeline.search.sources import exact_proposer, live_source, oracle_source
from pipeline.spaces.base import Supernet, net_id
from pipeline.supernet.scoring import PARTS, Scorer
from pipeline.training.timing import NO_TIMER, Timer

N_DRAWS = 2_000
MEASURING = "measuring the front"
"""A part of the stage that ``--profile`` tells apart."""


def run_search(context: RunContext) -> None:
    """Search, then measure; write ``front.json``.

    Raises:
        LimitError: nothing that was measured keeps all limits.
        DeviceError: a device failed; the same command goes on.
    """
    data = json.loads(context.folder.file("latency.json").read_text())
    limits = load_limits(data)
    models = {
        d.name: LatencyModel.from_dict(data["devices"][d.name]["model"], context.cost_table)
        for d in context.devices
    }
    timer = stage_timer(context, (*PARTS, MEASURING))
    scorer = make_scorer(context, context.supernet, timer)
    with TemporaryDirectory() as scratch, TableStore(Path(scratch) / "table.sqlite") as frozen:
        import_table(frozen, context.folder.file("table.jsonl"))
        evaluator = Evaluator(
            space=context.space,
            cost_table=context.cost_table,
            score=scorer.score,
            limits=limits,
            latency=_predictions(context, models, frozen),
            supernet=sha256_file(context.folder.file("supernet.safetensors")),
            bn_policy=context.config.search.bn_key,
        )
        identity = search_identity(
            context.config.search, evaluator, seed=context.config.seed,
            space_id=context.space.space_id,
        )  # fmt: skip
        identity["images"] = {
            split: context.eval_batches(split).ids_sha256
            for split in ("calibration", "search-validation")
        }
        identity["table"] = sha256_file(context.folder.file("table.jsonl"))
        journal = Journal.open(context.folder.file("search.jsonl"), identity)
        with journal, timer.running():
            with _boards(context) as sources:
                archive = _search(context, evaluator, journal, models, sources, frozen)
            with timer.part(MEASURING):
                front = _measure_front(context, archive, journal, limits)
    front.write(context.folder.file("front.json"))
    _freeze_measurements(context, front)
    winner = front.winner
    measured = ", ".join(f"{e.latency_ms:.4g} ms on {d}" for d, e in winner.measured.items())
    context.reporter.say(
        f"  winner: accuracy {winner.evaluation.accuracy:.2%} on search-validation, "
        f"{measured or 'not measured'}"
    )
    _say_speed(context, scorer)
    report_timing(context, "search", timer)


def make_scorer(context: RunContext, supernet: Supernet, timer: Timer = NO_TIMER) -> Scorer:
    """Scores subnets with inherited weights on fixed held-out images."""
    search = context.config.search
    return Scorer(
        context.space,
        supernet,
        calibration=context.eval_batches("calibration", n_images=search.bn_images),
        validation=context.eval_batches("search-validation"),
        policy=search.bn,
        timer=timer,
    )


def _say_speed(context: RunContext, scorer: Scorer) -> None:
    if scorer.seconds:
        rate = scorer.n_images / scorer.seconds
        context.reporter.say(f"  scoring: {rate:,.0f} images/s, calibration included")


def _predictions(
    context: RunContext, models: Mapping[str, LatencyModel], frozen: TableStore
) -> dict[str, LatencySource]:
    """By device: the run's frozen table, else the model. Nothing is measured here."""
    return {d.name: _prediction(context, d, models[d.name], frozen) for d in context.devices}


def _prediction(
    context: RunContext, device: RunDevice, model: LatencyModel, frozen: TableStore
) -> LatencySource:
    oracle = Oracle(frozen, device.deployment, identify=partial(net_id, context.space), model=model)
    return oracle_source(oracle)


@contextmanager
def _boards(context: RunContext) -> Iterator[Mapping[str, BackgroundSource]]:
    """What measures during the search; nothing where the run asks for the front only."""
    if context.config.search.measure == "front":
        yield {}
        return
    file = context.folder.file("boards.jsonl")
    warn = context.reporter.warn
    with background_sources(context.devices, journal=file, on_note=warn) as sources:
        yield sources


def _refiner(
    context: RunContext,
    evaluator: Evaluator,
    journal: Journal,
    models: Mapping[str, LatencyModel],
    sources: Mapping[str, BackgroundSource],
    frozen: TableStore,
) -> Refiner:
    """Refits the model of each device with what the search measures on it."""
    table = read_measurements(context.folder.file("table.jsonl"))
    return Refiner(
        sources=sources,
        refit={
            d.name: Relearning(
                model=models[d.name],
                table=tuple(m for m in table if m.device_name == d.name),
                store=context.store,
                predictions=partial(_prediction, context, d, frozen=frozen),
            )
            for d in context.devices
        },
        evaluator=evaluator,
        journal=journal,
        budget=context.config.search.refine_budget,
    )


def _search(
    context: RunContext,
    evaluator: Evaluator,
    journal: Journal,
    models: dict[str, LatencyModel],
    sources: Mapping[str, BackgroundSource],
    frozen: TableStore,
) -> tuple[Evaluation, ...]:
    config = context.config.search
    in_loop = refiner = None
    if config.measure == "all":
        in_loop = InLoop(sources=sources, evaluator=evaluator, journal=journal)
    if config.measure == "refine":
        refiner = _refiner(context, evaluator, journal, models, sources, frozen)
    searcher = make_searcher(
        config,
        evaluator,
        seed=context.config.seed,
        propose=_proposer(context, evaluator.limits, models),
        initial=_candidates(context),
    )
    with context.reporter.bar("searching") as advance:

        def show(progress: Progress) -> None:
            context.give_way()
            best = progress.best
            note = "" if best is None else f"best {best.accuracy:.2%}"
            advance(progress.n_done, progress.n_total, note)

        result = search(
            searcher,
            evaluator,
            journal,
            in_loop=in_loop,
            refiner=refiner,
            n_total=config.n_candidates,
            on_progress=show,
        )
    ended = ", no further network keeps the limits" if result.exhausted else ""
    context.reporter.say(
        f"  {result.n_evaluated} candidates ({result.n_scored} scored now, "
        f"{result.n_replayed} from the journal) in {result.seconds:.1f} s{ended}"
    )
    if refiner is not None:
        for device in context.devices:
            table = _prediction(context, device, models[device.name], frozen)
            context.reporter.say(f"  {device.name}: {refined(journal, device.name, table)}")
    return result.archive


def _candidates(context: RunContext) -> list[Arch]:
    """Good subnets that the training strategy knows, best first."""
    archs = [
        Arch.from_dict(a) for a in json.loads(context.folder.file("candidates.json").read_text())
    ]
    for arch in archs:
        context.space.validate(arch)
    return archs


def _proposer(
    context: RunContext, limits: Sequence[Limit], models: dict[str, LatencyModel]
) -> Propose | None:
    """Draws for limits so tight that random networks hardly ever keep them.

    Of several limits the one that the fewest random networks keep is kept by construction; the
    searcher checks the others.
    """
    rng = numpy_generator(context.config.seed, "search", "tightest")
    genes = random_genes(rng, sizes_of(context.space.decisions), N_DRAWS)
    found: list[tuple[float, Limit, CostTable]] = []
    for limit in limits:
        table = context.cost_table
        if limit.metric == "latency_ms" and limit.device is not None:
            table = models[limit.device].with_latency_column(table)
        found.append(
            (float((table.column(limit.metric, genes) <= limit.bound).mean()), limit, table)
        )
    if not found:
        return None
    _, limit, table = min(found, key=lambda entry: entry[0])
    return exact_proposer(table, limit.metric, limit.bound)


def _measure_front(
    context: RunContext, archive: Sequence[Evaluation], journal: Journal, limits: Sequence[Limit]
) -> Front:
    with context.reporter.bar("measuring front") as advance:
        measurer = LiveMeasurer(
            sources={d.name: live_source(_Settled(context, d)) for d in context.devices},
            journal=journal,
            on_progress=lambda device, done, total: advance(done, total, device),
        )
        return choose_winner(archive, limits, measurer, front_size=context.config.latency.remeasure)


class _Settled:
    """Measures on one device in the state in which its table was built."""

    def __init__(self, context: RunContext, device: RunDevice) -> None:
        self.context, self.device = context, device
        table = read_measurements(context.folder.file("table.jsonl"))
        self.reference_ns = reference_of([m for m in table if m.device_name == device.name])

    def measure(self, archs: Sequence[Arch]) -> list[Measurement]:
        if self.reference_ns is None:
            return self.device.measure(archs)
        return self.device.measure_settled(archs, self.reference_ns, self.context.reporter.warn)


def _freeze_measurements(context: RunContext, front: Front) -> None:
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
    write_records(context, "front.jsonl", records)


def _lineage(context: RunContext) -> dict[str, object]:
    """What the journal depends on: not how long the search is, nor how much is measured again."""
    return {"search": context.config.search.lineage(), "seed": context.config.seed}


SEARCH = Stage(
    name="search",
    title="searching under the limits",
    run=run_search,
    settings=lambda context: {
        "search": context.config.search.in_use(),
        "remeasure": context.config.latency.remeasure,
        "seed": context.config.seed,
    },
    needs=("table", "train"),
    outputs=("front.json", "front.jsonl"),
    working=("search.jsonl", "boards.jsonl"),
    lineage=_lineage,
)
