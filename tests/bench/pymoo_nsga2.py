"""pymoo's NSGA-II on a table, as a rival: as its guide sets it up for integers, and for choices.

Only for tests and benchmarks; pymoo is no dependency of hilnas.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.crossover.ux import UniformCrossover
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from pymoo.optimize import minimize

from pipeline.search.operators import sizes_of
from tests.bench.table_worlds import World

POPULATION = 50


class Table(Problem):  # type: ignore[misc]
    """Error and cost of genomes; ``evaluated`` are their places in the order asked."""

    def __init__(self, world: World) -> None:
        sizes = sizes_of(world.space.decisions)
        super().__init__(n_var=len(sizes), n_obj=2, xl=0, xu=sizes - 1, vtype=int)
        self.world, self.evaluated = world, []
        self.place = {tuple(g): i for i, g in enumerate(world.genes.tolist())}

    def _evaluate(self, x: NDArray[Any], out: dict[str, Any], *_: Any, **__: Any) -> None:
        at = [self.place[tuple(g)] for g in x.astype(int).tolist()]
        self.evaluated += at
        out["F"] = self.world.rows(at)


class Redraw(Mutation):  # type: ignore[misc]
    """Draw each gene anew with max(0.1, 1 / genes), as hilnas does."""

    def _do(self, problem: Problem, x: NDArray[Any], **options: Any) -> NDArray[Any]:
        rng = options["random_state"]
        fresh = rng.integers(0, problem.xu.astype(int) + 1, size=x.shape)
        return np.where(rng.random(x.shape) < max(0.1, 1 / x.shape[1]), fresh, x)


def _for_integers() -> dict[str, Any]:
    """Simulated binary crossover and polynomial mutation, rounded: pymoo's own advice."""
    rounded = {"prob": 1.0, "eta": 3.0, "vtype": float, "repair": RoundingRepair()}
    return {"crossover": SBX(**rounded), "mutation": PM(**rounded)}


def _for_choices() -> dict[str, Any]:
    """Uniform crossover and redrawn genes: the operators that hilnas uses."""
    return {"crossover": UniformCrossover(prob=1.0), "mutation": Redraw()}


def places(operators: Callable[[], dict[str, Any]], world: World, seed: int, n: int) -> list[int]:
    """Places of the first n subnets that pymoo evaluates, repeated ones included."""
    problem = Table(world)
    algorithm = NSGA2(
        pop_size=POPULATION,
        sampling=IntegerRandomSampling(),
        eliminate_duplicates=True,
        **operators(),
    )
    minimize(problem, algorithm, ("n_eval", n), seed=seed)
    return problem.evaluated[:n]


RIVALS: dict[str, Callable[[World, int, int], list[int]]] = {
    "pymoo NSGA-II, integers": partial(places, _for_integers),
    "pymoo NSGA-II, choices": partial(places, _for_choices),
}
