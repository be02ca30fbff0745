"""What the search knows of an architecture: screened (costs, latencies, limits), then scored.

Plain data without torch, so that journals, archives and reports can hold them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from latency_tables.arch import Arch
from latency_tables.errors import DivergedError
from latency_tables.estimate import Estimate
from pipeline.search.config import RankBy


class Scored(Protocol):
    """What a scorer gives; accuracy in [0, 1] or per cent, the larger the better."""

    @property
    def accuracy(self) -> float:
        """Share of the images that were classified correctly."""
        ...

    @property
    def loss(self) -> float:
        """Mean loss over the same images."""
        ...

    @property
    def n_images(self) -> int:
        """Images that were classified."""
        ...

    @property
    def n_calibration_images(self) -> int:
        """Images that re-estimated the batch norms."""
        ...

    @property
    def bn_policy(self) -> str:
        """How the batch norms got their statistics."""
        ...


def merit_of(scored: Scored | Score, rank_by: RankBy) -> float:
    """The larger the better: the accuracy, or minus the loss; -inf where there is no such loss."""
    if rank_by == "accuracy":
        return scored.accuracy
    return -math.inf if scored.loss is None or not math.isfinite(scored.loss) else -scored.loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Accuracy of one subnet and how it was found; without torch, so that it can be journalled.

    ``complete`` is False where a subnet was given up after a part of the images (successive
    halving): its accuracy is that of the ``n_images`` it saw. ``shift`` is the version of the
    weights where the search shifts them: how many steps they had made since they were trained.
    ``rank_by`` says which of the two numbers orders it.

    >>> Score(accuracy=0.9).merit, Score(accuracy=0.9, loss=0.5, rank_by="loss").merit
    (0.9, -0.5)
    """

    accuracy: float
    loss: float | None = None
    n_images: int = 0
    n_calibration_images: int = 0
    bn_policy: str = ""
    complete: bool = True
    shift: int | None = None
    rank_by: RankBy = "accuracy"

    @property
    def merit(self) -> float:
        """What candidates are ordered by, the larger the better."""
        return merit_of(self, self.rank_by)

    @classmethod
    def of(cls, scored: Scored, arch: Arch, rank_by: RankBy = "accuracy") -> Score:
        """Copy what a scorer gave. Raises DivergedError where the accuracy is not a number."""
        accuracy, loss = float(scored.accuracy), float(scored.loss)
        if not math.isfinite(accuracy):
            raise DivergedError(
                f"the accuracy of {arch!r} is {accuracy}: weights or statistics are not finite"
            )
        return cls(
            accuracy=accuracy,
            loss=loss if math.isfinite(loss) else None,
            n_images=int(scored.n_images),
            n_calibration_images=int(scored.n_calibration_images),
            bn_policy=str(scored.bn_policy),
            rank_by=rank_by,
        )

    @classmethod
    def expected(cls, merit: float, rank_by: RankBy) -> Score:
        """A score that nobody found, of this merit; for choosing whom to score."""
        if rank_by == "accuracy":
            return cls(accuracy=merit)
        return cls(accuracy=math.nan, loss=-merit, rank_by=rank_by)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; a complete score does not mention that it is, nor one of weights
        that stay how often they moved, nor one by accuracy what it is ordered by."""
        data = {name: getattr(self, name) for name in self.__slots__}
        if self.complete:
            del data["complete"]
        if self.shift is None:
            del data["shift"]
        if self.rank_by == "accuracy":
            del data["rank_by"]
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An architecture after screening: everything but its accuracy.

    ``costs`` by metric; ``latency`` by device, empty where a limit on costs was broken already
    (then nothing was spent on it); ``violation`` sums the relative excess over all limits, and is
    zero where all are kept. ``faults`` names devices that this network itself brought down.
    """

    arch: Arch
    costs: dict[str, float]
    latency: dict[str, Estimate] = field(default_factory=dict)
    violation: float = 0.0
    faults: dict[str, str] = field(default_factory=dict)

    @property
    def feasible(self) -> bool:
        """Whether every limit is kept, as far as is known before the final measuring."""
        return self.violation <= 0.0

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; :meth:`from_dict` reads it back."""
        return {
            "arch": dict(self.arch),
            "costs": self.costs,
            "latency": {device: e.to_dict() for device, e in self.latency.items()},
            "violation": self.violation,
            "faults": self.faults,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Candidate:
        """Read what :meth:`to_dict` wrote."""
        return cls(
            arch=Arch.from_dict(data["arch"]),
            costs={str(k): float(v) for k, v in data["costs"].items()},
            latency={str(k): Estimate.from_dict(v) for k, v in data["latency"].items()},
            violation=float(data["violation"]),
            faults={str(k): str(v) for k, v in data["faults"].items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A candidate with its accuracy: what searchers are told and archives hold."""

    candidate: Candidate
    score: Score
    generation: int = 0

    @property
    def arch(self) -> Arch:
        """The architecture."""
        return self.candidate.arch

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.score.accuracy

    @property
    def merit(self) -> float:
        """What the search orders it by, the larger the better."""
        return self.score.merit

    @property
    def costs(self) -> dict[str, float]:
        """MACs, parameters, bytes."""
        return self.candidate.costs

    @property
    def latency(self) -> dict[str, Estimate]:
        """Latency by device, as known when the candidate was proposed."""
        return self.candidate.latency

    @property
    def feasible(self) -> bool:
        """Whether every limit was kept at that time."""
        return self.candidate.feasible

    @property
    def violation(self) -> float:
        """Summed relative excess over the limits."""
        return self.candidate.violation

    @property
    def standing(self) -> tuple[float, bool, int, float]:
        """Sorts the better before the worse; equal ones keep their order, as sorting is stable.

        What keeps the limits comes first, then what was scored on all images, of the rest what was
        given up latest, then what has more merit.

        >>> def scored(accuracy, **score):
        ...     candidate = Candidate(arch=Arch({}), costs={})
        ...     return Evaluation(candidate=candidate, score=Score(accuracy=accuracy, **score))
        >>> lucky, early = (scored(0.9, n_images=n, complete=False) for n in (50, 25))
        >>> best = sorted([early, lucky, scored(0.5)], key=lambda e: e.standing)
        >>> [(e.accuracy, e.score.n_images) for e in best]
        [(0.5, 0), (0.9, 50), (0.9, 25)]
        """
        n_seen = 0 if self.score.complete else self.score.n_images
        return (self.violation, not self.score.complete, -n_seen, -self.merit)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; :meth:`from_dict` reads it back."""
        return {
            "candidate": self.candidate.to_dict(),
            "score": self.score.to_dict(),
            "generation": self.generation,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evaluation:
        """Read what :meth:`to_dict` wrote."""
        return cls(
            candidate=Candidate.from_dict(data["candidate"]),
            score=Score(**data["score"]),
            generation=int(data["generation"]),
        )


def comparable(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Those that were scored on all images, whose accuracies may be held against each other.

    Where none of them keeps the limits, those that were given up earlier are better than nothing:
    then all.
    """
    complete = [e for e in evaluations if e.score.complete]
    return complete if any(e.feasible for e in complete) else list(evaluations)
