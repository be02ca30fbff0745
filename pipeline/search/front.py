"""The front and the winner: the most accurate subnet that keeps every limit *as measured*.

The search works with predicted latencies. Before a winner is named, the best of what it found is
measured live on every device, and only what keeps all limits with its measured latency may win.
Where the measured front holds no such subnet, or a more accurate one may still exist, further
candidates of the archive are measured, up to a fixed number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import moocore

from latency_tables.arch import Arch
from latency_tables.errors import DeviceError, LimitError, MeasurementError, MissingLatencyError
from latency_tables.estimate import Estimate
from latency_tables.files import write_json
from pipeline.search.config import RankBy
from pipeline.search.evaluation import Evaluation, comparable
from pipeline.search.limits import Limit, latency_limits
from pipeline.search.measuring import Answers, LiveMeasurer
from pipeline.search.objectives import Objectives

SCHEMA = 1

Verdict = Literal["keeps", "violates", "failed", "unmeasured"]
"""keeps and violates: by measured latency; failed: the subnet itself could not run on a device;
unmeasured: a device could not measure it, through no fault of the subnet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint:
    """One subnet of the front, predicted and measured side by side.

    ``straddles`` names the devices whose measured interval leaves the limit open; ``on_front``
    is False for candidates that were measured because the front alone did not settle the winner.
    """

    evaluation: Evaluation
    measured: dict[str, Estimate]
    verdict: Verdict
    reasons: tuple[str, ...]
    straddles: tuple[str, ...]
    on_front: bool

    @property
    def arch(self) -> Arch:
        """The architecture."""
        return self.evaluation.arch

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        e = self.evaluation
        return {
            "arch": dict(e.arch),
            "accuracy": e.accuracy,
            "score": e.score.to_dict(),
            "generation": e.generation,
            "costs": e.costs,
            "predicted": {d: x.to_dict() for d, x in e.latency.items()},
            "measured": {d: x.to_dict() for d, x in self.measured.items()},
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "straddles": list(self.straddles),
            "on_front": self.on_front,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """Measured points, best first, and which of them won."""

    limits: tuple[Limit, ...]
    objectives: tuple[str, ...]
    points: tuple[FrontPoint, ...]
    winner: FrontPoint

    def to_dict(self) -> dict[str, Any]:
        """What ``front.json`` holds."""
        return {
            "schema": SCHEMA,
            "limits": [limit.to_dict() for limit in self.limits],
            "objectives": list(self.objectives),
            "points": [point.to_dict() for point in self.points],
            "winner": self.points.index(self.winner),
        }

    def write(self, path: Path, **more: Any) -> None:
        """Write ``front.json``, whole or not at all; ``more`` is added to what it holds."""
        write_json(path, {**self.to_dict(), **more})


def known_objectives(
    evaluations: Sequence[Evaluation], objectives: Objectives | None = None
) -> Objectives:
    """What a front trades: as given, else accuracy and the latency on every device, or MACs where
    no device was asked.

    >>> known_objectives([]).labels
    ('error', 'macs')
    """
    if objectives is not None:
        return objectives
    return Objectives.of(None, devices=sorted({d for e in evaluations for d in e.latency}))


def pareto_front(
    evaluations: Sequence[Evaluation], objectives: Objectives | None = None
) -> list[Evaluation]:
    """Feasible evaluations that no other feasible one beats, best first.

    What counts are ``objectives``, by default those of :func:`known_objectives`. Of evaluations
    with equal objectives the first stays.
    """
    feasible = [e for e in comparable(evaluations) if e.feasible]
    if not feasible:
        return []
    rows = known_objectives(feasible, objectives).rows(feasible)
    kept = moocore.is_nondominated(rows)
    front = [e for e, keep in zip(feasible, kept, strict=True) if keep]
    return sorted(front, key=lambda e: -e.merit)


def choose_winner(
    evaluations: Sequence[Evaluation],
    limits: Sequence[Limit],
    measurer: LiveMeasurer,
    *,
    front_size: int = 8,
    extra: int | None = None,
    objectives: Objectives | None = None,
) -> Front:
    """Measure the front and name the winner.

    Args:
        evaluations: the search's archive.
        limits: resolved limits of all devices.
        measurer: live; devices without a limit are measured as well, for the report.
        front_size: the most accurate points of the front that are measured.
        extra: further candidates that may be measured where the front does not settle it
            (default: as many as ``front_size``).
        objectives: what the front trades; by default accuracy and latencies.

    Raises:
        LimitError: nothing that was measured keeps all limits; gives the closest numbers.
        MissingLatencyError: a device sets a limit on latency, and nothing measures on it.
        DeviceError: no subnet is known to keep the limits, and some could not be measured through
            a device's own fault; the same call asks for these again.
    """
    for limit in latency_limits(limits):
        if limit.device not in measurer.sources:
            raise MissingLatencyError(
                f"limit {limit} cannot be checked: nothing measures on {limit.device!r}",
                hint="hilnas devices list",
            )
    front = pareto_front(evaluations, objectives)
    if not front:
        raise LimitError(
            f"none of the {len(evaluations)} candidates keeps all limits",
            hint="higher limits, or see 'hilnas space profile'",
        )
    chosen = front[:front_size]
    points = _measure(chosen, limits, measurer, on_front=True)
    budget = front_size if extra is None else extra
    while budget > 0:
        following = _next_candidates(evaluations, points, limits)[: min(budget, front_size)]
        if not following:
            break
        budget -= len(following)
        points += _measure(following, limits, measurer, on_front=False)
    keeping = [p for p in points if p.verdict == "keeps"]
    if not keeping:
        raise _no_winner(points, limits)
    ordered = tuple(sorted(points, key=lambda p: -p.evaluation.merit))
    winner = min(keeping, key=lambda p: (-p.evaluation.merit, _load(p, limits)))
    return Front(
        limits=tuple(limits),
        objectives=_named(
            known_objectives([p.evaluation for p in points], objectives),
            winner.evaluation.score.rank_by,
        ),
        points=ordered,
        winner=winner,
    )


def _measure(
    evaluations: Sequence[Evaluation],
    limits: Sequence[Limit],
    measurer: LiveMeasurer,
    *,
    on_front: bool,
) -> list[FrontPoint]:
    answers = measurer.measure([e.arch for e in evaluations])
    return [judge_measured(e, answers[e.arch], limits, on_front=on_front) for e in evaluations]


def judge_measured(
    evaluation: Evaluation, answers: Answers, limits: Sequence[Limit], *, on_front: bool
) -> FrontPoint:
    """Hold measured latencies against the limits; what is not measured is not kept."""
    measured = {d: x for d, x in answers.items() if isinstance(x, Estimate)}
    errors = {d: x for d, x in answers.items() if isinstance(x, DeviceError)}
    broken, straddles = [], []
    for limit in latency_limits(limits):
        estimate = measured.get(limit.device or "")
        if estimate is None:
            continue
        if not estimate.keeps(limit.bound):
            broken.append(f"{estimate.latency_ms:.4g} ms measured, limit {limit}")
        if estimate.straddles(limit.bound):
            straddles.append(limit.device or "")
    failed = [f"{d}: {x}" for d, x in errors.items() if x.blames == "candidate"]
    missing = [f"{d}: {x}" for d, x in errors.items() if x.blames != "candidate"]
    verdict: Verdict = "keeps"
    if failed:
        verdict = "failed"
    elif broken:
        verdict = "violates"
    elif missing:
        verdict = "unmeasured"
    return FrontPoint(
        evaluation=evaluation,
        measured=measured,
        verdict=verdict,
        reasons=(*failed, *broken, *missing),
        straddles=tuple(straddles),
        on_front=on_front,
    )


def _next_candidates(
    evaluations: Sequence[Evaluation], points: Sequence[FrontPoint], limits: Sequence[Limit]
) -> list[Evaluation]:
    """What may still beat the best measured point, in the order worth measuring.

    Predictions are corrected by the median of measured / predicted on each device, because a
    model's error is mostly common to all subnets. While something keeps the limits already, only
    more accurate candidates that should keep them, too, are worth a measurement.
    """
    seen = {p.arch for p in points}
    floor = max((p.evaluation.merit for p in points if p.verdict == "keeps"), default=None)
    factor = {
        limit.device: _correction(points, limit.device or "") for limit in latency_limits(limits)
    }

    def excess(e: Evaluation) -> float:
        return max(
            (
                e.latency[limit.device].latency_ms * factor[limit.device] / limit.bound - 1.0
                for limit in latency_limits(limits)
                if limit.device in e.latency
            ),
            default=0.0,
        )

    open_ = [e for e in comparable(evaluations) if e.feasible and e.arch not in seen]
    likely = [e for e in open_ if excess(e) <= 0 and (floor is None or e.merit > floor)]
    likely.sort(key=lambda e: -e.merit)
    if likely or floor is not None:
        return likely
    return sorted(open_, key=lambda e: (excess(e), -e.merit))


def _correction(points: Sequence[FrontPoint], device: str) -> float:
    ratios = [
        p.measured[device].latency_ms / p.evaluation.latency[device].latency_ms
        for p in points
        if device in p.measured and device in p.evaluation.latency
    ]
    return median(ratios) if ratios else 1.0


def _named(objectives: Objectives, rank_by: RankBy) -> tuple[str, ...]:
    """Objectives as ``front.json`` names them: with units, and what ranks in place of the error."""
    names = {label: label.replace("latency:", "latency_ms on ") for label in objectives.labels}
    return tuple(rank_by if label == "error" else name for label, name in names.items())


def _load(point: FrontPoint, limits: Sequence[Limit]) -> float:
    """Summed measured latency, each as a share of its device's limit where there is one."""
    bounds = {limit.device: limit.bound for limit in latency_limits(limits)}
    return sum(x.latency_ms / bounds.get(d, 1.0) for d, x in point.measured.items())


def _no_winner(points: Sequence[FrontPoint], limits: Sequence[Limit]) -> Exception:
    """The error that fits: a device failed, or the limits are too tight."""
    texts = ", ".join(str(limit) for limit in latency_limits(limits))
    open_ = [p for p in points if p.verdict == "unmeasured"]
    if open_:
        return MeasurementError(
            "UNMEASURED",
            f"{len(open_)} of {len(points)} subnets of the front could not be measured, and no "
            f"other keeps every limit ({texts}): {'; '.join(open_[0].reasons)}",
            blames="board",
            retryable=True,
            hint="run the same command again once the device answers; nothing is lost",
        )
    timed = [p for p in points if p.verdict == "violates"]
    closest = min(timed, key=lambda p: _load(p, limits), default=points[0])
    return LimitError(
        f"none of the {len(points)} subnets that were measured keeps every limit ({texts}); "
        f"the closest: {'; '.join(closest.reasons)}",
        hint="a higher limit, or more samples for the table ([latency] samples)",
    )
