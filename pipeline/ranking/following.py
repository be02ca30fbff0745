"""Good and random architectures followed through a search that shifts its supernet.

Zhang et al., 2024, Figures 3 and 5: the error of five good and five random architectures over the
iterations of the search, and how well the order of ten good and twenty random ones is kept. Global
is the number of good ones among the ten best-scored of all, local is Kendall's tau over the good
ones between score and accuracy when trained alone.

The good ones are the best of the search itself, as in the paper; whether they are truly better
than the random ones is stated where the truth is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from latency_tables.arch import Arch
from latency_tables.ranking import in_top, kendall_tau

N_GOOD, N_RANDOM = 10, 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """Architectures whose scores are followed; truths by architecture, as far as known."""

    good: tuple[Arch, ...]
    random: tuple[Arch, ...]
    truth: Mapping[Arch, float]

    @property
    def archs(self) -> tuple[Arch, ...]:
        """All of them, the good ones first."""
        return (*self.good, *self.random)

    @property
    def truly_better(self) -> float | None:
        """Share of the pairs of a good and a random one in which the good one is truly better."""
        pairs = [
            self.truth[a] > self.truth[b]
            for a in self.good
            for b in self.random
            if a in self.truth and b in self.truth
        ]
        return float(np.mean(pairs)) if pairs else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Scores (0 ... 1) by the weights after a number of generations.

    ``local_tau`` is None where the truth of fewer than three good ones is known.
    """

    generations: int
    good: tuple[float, ...]
    random: tuple[float, ...]
    global_count: float
    local_tau: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def row_of(followed: Followed, generations: int, scores: Sequence[float]) -> Row:
    """Judge the scores of all followed architectures, in their order.

    >>> archs = [Arch({"a": i}) for i in range(3)]
    >>> followed = Followed(good=tuple(archs[:1]), random=tuple(archs[1:]), truth={})
    >>> row_of(followed, 0, [0.9, 0.3, 0.5]).global_count
    1.0
    """
    n_good = len(followed.good)
    good, random = tuple(scores[:n_good]), tuple(scores[n_good:])
    is_good = [i < n_good for i in range(len(scores))]
    known = [i for i, arch in enumerate(followed.good) if arch in followed.truth]
    local = None
    if len(known) >= 3:
        local = kendall_tau(
            [good[i] for i in known], [followed.truth[followed.good[i]] for i in known]
        )
    return Row(
        generations=generations,
        good=good,
        random=random,
        global_count=in_top(scores, is_good, n_good),
        local_tau=local,
    )
