"""Settings of the search and of the limits that a device sets, without torch."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.supernet.policies import BNPolicy

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Method = Literal["evolution", "random"]
Measured = Literal["front", "refine", "all"]

_PLANNED_LENGTH = ("generations", "evaluations")

_QUANTILE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")


class _Section(BaseModel):
    """Unknown keys are refused and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SearchConfig(_Section):
    """``[search]``: how candidates are proposed, and how many are scored.

    The defaults are those of the SPOS paper: 50 + 20 × 50 = 1,050 candidates.

    >>> SearchConfig().n_candidates, SearchConfig(method="random").n_candidates
    (1050, 100)
    """

    method: Method = "evolution"
    population: int = Field(default=50, ge=1, le=1_000_000)
    """Candidates per generation; results are told to the searcher a whole generation at a time."""
    generations: int = Field(default=20, ge=0, le=1_000_000)
    """Generations after the first, random one."""
    parents: int = Field(default=10, ge=1)
    """How many of the best candidates so far have children."""
    crossover: int = Field(default=25, ge=0)
    """Children per generation that mix two parents."""
    mutation: int = Field(default=25, ge=0)
    """Children per generation that vary one parent; random ones fill up the population."""
    mutation_probability: float = Field(default=0.1, gt=0, le=1)
    """Chance of every gene to be drawn anew."""
    max_tries: int = Field(default=10, ge=1, le=1_000_000)
    """Draws allowed per wanted candidate before the next way of proposing is taken."""
    evaluations: int = Field(default=100, ge=1, le=10_000_000)
    """Candidates of method "random"."""
    bn: BNPolicy = "recalibrate"
    """Statistics of batch norms while candidates are scored. "recalibrate": those of calibration
    images, as in the exported file. "batch": each validation batch's own. "tracked": the
    supernet's running ones, for comparisons only."""
    bn_images: int | None = Field(default=None, ge=1)
    """Calibration images of "recalibrate"; all there are (at most 4,096) where not given."""
    measure: Measured = "front"
    """What is measured live besides the front, which always is. "front": nothing, the search works
    with the table's predictions. "refine": after each generation the candidates whose measurement
    decides most; the latency model learns from them. "all": every candidate."""
    refine_budget: int = Field(default=40, ge=1, le=1_000_000)
    """Networks that "refine" may measure on each device, in the whole search."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.crossover + self.mutation > self.population:
            raise ValueError(
                f"crossover + mutation = {self.crossover + self.mutation} is more than "
                f"population = {self.population}; raise population or lower the two"
            )
        if self.bn_images is not None and self.bn != "recalibrate":
            raise ValueError(
                f'bn = "{self.bn}" reads no calibration images: leave bn_images out, or use '
                'bn = "recalibrate"'
            )
        if self.parents > self.population:
            raise ValueError(
                f"parents = {self.parents} is more than population = {self.population}; "
                f"1 to {self.population} are allowed"
            )
        return self

    @property
    def n_candidates(self) -> int:
        """Candidates that are scored when nothing runs out."""
        if self.method == "random":
            return self.evaluations
        return self.population * (1 + self.generations)

    @property
    def bn_key(self) -> str:
        """Names the statistics that scores depend on; equal names mean comparable scores.

        >>> SearchConfig().bn_key, SearchConfig(bn_images=500).bn_key
        ('recalibrate', 'recalibrate(500)')
        """
        return self.bn if self.bn_images is None else f"{self.bn}({self.bn_images})"

    def in_use(self) -> dict[str, Any]:
        """JSON-ready settings without those that the way of measuring does not read.

        >>> "refine_budget" in SearchConfig().in_use()
        False
        """
        unused = () if self.measure == "refine" else ("refine_budget",)
        return self.model_dump(mode="json", exclude=set(unused))

    def lineage(self) -> dict[str, Any]:
        """What the candidates of a generation depend on: not how many generations are planned."""
        return {k: v for k, v in self.in_use().items() if k not in _PLANNED_LENGTH}


class LimitsConfig(_Section):
    """Limits that one device sets; what is not named is not limited.

    Latency is given in one of three forms: ``latency = "40%"`` (that quantile of the built table,
    so that it makes sense on any machine), ``latency_ms`` or ``fps`` (frames per second, one image
    at a time).

    >>> LimitsConfig(fps=30).fixed_latency_ms
    33.333333333333336
    >>> LimitsConfig(latency="40%").latency_quantile
    0.4
    """

    latency: str | None = None
    latency_ms: Positive | None = None
    fps: Positive | None = None
    macs: Positive | None = None
    params: Positive | None = None
    size_bytes: Positive | None = None
    peak_memory_bytes: Positive | None = None

    @field_validator("latency")
    @classmethod
    def _is_quantile(cls, text: str | None) -> str | None:
        if text is None:
            return None
        match = _QUANTILE.fullmatch(text)
        if match is None or not 0 < float(match[1]) <= 100:
            raise ValueError(
                'latency is a quantile of the built table such as "40%" (above 0%, at most 100%); '
                "a number of milliseconds is latency_ms = 5.0"
            )
        return text.strip()

    @model_validator(mode="after")
    def _one_form_of_latency(self) -> Self:
        given = [n for n in ("latency", "latency_ms", "fps") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} limit the same thing: keep one of them")
        return self

    @property
    def latency_quantile(self) -> float | None:
        """The quantile in (0, 1], where the limit is given as one."""
        match = _QUANTILE.fullmatch(self.latency) if self.latency is not None else None
        return None if match is None else float(match[1]) / 100

    @property
    def fixed_latency_ms(self) -> float | None:
        """The limit in milliseconds, where it does not depend on a table."""
        if self.fps is not None:
            return 1000.0 / self.fps
        return self.latency_ms

    @property
    def limits_latency(self) -> bool:
        """Whether latency is limited in any form."""
        return self.latency is not None or self.fixed_latency_ms is not None
