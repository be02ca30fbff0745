"""The seam between the search loop and the methods that propose candidates.

A searcher is told whole generations, in the order it asked. ``ask`` changes nothing: asked again
it gives the same candidates, because its random numbers come from (seed, generation) and its
choices from what it was told. So its state is its archive, and resuming means telling it the
journalled generations again. Where latencies become known better on the way, it is told the whole
archive anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from latency_tables.arch import Arch
from latency_tables.errors import RunError, UsageError
from pipeline.randomness import numpy_generator
from pipeline.search.config import SearchConfig
from pipeline.search.evaluation import Evaluation
from pipeline.search.evaluator import SearchSpace
from pipeline.search.operators import (
    Genes,
    all_genes,
    archs_of,
    crossover,
    genes_of,
    mutate,
    pairs,
    random_genes,
    sizes_of,
)

Violations = Callable[[Sequence[Arch]], Sequence[float]]
"""By how much each architecture breaks the limits, 0 where it keeps them all; cheap, and the same
every time it is asked."""

Propose = Callable[[np.random.Generator, int], Sequence[Arch]]
"""n architectures that keep limits by construction, such as an exact sampler's; used where random
draws hardly ever do."""

ENUMERABLE = 20_000
"""Spaces of at most this many genomes are listed when draws run out, so nothing is overlooked."""

RARE_SHARE = 0.1
"""Where fewer random networks keep the limits, a sampler that knows its share is asked first."""

FIRST_TRIES = 20
"""The first generation may draw this many times more: all others live on what it finds."""

BREEDING_ROUNDS, BREEDING_POOL = 100, 50
"""Effort of breeding subnets towards limits that random draws hardly ever keep."""

STATE_SCHEMA = 1


class Searcher(Protocol):
    """Proposes candidates, learns from their evaluations."""

    @property
    def archive(self) -> tuple[Evaluation, ...]:
        """Everything told so far, in that order."""
        ...

    @property
    def generation(self) -> int:
        """Number of generations told so far."""
        ...

    @property
    def done(self) -> bool:
        """Whether the planned number of candidates was told."""
        ...

    def best(self, n: int) -> list[Evaluation]:
        """The n best so far in this method's own order, each canonical form once."""
        ...

    def ask(self) -> list[Arch]:
        """The next generation; empty when done or when nothing new keeps the limits."""
        ...

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Evaluations of the generation that was asked for, in the order asked."""
        ...

    def revise(self, archive: Sequence[Evaluation]) -> None:
        """The archive once more, in its order, with latencies that are known better now."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready state; :meth:`load_state_dict` goes on from it exactly."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state. Raises RunError unless it is one of this method."""
        ...


class ArchiveSearcher:
    """What the searchers here share: the archive, what was seen, and filling up at random.

    Args:
        config: population, generations and so on.
        space: decisions and canonical form; two architectures of one canonical form are the same
            candidate.
        violations: the limits; asked before a candidate is proposed.
        seed: root of all random numbers.
        propose: where given, used when random draws run out.
        initial: where given, what evolves starts with those of them that keep the limits, in order.
        repeat: whether a candidate may be proposed again in a later generation, as where weights
            change while searching; never twice in one. Its newest evaluation is the one that
            counts.
    """

    name = ""

    def __init__(
        self,
        config: SearchConfig,
        *,
        space: SearchSpace,
        violations: Violations,
        seed: int,
        propose: Propose | None = None,
        initial: Sequence[Arch] = (),
        repeat: bool = False,
    ) -> None:
        self.config, self.space, self.violations = config, space, violations
        self.seed, self.propose, self.initial = seed, propose, tuple(initial)
        self.repeat = repeat
        self.sizes = sizes_of(space.decisions)
        self._archive: list[Evaluation] = []
        self._newest: dict[Arch, int] = {}  # canonical form → place in the archive
        self._generation = 0

    @property
    def archive(self) -> tuple[Evaluation, ...]:
        """Everything told so far, in that order."""
        return tuple(self._archive)

    @property
    def generation(self) -> int:
        """Number of generations told so far."""
        return self._generation

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Add one generation to the archive."""
        self._extend(evaluations)
        self._generation += 1

    def revise(self, archive: Sequence[Evaluation]) -> None:
        """Take over better latencies. Raises UsageError unless it holds the same candidates."""
        if [e.arch for e in archive] != [e.arch for e in self._archive]:
            raise UsageError("a revised archive must hold the candidates that were told, in order")
        self._archive = list(archive)

    def best(self, n: int) -> list[Evaluation]:
        """The n best so far (:attr:`Evaluation.standing`), then first come."""
        return sorted(self._current(), key=lambda e: e.standing)[:n]

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready state."""
        return {
            "schema": STATE_SCHEMA,
            "method": self.name,
            "seed": self.seed,
            "generation": self._generation,
            "archive": [e.to_dict() for e in self._archive],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state. Raises RunError unless it is one of this method and seed."""
        mine = {"schema": STATE_SCHEMA, "method": self.name, "seed": self.seed}
        differing = [k for k, v in mine.items() if state.get(k) != v]
        if differing:
            raise RunError(
                f"a state of another search: {differing[0]} is {state.get(differing[0])!r}, "
                f"not {mine[differing[0]]!r}"
            )
        self._archive, self._newest = [], {}
        self._extend([Evaluation.from_dict(e) for e in state["archive"]])
        self._generation = int(state["generation"])

    def _extend(self, evaluations: Sequence[Evaluation]) -> None:
        for place, evaluation in enumerate(evaluations, start=len(self._archive)):
            self._newest[self.space.canonical(evaluation.arch)] = place
        self._archive.extend(evaluations)

    def _current(self) -> list[Evaluation]:
        """The newest evaluation of every canonical form, oldest first."""
        if len(self._newest) == len(self._archive):
            return self._archive
        return [self._archive[place] for place in sorted(self._newest.values())]

    # -- proposing --------------------------------------------------------------------------------

    def _rng(self, *names: str) -> np.random.Generator:
        """Random numbers of one purpose in this generation."""
        return numpy_generator(self.seed, "search", self.name, self._generation, *names)

    def _admit(self, archs: Sequence[Arch], taken: dict[Arch, Arch], n: int) -> None:
        """Add to ``taken`` (canonical form → architecture) what is new and feasible, up to n."""
        fresh: dict[Arch, Arch] = {}
        for arch in archs:
            key = self.space.canonical(arch)
            if key not in taken and (self.repeat or key not in self._newest):
                fresh.setdefault(key, arch)
        violations = self.violations(list(fresh.values()))
        for (key, arch), violation in zip(fresh.items(), violations, strict=True):
            if violation <= 0 and len(taken) < n:
                taken[key] = arch

    def _draw(self, draw: Callable[[int], Genes], taken: dict[Arch, Arch], wanted: int) -> None:
        """Add ``wanted`` candidates from ``draw`` (n → genes), at most max_tries draws for each.

        Of more than a generation, which are only there to choose among, each is drawn once.
        """
        needed = min(wanted, self.config.population)
        goal, tries = len(taken) + wanted, self.config.max_tries * needed + wanted - needed
        if not self._archive:
            tries *= FIRST_TRIES
        while len(taken) < goal and tries > 0:
            n = min(tries, max(goal - len(taken), 8))
            tries -= n
            self._admit(archs_of(self.space.decisions, draw(n)), taken, goal)

    def _fill(self, taken: dict[Arch, Arch], n: int) -> None:
        """Fill ``taken`` up to n: at random, else by the sampler, else by looking harder.

        The sampler is asked at once where few random draws would do. That changes the effort, not
        the outcome: what is left of uniform draws is uniform, too.
        """
        rare = getattr(self.propose, "share", 1.0) < RARE_SHARE
        if rare:
            self._ask_sampler(taken, n)
        rng = self._rng("random")
        self._draw(lambda k: random_genes(rng, self.sizes, k), taken, n - len(taken))
        if not rare:
            self._ask_sampler(taken, n)
        if len(taken) >= n:
            return
        if math.prod(self.sizes.tolist()) <= ENUMERABLE:
            everything = all_genes(self.sizes)
            order = self._rng("enumerate").permutation(len(everything))
            self._admit(archs_of(self.space.decisions, everything[order]), taken, n)
        else:
            self._breed(taken, n)

    def _ask_sampler(self, taken: dict[Arch, Arch], n: int) -> None:
        """Fill ``taken`` up to n with what keeps a limit by construction, if anything does."""
        rng = self._rng("propose")
        tries = 0 if self.propose is None else self.config.max_tries
        while self.propose is not None and len(taken) < n and tries > 0:
            tries -= 1
            self._admit(self.propose(rng, n - len(taken)), taken, n)

    def _breed(self, taken: dict[Arch, Arch], n: int) -> None:
        """Evolve genomes towards a violation of zero; accuracy plays no part.

        Starts from what keeps the limits already, where there is such a thing.
        """
        rng = self._rng("breed")
        pool = random_genes(rng, self.sizes, BREEDING_POOL)
        if self._archive:
            chosen = rng.integers(0, len(self._archive), size=BREEDING_POOL).tolist()
            pool = genes_of(self.space.decisions, [self._archive[i].arch for i in chosen])
        for _ in range(BREEDING_ROUNDS):
            archs = archs_of(self.space.decisions, pool)
            self._admit(archs, taken, n)
            if len(taken) >= n:
                return
            ties = rng.random(len(archs))
            order = np.lexsort((ties, np.asarray(self.violations(archs))))
            parents = pool[order[: BREEDING_POOL // 2]]
            first, second = pairs(rng, len(parents), BREEDING_POOL - len(parents))
            children = crossover(rng, parents[first], parents[second])
            rate = max(0.1, 1.0 / len(self.sizes))
            pool = np.concatenate([parents, mutate(rng, children, self.sizes, rate)])
