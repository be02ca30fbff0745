"""What one search of a run is made of: scorer, predictions, boards, proposals, journal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from latency_tables import LatencyModel
from latency_tables.arch import Arch
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
from pipeline.run.scoring import image_hashes
from pipeline.search.config import SearchConfig
from pipeline.search.evaluator import AccuracyCache, Evaluator, LatencySource
from pipeline.search.front import pareto_front
from pipeline.search.in_loop import InLoop
from pipeline.search.journal import Journal
from pipeline.search.learning import BackgroundSource, InTurn, Learning, Reviser
from pipeline.search.limits import Limit
from pipeline.search.objectives import Objectives
from pipeline.search.operators import random_genes, sizes_of
from pipeline.search.proposing import Bounded, make_proposer
from pipeline.search.refiner import Refiner
from pipeline.search.remeasuring import Remeasurer
from pipeline.search.run_search import search_identity
from pipeline.search.searcher import Propose
from pipeline.search.sources import oracle_source
from pipeline.search.targets import Target
from pipeline.spaces.base import net_id
from pipeline.supernet.scoring import Scorer

N_DRAWS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Oracles:
    """Latencies by device: the run's frozen table, else the model. Nothing is measured here."""

    context: RunContext
    models: Mapping[str, LatencyModel]
    frozen: TableStore

    @classmethod
    @contextmanager
    def opened(cls, context: RunContext) -> Iterator[Oracles]:
        """Those of the stage ``table``."""
        devices = json.loads(context.folder.file("latency.json").read_text())["devices"]
        models = {
            d.name: LatencyModel.from_dict(devices[d.name]["model"], context.cost_table)
            for d in context.devices
        }
        with TemporaryDirectory() as scratch, TableStore(Path(scratch) / "table.sqlite") as frozen:
            import_table(frozen, context.folder.file("table.jsonl"))
            yield cls(context=context, models=models, frozen=frozen)

    def of_table(self, device: RunDevice) -> LatencySource:
        """By the model that was fitted on the table."""
        return self.by(self.models[device.name], device=device)

    def by(self, model: LatencyModel, *, device: RunDevice) -> LatencySource:
        """By another model."""
        return oracle_source(
            Oracle(
                self.frozen,
                device.deployment,
                identify=partial(net_id, self.context.space),
                model=model,
            )
        )

    def relearning(self, device: RunDevice) -> Relearning:
        """Refits the model of a device with what a search measured on it."""
        table = read_measurements(self.context.folder.file("table.jsonl"))
        return Relearning(
            model=self.models[device.name],
            table=tuple(m for m in table if m.device_name == device.name),
            store=self.context.store,
            predictions=partial(self.by, device=device),
        )


def devices_of(context: RunContext, target: Target) -> tuple[RunDevice, ...]:
    """The devices that a target is for."""
    return tuple(d for d in context.devices if d.name in target.devices)


def make_evaluator(
    context: RunContext, target: Target, oracles: Oracles, scorer: Scorer, cache: AccuracyCache
) -> Evaluator:
    """Screens and scores under the target's limits; only its devices are asked for latencies."""
    return Evaluator(
        space=context.space,
        cost_table=context.cost_table,
        score=scorer.score,
        limits=target.limits,
        latency={d.name: oracles.of_table(d) for d in devices_of(context, target)},
        supernet=sha256_file(context.folder.file("supernet.safetensors")),
        bn_policy=context.config.search.score_key(scorer.precision.dtype),
        cache=cache,
        rank_by=context.config.search.rank_by,
    )


def open_journal(context: RunContext, target: Target, evaluator: Evaluator) -> Journal:
    """The journal of a target's search, to go on with.

    Raises:
        RunChangedError: it belongs to another search.
    """
    identity = search_identity(
        context.config.search, evaluator, seed=context.config.seed,
        space_id=context.space.space_id,
    )  # fmt: skip
    identity["images"] = image_hashes(context)
    identity["table"] = sha256_file(context.folder.file("table.jsonl"))
    return Journal.open(context.folder.file(target.file("search.jsonl")), identity)


