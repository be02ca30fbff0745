"""``hilnas rank``: score networks whose accuracy is known with a trained supernet, and compare.

Needs data and supernet only: no device, no latency table, no search. Every score is kept in
``rank.jsonl`` under what it depends on (weights, images, statistics of batch norms), so that a
stopped comparison goes on, and a larger sample costs only what is new.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latency_tables.append_log import AppendLog
from latency_tables.arch import Arch
from latency_tables.errors import UsageError
from latency_tables.files import sha256_file, sha256_json, write_json
from pipeline.ranking.choosing import Chosen, choose, look_up, truth_by_graph
from pipeline.ranking.report import RankReport, rank_report
from pipeline.ranking.truth import Truth, read_archs, read_truth
from pipeline.search.config import RankBy
from pipeline.search.evaluation import Score, merit_of

if TYPE_CHECKING:
    from pipeline.run.context import RunContext
    from pipeline.run.job import Job

SCHEMA = "hilnas.rank/1"
SCORES, RESULT = "rank.jsonl", "rank.json"
BASELINES = {"macs": "MACs", "params": "params"}
"""Costs that need no training, by their name in the cost table and in the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRequest:
    """What is compared with what; ``n`` and ``n_images`` None mean all there are."""

    truth: Path | None
    column: str | None = None
    genomes: str | None = None
    archs: Path | None = None
    n: int | None = 500
    n_images: int | None = None
    isomorphic: bool = False
    seed: int | None = None
    shifted: bool = False


def rank(job: Job, request: RankRequest) -> dict[str, Any]:
    """Compare the supernet of a run with the truth; gives what ``rank.json`` holds.

    What is missing of data and training is run first, after the truth was read.

    Raises:
        UsageError: a file or a column that is not there.
        DataError: a genome that does not fit the space, too few networks, scores without order.
    """
    from pipeline.run.stage import run_stages
    from pipeline.run.stages.data import DATA
    from pipeline.run.stages.train import TRAIN, refuse_early

    with job.working() as context:
        seed = context.config.seed if request.seed is None else request.seed
        truth = read_request_truth(context, request)
        chosen = _choose(context, request, truth, seed)
        if not request.shifted:
            refuse_early(context)
            run_stages((DATA, TRAIN), context)
        began = time.monotonic()
        scored = _Scored(context, request)
        with context.reporter.bar("scoring") as advance, scored.opened() as known:
            scores = []
            for index, entry in enumerate(chosen.known, start=1):
                scores.append(known.score(entry.arch))
                advance(index, len(chosen.known), "")
        seconds = time.monotonic() - began
        archs = [entry.arch for entry in chosen.known]
        rank_by = context.config.search.rank_by
        report = rank_report(
            [merit_of(score, rank_by) for score in scores],
            [entry.truth for entry in chosen.known],
            baselines=_costs(context, archs) | _other_merit(scores, rank_by), seed=seed,
        )  # fmt: skip
        found = {
            "schema": SCHEMA,
            "run": context.folder.path.name,
            "space": {"id": context.space.space_id, "name": context.space.name},
            "weights": {"file": scored.weights.name, "sha256": scored.identity["supernet"]},
            "truth": _about(truth, chosen),
            "sample": {"seed": seed, "isomorphic": request.isomorphic},
            "scoring": {**scored.identity, "n_images": known.n_images,
                        "n_scored_now": known.n_scored, "seconds": seconds,
                        "rank_by": rank_by},
            "report": report.to_dict(),
            "winner": _winner(context, truth, report),
            "networks": [
                {"arch": dict(entry.arch), "score": merit_of(score, rank_by),
                 "accuracy": score.accuracy, "loss": score.loss, "truth": entry.truth}
                for entry, score in zip(chosen.known, scores, strict=True)
            ],
        }  # fmt: skip
        write_json(context.folder.file(RESULT), found)
    return found


# -- what is compared ----------------------------------------------------------------------------


def read_request_truth(context: RunContext, request: RankRequest) -> Truth:
    """The table or folder that a request names.

    Raises:
        UsageError: it names none, or one that is not there, or a column that is not.
        DataError: a line cannot be read, or its architecture is not of the space.
    """
    if request.truth is None:
        raise UsageError(
            "what the supernet is to be compared with is not given",
            hint="--truth table.csv, or --truth RUN for its retrained networks",
        )
    return read_truth(
        request.truth,
        context.space.decisions,
        n_classes=context.dataset.n_classes,
        validate=context.space.validate,
        column=request.column,
        genomes=request.genomes,
    )


