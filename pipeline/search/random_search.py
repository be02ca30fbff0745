"""Random search under limits: the baseline that every method has to beat.

Candidates are drawn uniformly over genomes and kept where they keep the limits, as in the random
baseline of the SPOS paper. They are told in generations of ``population``, so that journalling
works as for every other method.
"""

from __future__ import annotations

from latency_tables.arch import Arch
from pipeline.search.searcher import ArchiveSearcher


class RandomSearch(ArchiveSearcher):
    """``config.evaluations`` different random candidates that keep the limits."""

    name = "random"

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
