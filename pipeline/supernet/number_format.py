"""Whether subnets may be scored in bf16: measured, on a few of them, with the weights at hand.

bf16 is taken where it is both

* worth it: scoring takes at most ``WORTHWHILE`` of the time in fp32, calibration (always fp32)
  included; and
* safe: no accuracy changes by more than half the standard error that the number of images leaves
  it anyway, sqrt(p (1 - p) / n). Then two subnets that differ by more than one standard error keep
  their order.

Seconds differ from run to run, so whoever goes on with scores must keep the decision, not repeat
it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from latency_tables.arch import Arch
from latency_tables.ranking import kendall_tau
from pipeline.supernet.scoring import Scorer
from pipeline.training.config import PrecisionName

WORTHWHILE = 0.8
"""Scoring in bf16 must take at most this share of the time in fp32."""
SAFE_ERRORS = 0.5
"""Standard errors by which an accuracy may change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatTrial:
    """The same subnets scored in both formats.

    ``change`` is the largest change of an accuracy, in standard errors of that accuracy; ``tau``
    is Kendall's tau-b between both orders.
    """

    n_subnets: int
    n_images: int
    fp32_seconds: float
    bf16_seconds: float
    change: float
    tau: float

    @property
    def choice(self) -> PrecisionName:
        """What to score in.

        >>> trial = FormatTrial(n_subnets=8, n_images=1000, fp32_seconds=1.0, bf16_seconds=0.5,
        ...                     change=0.2, tau=1.0)
        >>> trial.choice
        'bf16'
        """
        worth = self.bf16_seconds <= WORTHWHILE * self.fp32_seconds
        return "bf16" if worth and self.change <= SAFE_ERRORS else "fp32"

    def __str__(self) -> str:
        return (
            f"{self.choice}: bf16 takes {self.bf16_seconds / self.fp32_seconds:.2f} × the time and "
            f"changes accuracies by up to {self.change:.2f} standard errors, tau {self.tau:.2f} "
            f"({self.n_subnets} subnets, {self.n_images} images)"
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary, the choice included."""
        return {"choice": self.choice, **asdict(self)}


def try_formats(make: Callable[[PrecisionName], Scorer], archs: Sequence[Arch]) -> FormatTrial:
    """Score ``archs`` in fp32 and bf16, by turns; the first one warms up and is not timed.

    Args:
        make: a scorer in that format.
        archs: at least three subnets, about as different as those of the search.
    """
    scorers = {name: make(name) for name in ("fp32", "bf16")}
    scores = {name: [scorer.score(archs[0])] for name, scorer in scorers.items()}
    warm = {name: scorer.seconds for name, scorer in scorers.items()}
    for arch in archs[1:]:
        for name, scorer in scorers.items():
            scores[name].append(scorer.score(arch))
    n_images = scores["fp32"][0].n_images
    accuracies = {name: [score.accuracy for score in found] for name, found in scores.items()}
    return FormatTrial(
        n_subnets=len(archs),
        n_images=n_images,
        fp32_seconds=scorers["fp32"].seconds - warm["fp32"],
        bf16_seconds=scorers["bf16"].seconds - warm["bf16"],
        change=max(
            abs(a - b) / standard_error(a, n_images)
            for a, b in zip(accuracies["fp32"], accuracies["bf16"], strict=True)
        ),
        tau=kendall_tau(accuracies["fp32"], accuracies["bf16"]),
    )


def standard_error(accuracy: float, n_images: int) -> float:
    """Of an accuracy on n images; with half an image wrong where none or all are.

    >>> standard_error(0.5, 100), standard_error(1.0, 100) == standard_error(0.995, 100)
    (0.05, True)
    """
    share = min(max(accuracy, 0.5 / n_images), 1 - 0.5 / n_images)
    return math.sqrt(share * (1 - share) / n_images)
