"""Random search under limits: the baseline that every method has to beat.

Candidates are drawn uniformly over genomes and kept where they keep the limits, as in the random
baseline of the SPOS paper. They are told in generations of ``population``, so that journalling
works as for every other method.
"""

from __future__ import annotations

from latency_tables.arch import Arch
from pipeline.search.config import SearchConfig
from pipeline.search.evaluator import SearchSpace
from pipeline.search.searcher import ArchiveSearcher, Propose, Violations


class RandomSearch(ArchiveSearcher):
    """``config.evaluations`` different random candidates that keep the limits."""

    name = "random"

    def __init__(
        self,
        config: SearchConfig,
        *,
        space: SearchSpace,
        violations: Violations,
        seed: int,
        propose: Propose | None = None,
    ) -> None:
        super().__init__(
            space=space,
            violations=violations,
            seed=seed,
            max_tries=config.max_tries,
            propose=propose,
        )
        self.config = config

    @property
    def done(self) -> bool:
        """Whether every candidate was told."""
        return len(self._archive) >= self.config.evaluations

    def ask(self) -> list[Arch]:
        """The next random candidates."""
        taken: dict[Arch, Arch] = {}
        left = self.config.evaluations - len(self._archive)
        if left > 0:
            self._fill(taken, min(self.config.population, left))
        return list(taken.values())
