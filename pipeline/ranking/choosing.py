"""Which networks of a source of truth are compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from latency_tables.arch import Arch
from latency_tables.errors import DataError
from pipeline.randomness import numpy_generator
from pipeline.ranking.report import MIN_NETWORKS
from pipeline.ranking.truth import Known, Truth

GraphKey = Callable[[Arch], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What is compared: networks with their truth, and what was left out.

    ``n_isomorphic`` genomes are another one's network, ``n_unknown`` listed ones have no truth.
    """

    known: tuple[Known, ...]
    n_candidates: int
    n_isomorphic: int = 0
    n_unknown: int = 0


def choose(
    truth: Truth, graph_key: GraphKey, *, n: int | None, seed: int, isomorphic: bool = False
) -> Chosen:
    """Draw ``n`` distinct networks, or take all.

    Of isomorphic genomes one is drawn: they are one network with one truth, while the weights that
    each inherits differ, so none of them is the network's own. With ``isomorphic`` all count.

    Raises:
        DataError: fewer networks than an order needs.
    """
    rng = numpy_generator(seed, "rank", "sample")
    drawn = [truth.known[i] for i in rng.permutation(len(truth.known))]
    distinct = drawn
    if not isomorphic:
        first: dict[str, Known] = {}
        for known in drawn:
            first.setdefault(graph_key(known.arch), known)
        distinct = list(first.values())
    _require(len(distinct), f"{truth.source} holds {len(distinct)} networks of this space")
    return Chosen(
        known=tuple(distinct[:n]),
        n_candidates=len(distinct),
        n_isomorphic=len(drawn) - len(distinct),
    )


def look_up(truth: Truth, graph_key: GraphKey, archs: Sequence[Arch]) -> Chosen:
    """The listed architectures with their truth; isomorphic networks share it.

    Raises:
        DataError: too few of them have a truth.
    """
    exact = {known.arch: known.truth for known in truth.known}
    shared = truth_by_graph(truth, graph_key)
    found = []
    for arch in dict.fromkeys(archs):
        value = exact.get(arch, shared.get(graph_key(arch)))
        if value is not None:
            found.append(Known(arch=arch, truth=value))
    n_listed = len(dict.fromkeys(archs))
    _require(
        len(found), f"{truth.source} knows {len(found)} of the {n_listed} architectures listed"
    )
    return Chosen(known=tuple(found), n_candidates=n_listed, n_unknown=n_listed - len(found))


def truth_by_graph(truth: Truth, graph_key: GraphKey) -> dict[str, float]:
    """The truth of each network; the mean of its genomes', where these were trained apart."""
    values: dict[str, list[float]] = {}
    for known in truth.known:
        values.setdefault(graph_key(known.arch), []).append(known.truth)
    return {key: math.fsum(found) / len(found) for key, found in values.items()}


def _require(n: int, what: str) -> None:
    if n < MIN_NETWORKS:
        raise DataError(f"{what}; an order needs at least {MIN_NETWORKS}")
