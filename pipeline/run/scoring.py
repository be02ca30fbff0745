"""How a run scores its candidates: on which images, in which format, by how many processes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import torch

from latency_tables.errors import UsageError
from latency_tables.files import write_json
from pipeline.randomness import numpy_generator
from pipeline.run.context import RunContext
from pipeline.search.evaluation import Score
from pipeline.search.evaluator import Evaluator
from pipeline.search.generation import ByCrew, Crew, OneByOne, OneWorker, Scoring
from pipeline.search.halving import Halving, cost_share, rung_ends
from pipeline.search.journal import Journal
from pipeline.spaces.base import Supernet
from pipeline.supernet.crew import RankCrew, follow
from pipeline.supernet.number_format import try_formats
from pipeline.supernet.scoring import Scorer
from pipeline.supernet.split import supernet_of_layout
from pipeline.training.config import PrecisionName
from pipeline.training.precision import Precision, supports_bf16
from pipeline.training.timing import NO_TIMER, Timer

if TYPE_CHECKING:
    from pipeline.data.batches import Batch, EvalBatches

PRECISION_FILE = "precision.json"
"""What ``precision = "auto"`` decided; a search that goes on keeps it."""
N_TRIED = 9
"""Subnets that decide it; the first one warms up."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the batches, one after the other."""

    batches: EvalBatches
    start: int
    stop: int

    def __iter__(self) -> Iterator[Batch]:
        return (self.batches.batch(number) for number in range(self.start, self.stop))


def validation_batches(context: RunContext) -> EvalBatches:
    """The images that score candidates: the first ones of a split in which classes take turns."""
    search = context.config.search
    parts = 1 if search.halving is None else 2 ** (search.halving - 1)
    return context.eval_batches("search-validation", n_images=search.images, parts=parts)


def image_hashes(context: RunContext) -> dict[str, str]:
    """Hashes of the numbers of all images that scores depend on, by split."""
    return {
        "calibration": context.eval_batches("calibration").ids_sha256,
        "search-validation": validation_batches(context).ids_sha256,
    }


def make_scorer(
    context: RunContext,
    supernet: Supernet,
    timer: Timer = NO_TIMER,
    *,
    precision: PrecisionName = "fp32",
) -> Scorer:
    """Scores subnets with inherited weights on fixed held-out images.

    Raises:
        UsageError: there are too few images for so many rungs.
    """
    search, images = context.config.search, validation_batches(context)
    ends = rung_ends(len(images), search.halving or 1)
    return Scorer(
        context.space,
        supernet,
        calibration=context.eval_batches("calibration", n_images=search.bn_images),
        validation=images,
        policy=search.bn,
        precision=Precision(dtype=precision),
        timer=timer,
        rungs=[Part(images, a, b) for a, b in zip((0, *ends), ends, strict=False)],
    )


def time_share(context: RunContext, scorer: Scorer) -> float:
    """Share of the seconds of ``scorer.score`` that a candidate takes on average in the search.

    An image that calibrates costs 1.25 of one that is scored, and halving spares only the latter.
    """
    n_calibrated = 1.25 * scorer.n_calibration_images
    n_validated = scorer.n_images - scorer.n_calibration_images
    spared = n_validated * (1 - cost_share(context.config.search.halving or 1))
    return 1 - spared / (n_calibrated + n_validated)


def require_scoring(context: RunContext) -> None:
    """Refuse before anything is trained what could not be scored afterwards.

    Raises:
        UsageError: bf16 is asked for and this machine does not compute in it, or there are too
            few images for so many rungs.
    """
    n_rungs = context.config.search.halving
    if n_rungs is not None:
        rung_ends(len(validation_batches(context)), n_rungs)
    if context.config.search.precision == "bf16" and not supports_bf16(context.torch_device):
        raise UsageError(
            f"search.precision = 'bf16' is asked for, but this {context.torch_device.type} does "
            "not compute in bf16; 'auto' and 'fp32' are allowed",
            hint="--set search.precision=auto",
        )