def _choose(context: RunContext, request: RankRequest, truth: Truth, seed: int) -> Chosen:
    space = context.space
    if request.archs is None:
        return choose(truth, space.graph_key, n=request.n, seed=seed, isomorphic=request.isomorphic)
    listed = read_archs(
        request.archs, space.decisions, validate=space.validate, genomes=request.genomes
    )
    return look_up(truth, space.graph_key, listed)


def _costs(context: RunContext, archs: Sequence[Arch]) -> dict[str, list[float]]:
    genes = context.cost_table.genes(list(archs))
    return {
        name: context.cost_table.column(column, genes).tolist()
        for column, name in BASELINES.items()
    }


def _other_merit(scores: Sequence[Score], rank_by: RankBy) -> dict[str, list[float]]:
    """What orders the same subnets if the run ranked by the other number of the same scores."""
    other: RankBy = "loss" if rank_by == "accuracy" else "accuracy"
    merits = [merit_of(score, other) for score in scores]
    return {other: merits} if all(map(math.isfinite, merits)) else {}


def _about(truth: Truth, chosen: Chosen) -> dict[str, Any]:
    return {
        "source": truth.source,
        "sha256": truth.sha256,
        "form": truth.form,
        "column": truth.column,
        "n_rows": truth.n_rows,
        "n_blank": truth.n_blank,
        "n_networks": chosen.n_candidates,
        "n_isomorphic": chosen.n_isomorphic,
        "n_unknown": chosen.n_unknown,
    }


def _winner(context: RunContext, truth: Truth, report: RankReport) -> dict[str, Any] | None:
    """The truth of the network that the run has chosen under its limits, if both are known."""
    from pipeline.run.targets import folder_targets, winner_of

    targets = folder_targets(context.folder, context.config)
    point = winner_of(context.folder, targets[-1]) if targets else None
    if point is None:
        return None
    by_graph = truth_by_graph(truth, context.space.graph_key)
    arch = Arch.from_dict(point["arch"])
    value = by_graph.get(context.space.graph_key(arch))
    if value is None:
        return None
    return {
        "arch": dict(arch),
        "truth": value,
        "better": sum(other > value for other in by_graph.values()),
        "of": len(by_graph),
    }


def _weights(context: RunContext, *, shifted: bool) -> Path:
    if not shifted:
        return context.folder.file("supernet.safetensors")
    path = context.folder.file("shifted.safetensors")
    if not path.is_file():
        raise UsageError(
            f"{path} is not there: no search of this run has shifted its supernet",
            hint=f"hilnas search {context.folder.path} --set search.shifting=true",
        )
    return path


# -- scores --------------------------------------------------------------------------------------


class _Scored:
    """Scores by one supernet on fixed images; asks ``rank.jsonl`` first."""

    def __init__(self, context: RunContext, request: RankRequest) -> None:
        from pipeline.supernet.scoring import Scorer
        from pipeline.supernet.weights import load_supernet
        from pipeline.training.precision import Precision

        self.context, self.n_scored, self.n_images = context, 0, 0
        self.weights = _weights(context, shifted=request.shifted)
        supernet = load_supernet(context.space, self.weights)
        Precision(channels_last=True).place(supernet, context.torch_device)
        search = context.config.search
        calibration = context.eval_batches("calibration", n_images=search.bn_images)
        validation = context.eval_batches("search-validation", n_images=request.n_images)
        self.scorer = Scorer(
            context.space, supernet, calibration=calibration, validation=validation,
            policy=search.bn,
        )  # fmt: skip
        self.identity = {
            "supernet": sha256_file(self.weights),
            "space": context.space.space_id,
            "bn_policy": search.bn_key,
            "calibration": calibration.ids_sha256,
            "validation": validation.ids_sha256,
        }
        self._key = sha256_json(self.identity)
        self._known: dict[Arch, Score] = {}
        self._log: AppendLog | None = None

    @contextmanager
    def opened(self) -> Iterator[_Scored]:
        """Take over what was scored before, and keep what is scored now."""
        with AppendLog.open(self.context.folder.file(SCORES)) as log:
            for line in log.lines:
                # lines of older versions hold no loss
                if line.record["of"] == self._key and "score" in line.record:
                    arch = Arch.from_dict(line.record["arch"])
                    self._known[arch] = Score(**line.record["score"])
            self._log = log
            yield self

    def score(self, arch: Arch) -> Score:
        """Accuracy and loss with inherited weights, once per canonical form."""
        canonical = self.context.space.canonical(arch)
        if canonical not in self._known:
            score = Score.of(self.scorer.score(arch), arch)
            self._known[canonical] = score
            self.n_scored += 1
            if self._log is not None:
                self._log.append(
                    {"of": self._key, "arch": dict(canonical), "score": score.to_dict()}
                )
        found = self._known[canonical]
        self.n_images = found.n_images
        return found
