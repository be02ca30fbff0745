"""How much the searches of a run will score and measure at most."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import RunConfig
from pipeline.search.config import SearchConfig
from pipeline.search.remeasuring import N_BEST
from pipeline.search.targets import targets_of


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """``n_candidates`` in each of ``n_targets`` searches; ``n_measured`` on each device in all.

    ``images_learnt`` are training images of shifting, in all searches.
    """

    n_targets: int
    n_candidates: int
    n_measured: int
    images_learnt: int

    @property
    def n_scored(self) -> int:
        """Candidates that are scored, if no two searches have one in common."""
        return self.n_targets * self.n_candidates

    def __str__(self) -> str:
        each = f"{self.n_targets} searches, each of " if self.n_targets > 1 else ""
        return (
            f"{each}{self.n_candidates} candidates, at most {self.n_measured} measured on each "
            f"device{f', {self.images_learnt:,} images learnt' if self.images_learnt else ''}"
        )


def plan_search(config: RunConfig) -> SearchPlan:
    """Add up the searches of a run.

    >>> from pipeline.config import parse_run_config
    >>> text = '[data]\\nname = "digits"\\n[search]\\nmeasure = "all"\\nmeasure_budget = 100'
    >>> str(plan_search(parse_run_config(text)))
    '1050 candidates, at most 108 measured on each device'
    """
    targets = targets_of([d.name for d in config.device], (), config.search.targets)
    searches_per_device = min(len(targets), 2)  # its own, and the one for all
    measured = n_while_searching(config.search) + config.latency.remeasure
    return SearchPlan(
        n_targets=len(targets),
        n_candidates=config.search.n_candidates,
        n_measured=searches_per_device * measured,
        images_learnt=len(targets) * n_learnt(config.search),
    )


def n_learnt(config: SearchConfig) -> int:
    """Images that one search trains its candidates on.

    >>> n_learnt(SearchConfig(shifting=True)), n_learnt(SearchConfig())
    (640000, 0)
    """
    if config.shifting is None:
        return 0
    first = 0 if config.shifting.learns_first else min(config.population, config.n_candidates)
    return (config.n_candidates - first) * config.shifting.n_images


def n_while_searching(config: SearchConfig) -> int:
    """Networks that one search measures on each of its devices before its final front, at most."""
    budget = config.measure_budget or config.n_candidates
    chosen = {"front": 0, "refine": config.refine_budget, "all": min(budget, config.n_candidates)}
    n_generations = -(-config.n_candidates // config.population)
    times = 0 if config.remeasure_every is None else n_generations // config.remeasure_every
    return chosen[config.measure] + times * N_BEST
