"""What a run knows of its own order of networks, as plain data for the report.

Kept apart from :mod:`pipeline.report.model`, of which it is one field. Accuracies and scores lie
between 0 and 1; truths are in the unit of their table.
"""

from __future__ import annotations

from dataclasses import dataclass

from latency_tables.arch import Arch


@dataclass(frozen=True, slots=True, kw_only=True)
class Tie:
    """A network that the images cannot tell from the chosen one; the 95 % interval is of how much
    more accurate the chosen one is."""

    arch: Arch
    accuracy: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStability:
    """Whether two halves of the images agree about the best networks of one search.

    ``name`` says for which device, empty for a run's only search and for all devices; ``words`` are
    the line that the search has printed.
    """

    name: str
    words: str
    significant: bool | None
    ties: tuple[Tie, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedAgainst:
    """Scores beside the truth of the same networks, and what their agreement is.

    ``rank_by`` is what the scores are: "accuracy", or "loss" (negative, so that more is better).
    ``baselines`` are tau-b by other numbers of the same networks, by name.
    """

    source: str
    n_images: int
    tau: float
    low: float
    high: float
    level: float
    baselines: tuple[tuple[str, float], ...]
    points: tuple[tuple[float, float], ...]
    rank_by: str = "accuracy"


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowedRow:
    """Scores of the good and the random networks after so many generations."""

    generations: int
    good: tuple[float, ...]
    random: tuple[float, ...]
    global_count: float
    local_tau: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEvidence:
    """All of it, as far as the run has it."""

    stability: tuple[RankStability, ...] = ()
    against: RankedAgainst | None = None
    followed: tuple[FollowedRow, ...] = ()
