"""Whether the order of the best candidates would survive other images.

The images that candidates were scored on are cut into two disjoint halves, balanced by class. Each
half ranks the best candidates; Kendall's tau-b between the two rankings says how much of the order
is the networks' and how much is the images'. Below ``THRESHOLD`` the winner is not significant: on
other images another one might win. Being the best on both halves together makes the halves of the
best differ more than those of all networks, so the tau is a cautious one.

Ties are the candidates that these images cannot tell from the winner: 0 lies within the interval
of the difference of two accuracies on the same images. That difference depends on the images which
exactly one of the two gets right, as in McNemar's test; the interval is the adjusted Wald interval
of Bonett and Price (2012). The winner was chosen for doing well on these very images, so there may
be more ties than are found, never fewer.

Torch-free.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latency_tables.ranking import Interval, bootstrap, tau_b_of_rows
from pipeline.randomness import numpy_generator

THRESHOLD = 0.3
N_BEST = 50
MIN_NETWORKS = 3
"""Of fewer networks two halves say nothing about an order."""
_Z95 = 1.959963984540054

Right = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Accuracy of the winner minus that of network ``index`` on the same images; 95 % interval."""

    index: int
    value: float
    low: float
    high: float

    @property
    def tied(self) -> bool:
        """Whether these images leave open which one is better."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Stability:
    """Agreement of two halves of the images about ``n_networks``.

    ``tau`` is None for fewer than three networks. ``halves`` are the merits of every network on
    each half: accuracies (0 ... 1), or what ranks them instead; ``ties`` are sorted,
    the closest to the winner first.
    """

    n_networks: int
    n_images: int
    tau: Interval | None
    winner: int
    halves: tuple[tuple[float, float], ...]
    ties: tuple[Difference, ...]

    @property
    def significant(self) -> bool | None:
        """Whether the halves agree enough; None where there are too few networks to say."""
        return None if self.tau is None else self.tau.value >= THRESHOLD

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data without the halves' merits."""
        plain = {k: v for k, v in asdict(self).items() if k != "halves"}
        return {**plain, "threshold": THRESHOLD, "significant": self.significant}


def rank_stability(
    right: Right,
    labels: NDArray[np.integer[Any]],
    winner: int,
    *,
    merits: NDArray[np.float64] | None = None,
    seed: int = 0,
) -> Stability:
    """Judge an order from single answers.

    Args:
        right: (M, N), whether network m gets image n right.
        labels: (N,) classes of the images.
        winner: which of the M networks was chosen.
        merits: (M, N), whose means order the networks, the larger the better; ``right`` where not
            given. Ties are of accuracies in any case.
        seed: of the bootstrap.

    >>> rng = np.random.default_rng(0)
    >>> good = rng.random((5, 4000)) < np.array([[0.9], [0.8], [0.7], [0.6], [0.5]])
    >>> found = rank_stability(good, np.arange(4000) % 10, winner=0)
    >>> round(found.tau.value, 6), found.significant, found.ties
    (1.0, True, ())
    """
    first = half_of(labels)
    by_image = right if merits is None else merits
    halves = np.stack((by_image[:, first].mean(axis=1), by_image[:, ~first].mean(axis=1)))  # (2, M)
    tau = None
    if len(right) >= MIN_NETWORKS:
        rng = numpy_generator(seed, "search", "stability")
        tau = bootstrap(tau_b_of_rows, halves[0], halves[1], rng=rng)
    others = [difference(right, winner, i) for i in range(len(right)) if i != winner]
    return Stability(
        n_networks=len(right),
        n_images=right.shape[1],
        tau=tau,
        winner=winner,
        halves=tuple((float(a), float(b)) for a, b in halves.T),
        ties=tuple(sorted((d for d in others if d.tied), key=lambda d: (d.value, d.index))),
    )


def half_of(labels: NDArray[np.integer[Any]]) -> Right:
    """Mask (N,) of every second image of each class: half of all, and of each class up to one.

    >>> half_of(np.array([0, 0, 0, 1, 1, 1])).tolist()
    [True, False, True, False, True, False]
    """
    order = np.argsort(labels, kind="stable")
    mask = np.zeros(len(labels), dtype=bool)
    mask[order[::2]] = True
    return mask


def difference(right: Right, winner: int, other: int) -> Difference:
    """The paired difference of two of the networks (M, N), with its 95 % interval."""
    n = right.shape[1]
    gained = int((right[winner] & ~right[other]).sum())
    lost = int((right[other] & ~right[winner]).sum())
    p, q = (gained + 1) / (n + 2), (lost + 1) / (n + 2)  # one image is added to either side
    spread = _Z95 * float(np.sqrt((p + q - (p - q) ** 2) / (n + 2)))
    return Difference(
        index=other, value=(gained - lost) / n, low=p - q - spread, high=p - q + spread
    )


def sentence(found: dict[str, Any]) -> str:
    """What :meth:`Stability.to_dict` gave, in one line for people."""
    n, tau = found["n_networks"], found["tau"]
    if tau is None:
        return f"rank stability: {n} networks are too few to tell"
    agreement = (
        f"rank stability: tau {tau['value']:.2f} ({tau['low']:.2f} … {tau['high']:.2f}) between "
        f"two halves of {found['n_images']:,} images, {n} best networks"
    )
    tied = f"{len(found['ties'])} of the others are as good on these images"
    if found["significant"]:
        return f"{agreement}; {tied}"
    return f"{agreement}: the winner is not significant, {tied}"
