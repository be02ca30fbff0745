"""``hilnas run --plan``: stages, sizes and estimated times before anything starts.

Times come from a short probe: two training steps, one scored candidate. What a device needs for
its measurements follows from what was measured there before, else from the measuring profile.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from latency_tables.errors import RunError
from pipeline.randomness import numpy_generator
from pipeline.run.context import RunContext
from pipeline.run.profile import profile_space
from pipeline.run.scoring import make_scorer, time_share
from pipeline.run.search_plan import plan_search
from pipeline.run.stage import Stage
from pipeline.run.stages import stages_of
from pipeline.run.stages.train import fresh_supernet
from pipeline.run.table_plan import Planner
from pipeline.run.table_records import n_missing
from pipeline.run.table_time import duration, planned_time

EXPORT_SECONDS = 10.0
"""Export, check and report: mostly torch's exporter, which hardly depends on the network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """One stage: what it will do, and for how long (0 where it is up to date)."""

    name: str
    what: str
    seconds: float
    up_to_date: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All stages of a run."""

    folder: str
    stages: tuple[PlannedStage, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


def make_plan(context: RunContext) -> Plan:
    """Size up a run. Nothing is written; limits that no network can keep are refused here, too."""
    profile = profile_space(context.space, [d.limits for d in context.config.device])
    step_seconds, score_seconds = probe_seconds(context)
    stream = context.train_stream()
    transfer = context.config.transfer
    steps = context.config.train.total_steps(stream.batches_per_epoch)
    steps = steps if transfer is None else transfer.head_steps
    stream.close()
    samples = context.config.latency.samples
    archs = Planner(context).first(samples)
    tables = [
        planned_time(d, partial(n_missing, d, archs), otherwise=len(archs)) for d in context.devices
    ]
    search = plan_search(context.config)
    measuring = sum(
        planned_time(d, lambda: search.n_measured, otherwise=search.n_measured).seconds
        for d in context.devices
    )
    sizes = ", ".join(f"{name} {size}" for name, size in context.splits.sizes.items())
    macs = profile["costs"]["macs"]
    of_each = f" of {search.n_targets} networks" if search.n_targets > 1 else ""
    planned = {
        "data": (f"{context.dataset.n_images} images: {sizes}", 0.0),
        "profile": (
            f"{profile['size']:.4g} networks, {macs['min'] / 1e6:.2f} to "
            f"{macs['max'] / 1e6:.2f} M MACs", 1.0,
        ),
        "table": ("; ".join(map(str, tables)), sum(t.seconds for t in tables)),
        "train": (
            f"{steps} steps of {context.config.train.batch_size} images{_taken(context)}",
            steps * step_seconds,
        ),
        "search": (
            str(search),
            search.n_scored * score_seconds + measuring
            + search.images_learnt * step_seconds / context.config.train.batch_size,
        ),
        "export": (
            f"ONNX, parity, manifest{of_each}", search.n_targets * EXPORT_SECONDS,
        ),
        "check": (f"hash, golden outputs, test accuracy{of_each}", search.n_targets * 1.0),
        "report": ("report.html", 1.0),
    }  # fmt: skip
    stages = []
    for stage in stages_of(context.config):
        done = _is_done(context, stage)
        what, seconds = planned[stage.name]
        stages.append(
            PlannedStage(
                name=stage.name, what=what, seconds=0.0 if done else seconds, up_to_date=done
            )
        )
    return Plan(folder=str(context.folder.path), stages=tuple(stages))


def _taken(context: RunContext) -> str:
    transfer = context.config.transfer
    return "" if transfer is None else f", on the supernet of {transfer.source}"


def probe_seconds(context: RunContext) -> tuple[float, float]:
    """Seconds of one training step and of one scored candidate, on a supernet of its own."""
    supernet = fresh_supernet(context)
    rng = numpy_generator(context.config.seed, "plan")
    stream = context.train_stream()
    spent = []
    for index in range(3):  # the first one warms up
        batch, arch = stream.batch(index), context.space.sample(rng)
        began = time.perf_counter()
        F.cross_entropy(supernet(batch.images, arch), batch.labels).backward()  # type: ignore[no-untyped-call]
        _finish(context.torch_device)
        spent.append(time.perf_counter() - began)
    stream.close()
    scorer = make_scorer(context, supernet)
    scored = []
    for _ in range(2):
        began = time.perf_counter()
        scorer.score(context.space.sample(rng))
        scored.append(time.perf_counter() - began)
    return min(spent[1:]), min(scored) * time_share(context, scorer)


def render(plan: Plan, console: Console) -> None:
    """Print a plan as a table."""
    table = Table(box=None)
    table.add_column("stage")
    table.add_column("what")
    table.add_column("about", justify="right")
    for stage in plan.stages:
        about = "up to date" if stage.up_to_date else duration(stage.seconds)
        table.add_row(stage.name, escape(stage.what), about)
    console.print(table)
    total = sum(stage.seconds for stage in plan.stages)
    console.print(f"in all about {duration(total)}, in {escape(plan.folder)}")


def _is_done(context: RunContext, stage: Stage) -> bool:
    try:
        return context.folder.up_to_date(stage.name, stage.fingerprint(context))
    except RunError:
        return False  # a stage before it has not run, so what it would read is not known


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