@contextmanager
def measuring_boards(
    context: RunContext, target: Target
) -> Iterator[Mapping[str, BackgroundSource]]:
    """What measures during the search; nothing where the run asks for the final front only."""
    if context.config.search.measure == "front" and context.config.search.remeasure_every is None:
        yield {}
        return
    file = context.folder.file(target.file("boards.jsonl"))
    warn = context.reporter.warn
    devices = devices_of(context, target)
    with background_sources(devices, journal=file, on_note=warn) as sources:
        yield sources


def target_config(context: RunContext, target: Target) -> SearchConfig:
    """Settings of a target's search: without objectives on devices that it is not for."""
    config = context.config.search
    others = {f"latency:{d.name}" for d in context.config.device if d.name not in target.devices}
    if config.objectives is None or others.isdisjoint(config.objectives):
        return config
    kept = tuple(name for name in config.objectives if name not in others)
    return config.model_copy(update={"objectives": kept})


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring:
    """What measures while a search goes on, as :func:`pipeline.search.run_search.search` takes it.

    ``refines`` says that measurements were chosen for what they decide.
    """

    in_loop: InLoop | None
    reviser: Reviser | None
    refines: bool


def make_measuring(
    context: RunContext,
    target: Target,
    oracles: Oracles,
    evaluator: Evaluator,
    journal: Journal,
    sources: Mapping[str, BackgroundSource],
    objectives: Objectives | None,
) -> Measuring:
    """Measure what the settings ask for; every model learns from all that its device said."""
    config = context.config.search
    refit = {d.name: oracles.relearning(d) for d in devices_of(context, target)}
    learning = Learning(refit=refit, evaluator=evaluator)
    in_loop, revisers = None, list[Reviser]()
    if config.measure == "all":
        in_loop = InLoop(
            sources=sources,
            evaluator=evaluator,
            journal=journal,
            learning=learning,
            budget=config.measure_budget,
        )
        revisers.append(in_loop)
    if config.measure == "refine":
        budget = config.refine_budget
        revisers.append(Refiner(sources=sources, learning=learning, journal=journal, budget=budget))
    if config.remeasure_every is not None:
        revisers.append(
            Remeasurer(
                sources=sources,
                learning=learning,
                journal=journal,
                every=config.remeasure_every,
                front=partial(pareto_front, objectives=objectives),
            )
        )
    return Measuring(
        in_loop=in_loop,
        reviser=InTurn(revisers) if revisers else None,
        refines=config.measure == "refine",
    )


def known_candidates(context: RunContext) -> list[Arch]:
    """Good subnets that the training strategy knows, best first."""
    archs = [
        Arch.from_dict(a) for a in json.loads(context.folder.file("candidates.json").read_text())
    ]
    for arch in archs:
        context.space.validate(arch)
    return archs


def proposer_of(
    context: RunContext, limits: Sequence[Limit], models: Mapping[str, LatencyModel]
) -> Propose | None:
    """Draws for limits so tight that random networks hardly ever keep them."""
    rng = numpy_generator(context.config.seed, "search", "tightest")
    genes = random_genes(rng, sizes_of(context.space.decisions), N_DRAWS)
    table = context.cost_table
    bounded = [
        Bounded(
            limit=limit,
            table=table
            if limit.metric != "latency_ms" or limit.device is None
            else models[limit.device].with_latency_column(table),
        )
        for limit in limits
    ]
    return make_proposer(bounded, genes)


class Settled:
    """Measures on one device in the state in which its table was built."""

    def __init__(self, context: RunContext, device: RunDevice) -> None:
        self.context, self.device = context, device
        table = read_measurements(context.folder.file("table.jsonl"))
        self.reference_ns = reference_of([m for m in table if m.device_name == device.name])

    def measure(self, archs: Sequence[Arch]) -> list[Measurement]:
        """One record per architecture, in the order asked."""
        if self.reference_ns is None:
            return self.device.measure(archs)
        return self.device.measure_settled(archs, self.reference_ns, self.context.reporter.warn)
