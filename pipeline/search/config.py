"""Settings of the search and of the limits that a device sets, without torch."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.search.shifting_config import ShiftingChoice
from pipeline.supernet.policies import BNPolicy

Probability = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Method = Literal["evolution", "nsga2", "random"]
Measured = Literal["front", "refine", "all"]
ScorePrecision = Literal["fp32", "auto", "bf16"]
Targets = Literal["each", "common"]
RankBy = Literal["accuracy", "loss"]

_PLANNED_LENGTH = ("generations", "evaluations")
_OFF_BY_DEFAULT = (
    "measure_budget",
    "remeasure_every",
    "mutation_probabilities",
    "objectives",
    "assisted",
    "shifting",
    "images",
    "halving",
)

OBJECTIVES = ("error", "latency", "macs", "params", "size_bytes", "peak_memory_bytes")
"""What "nsga2" may minimise; "latency:NAME" is that of one device."""

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
    """Candidates per generation; results are told to the searcher a whole generation at a time. Of
    "nsga2" also the number of survivors."""
    generations: int = Field(default=20, ge=0, le=1_000_000)
    """Generations after the first, random one."""
    parents: int = Field(default=10, ge=1)
    """How many of the best candidates so far have children in "evolution"."""
    crossover: int = Field(default=25, ge=0)
    """Children per generation that mix two parents in "evolution"."""
    mutation: int = Field(default=25, ge=0)
    """Children per generation that vary one parent in "evolution"; random ones fill up the
    population."""
    mutation_probability: float = Field(default=0.1, gt=0, le=1)
    """Chance of every gene to be drawn anew; of "nsga2" at least 1 / genes."""
    mutation_probabilities: dict[str, Probability] | None = None
    """Chances of single decisions in "evolution", by label or pattern (``stage*_depth``); the first
    that fits counts. AutoFormer's are 0.2 in general, 0.4 of ``depth`` and ``embed_dim``."""
    objectives: tuple[str, ...] | None = None
    """What "nsga2" minimises: "error", "latency" (on every device) or "latency:NAME", "macs",
    "params", "size_bytes", "peak_memory_bytes". Error and latency (MACs without a device) where not
    given."""
    assisted: bool = False
    """Whether a predictor of accuracy chooses whom to score among many more children."""
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
    images: int | None = Field(default=None, ge=1)
    """Images that score a candidate: the same ones for all, every class equally often. All of the
    split search-validation where not given, or where there are fewer."""
    halving: int | None = Field(default=None, ge=2, le=10)
    """Rungs of successive halving: of each generation the better half sees twice as many images,
    and only those that reach the last rung all of them. Everyone sees all where not given."""
    rank_by: RankBy = "accuracy"
    """What orders candidates. "accuracy": the share of right answers. "loss": the mean cross
    entropy on the same images, which tells apart subnets that get equally many right."""
    precision: ScorePrecision = "fp32"
    """Number format in which candidates are scored. "auto": bf16 where that is faster and changes
    no accuracy by much, as measured on a few subnets once per search."""
    measure: Measured = "front"
    """What is measured live besides the front, which always is. "front": nothing, the search works
    with the table's predictions. "refine": after each generation the candidates whose measurement
    decides most; the latency model learns from them. "all": every candidate."""
    refine_budget: int = Field(default=40, ge=1, le=1_000_000)
    """Networks that "refine" may measure on each device, in the whole search."""
    measure_budget: int | None = Field(default=None, ge=1, le=1_000_000)
    """Networks that "all" may measure on each device; then the latency model answers, which learns
    from what was measured. No limit where not given."""
    remeasure_every: int | None = Field(default=None, ge=1, le=1_000_000)
    """Generations after which the best of the front so far are measured live, again if need be;
    never where not given."""
    targets: Targets = "each"
    """What runs with several devices look for. "each": a network for each device under its own
    limits, and one that keeps the limits of all. "common": only the latter."""
    shifting: ShiftingChoice = None
    """Whether the supernet learns the candidates while it is searched, and how; true: as the paper
    of Supernet Shifting does."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.method == "evolution" and self.crossover + self.mutation > self.population:
            raise ValueError(
                f"crossover + mutation = {self.crossover + self.mutation} is more than "
                f"population = {self.population}; raise population or lower the two"
            )
        if self.bn_images is not None and self.bn != "recalibrate":
            raise ValueError(
                f'bn = "{self.bn}" reads no calibration images: leave bn_images out, or use '
                'bn = "recalibrate"'
            )
        if self.measure_budget is not None and self.measure != "all":
            raise ValueError(
                f'measure_budget limits measure = "all", which is "{self.measure}" here: leave it '
                "out, or "
                + ("use refine_budget" if self.measure == "refine" else 'set measure = "all"')
            )
        if self.method == "evolution" and self.parents > self.population:
            raise ValueError(
                f"parents = {self.parents} is more than population = {self.population}; "
                f"1 to {self.population} are allowed"
            )
        return self

    @model_validator(mode="after")
    def _fits_the_method(self) -> Self:
        if self.objectives is not None and self.method != "nsga2":
            raise ValueError(
                f'method = "{self.method}" has one objective, the error: leave objectives out, or '
                'use method = "nsga2"'
            )
        kept = self.parents if self.shifting is None else self.shifting.keep
        if self.method == "evolution" and self.parents > kept:
            raise ValueError(
                f"parents = {self.parents} is more than shifting.keep = {kept}, the candidates "
                "that a shifting search keeps; raise keep or lower parents"
            )
        if self.mutation_probabilities is not None and self.method != "evolution":
            raise ValueError(
                f'method = "{self.method}" does not read mutation_probabilities: leave them '
                'out, or use method = "evolution"'
            )
        if self.assisted and self.method == "random":
            raise ValueError(
                'method = "random" has no children to choose among: leave assisted out, or use '
                'method = "evolution" or "nsga2"'
            )
        return self

    @model_validator(mode="after")
    def _halves_what_stays(self) -> Self:
        if self.halving is not None and self.shifting is not None:
            raise ValueError(
                f"halving = {self.halving} gives up candidates by their first images, and shifting "
                "learns every candidate as it was scored: leave one of the two out"
            )
        return self

    @field_validator("objectives")
    @classmethod
    def _known_objectives(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is None:
            return None
        known = [n for n in names if n in OBJECTIVES or re.fullmatch(r"latency:.+", n)]
        unknown = [n for n in names if n not in known]
        if unknown or not names:
            raise ValueError(
                f"objectives must be some of {', '.join(OBJECTIVES)} and latency:NAME of a device"
                + (f", not {', '.join(map(repr, unknown))}" if unknown else "")
            )
        return names

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

    def score_key(self, precision: str = "fp32") -> str:
        """Names everything that a score depends on beside architecture and weights.

        >>> SearchConfig().score_key(), SearchConfig(images=500, halving=2).score_key("bf16")
        ('recalibrate', 'recalibrate, 500 images, 2 rungs, bf16')
        """
        parts = [self.bn_key]
        parts += [] if self.images is None else [f"{self.images} images"]
        parts += [] if self.halving is None else [f"{self.halving} rungs"]
        parts += [] if precision == "fp32" else [precision]
        parts += [] if self.rank_by == "accuracy" else [f"by {self.rank_by}"]
        return ", ".join(parts)

    def in_use(self) -> dict[str, Any]:
        """JSON-ready settings without those that the way of measuring does not read.

        >>> "refine_budget" in SearchConfig().in_use()
        False
        """
        unused = set() if self.measure == "refine" else {"refine_budget"}
        unused |= {name for name in _OFF_BY_DEFAULT if getattr(self, name) in (None, False)}
        if self.precision == "fp32":
            unused.add("precision")
        if self.rank_by == "accuracy":
            unused.add("rank_by")
        if self.method == "nsga2":
            unused |= {"parents", "crossover", "mutation"}
        return self.model_dump(mode="json", exclude=unused)

    def lineage(self) -> dict[str, Any]:
        """What the candidates of a generation depend on: not how many generations are planned."""
        kept = {k: v for k, v in self.in_use().items() if k not in (*_PLANNED_LENGTH, "targets")}
        return kept if self.shifting is None else {**kept, "shifting": self.shifting.lineage()}


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