def choose_precision(context: RunContext, supernet: Supernet) -> PrecisionName:
    """The format that the settings ask for; "auto" is measured once, then kept in the folder.

    Raises:
        UsageError: this machine does not compute in bf16.
    """
    require_scoring(context)
    asked = context.config.search.precision
    if asked != "auto":
        return asked
    path = context.folder.file(PRECISION_FILE)
    found = _decided(path.read_text() if path.exists() else "")
    if found is None:
        data = _decide(context, supernet)
        write_json(path, {"schema": 1, **data})
        found = data["choice"]
        context.reporter.say(f"  precision {data['why']}")
    return found


def _decided(text: str) -> PrecisionName | None:
    """The choice in a file; None where it is damaged, since it can be made again."""
    try:
        choice = json.loads(text)["choice"]
    except (ValueError, KeyError, TypeError):
        return None
    return choice if choice in ("fp32", "bf16") else None


def _decide(context: RunContext, supernet: Supernet) -> dict[str, Any]:
    if not supports_bf16(context.torch_device):
        device = context.torch_device.type
        return {"choice": "fp32", "why": f"fp32: this {device} does not compute in bf16"}
    rng = numpy_generator(context.config.seed, "search", "precision")
    archs = [context.space.sample(rng) for _ in range(N_TRIED)]
    trial = try_formats(lambda name: make_scorer(context, supernet, precision=name), archs)
    return {**trial.to_dict(), "why": str(trial)}


@contextmanager
def scoring_crew(context: RunContext, scorer: Scorer) -> Iterator[Crew]:
    """Whoever scores: this process, or all ranks of torchrun, which this one leads."""
    if context.ranks.world == 1:
        yield OneWorker(scorer)
        return
    crew = RankCrew(context.ranks, scorer)
    with crew.working():
        yield crew


def follow_search(context: RunContext) -> None:
    """Score what rank 0 hands out, as a rank that does not lead."""

    def make(layout: dict[str, Any], precision: Precision) -> Scorer:
        with torch.random.fork_rng(devices=[]):
            supernet = supernet_of_layout(context.space, layout)
        Precision(channels_last=True).place(supernet, context.torch_device)
        return make_scorer(context, supernet, precision=precision.dtype)

    follow(context.ranks, make)


def make_scoring(
    context: RunContext, evaluator: Evaluator, journal: Journal, crew: Crew
) -> Scoring:
    """How each generation gets its accuracies."""
    if context.config.search.halving is not None:
        return Halving(evaluator, crew, journal, n_rungs=context.config.search.halving)
    return OneByOne(evaluator) if context.ranks.world == 1 else ByCrew(evaluator, crew)


def scored_how(journal: Journal, policy: str) -> dict[str, Any]:
    """What the journal says about all scores together; JSON-ready, and equal wherever it was made.

    Args:
        journal: of a finished search.
        policy: what scores depend on (:meth:`SearchConfig.score_key`).
    """
    scores: list[Score] = []
    for generation in count():
        if journal.candidates(generation) is None:
            break
        scores += journal.scores(generation)
    n = max(1, len(scores))
    return {
        "policy": policy,
        "candidates": len(scores),
        "on_all_images": sum(s.complete for s in scores),
        "images_per_candidate": sum(s.n_images for s in scores) / n,
        "calibration_images_per_candidate": sum(s.n_calibration_images for s in scores) / n,
    }


def say_scoring(context: RunContext, scorer: Scorer, evaluators: Sequence[Evaluator]) -> None:
    """Say what scoring took: images and seconds per candidate, images per second."""
    n, cached = scorer.n_scored, sum(e.n_cached for e in evaluators)
    if not n or not scorer.seconds:
        return
    validated = scorer.n_images - scorer.n_calibration_images
    ranks = f", {context.ranks.world} processes" if context.ranks.world > 1 else ""
    context.reporter.say(
        f"  scoring: {n:,} candidates, {cached:,} more from the cache; images per candidate: "
        f"{validated / n:,.0f} to validate, {scorer.n_calibration_images / n:,.0f} to calibrate; "
        f"{scorer.seconds / n:.3g} s per candidate, {scorer.n_images / scorer.seconds:,.0f} "
        f"images/s ({scorer.precision.dtype}{ranks})"
    )
