"""Which candidates to measure next: those whose measurement would decide something.

A measurement decides something where a prediction leaves open whether a candidate keeps a limit,
or whether it belongs to the Pareto front. With p the chance that candidate i keeps the limit on a
device, taken from its interval as that of a normal distribution, the worth of measuring it there is

    limit:  4 p (1 − p) × (chance that it keeps all other limits)
                        × (chance that everything more accurate breaks a limit)
    front:  4 q (1 − q) × (chance that it keeps all limits) / (1 + its place on the possible front)

with q the chance that nothing at least as accurate is at least as fast on every device. 4 p (1 − p)
is 1 where both sides are equally likely and 0 where the answer is known. The second line makes the
ranking one by accuracy among those that may win. Predictions of one model err together, so the
chance that *all* of several candidates fail is taken as that of the least likely to fail (the bound
for perfectly dependent errors), not as a product.

Predictions outside of the model's support come before all others: their intervals promise least.
What was measured is settled, whatever the interval of the measurement.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latency_tables.arch import Arch
from latency_tables.estimate import Estimate
from pipeline.search.evaluation import Evaluation, comparable
from pipeline.search.limits import Limit, latency_limits

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

MIN_WORTH = 0.01
"""What a measurement must be worth: below, the answer is as good as known, or changes nothing."""

_NORMAL = NormalDist()
_TINY = 1e-12  # ms; keeps a division by the width of a point finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A candidate worth measuring on one device, and what is predicted of it there.

    ``limit_worth`` and ``front_worth`` are in [0, 1], as the module says.
    """

    arch: Arch
    predicted: Estimate
    limit_worth: float
    front_worth: float

    @property
    def worth(self) -> float:
        """How much a measurement would decide."""
        return self.limit_worth + self.front_worth


def worth_measuring(
    evaluations: Sequence[Evaluation],
    limits: Sequence[Limit],
    device: str,
    *,
    n: int,
    exclude: Collection[Arch] = (),
) -> list[Wanted]:
    """The candidates whose measurement on ``device`` decides most, at most ``n``, in that order.

    Only candidates with a predicted latency are named whose 90 % interval straddles the limit of
    the device or leaves open whether they are on the front; ``exclude`` holds those not to be
    asked about again. Of equal worth, the candidate that came first comes first.

    >>> from pipeline.search.evaluation import Candidate, Score
    >>> def evaluation(name, accuracy, low, high):
    ...     latency = Estimate(
    ...         latency_ms=(low + high) / 2, low_ms=low, high_ms=high,
    ...         key="model", source="predicted", n=20,
    ...     )
    ...     candidate = Candidate(arch=Arch({"net": name}), costs={}, latency={"board": latency})
    ...     return Evaluation(candidate=candidate, score=Score(accuracy=accuracy))
    >>> found = [evaluation("safe", 0.8, 3.0, 4.0), evaluation("open", 0.9, 4.5, 5.5)]
    >>> limit = Limit(metric="latency_ms", bound=5.0, device="board")
    >>> [wanted.arch["net"] for wanted in worth_measuring(found, [limit], "board", n=5)]
    ['open']
    """
    excluded = set(exclude)
    devices = sorted({d for e in evaluations for d in e.latency})
    possible = [e for e in comparable(evaluations) if _possible(e, limits, devices)]
    if n <= 0 or device not in devices or not possible:
        return []
    merit = np.array([e.merit for e in possible])
    times = _Times.of(possible, devices)
    bounds = {x.device: x.bound for x in latency_limits(limits)}
    keeps = np.stack(  # (N, D)
        [times.keeps(i, bounds.get(name, np.inf)) for i, name in enumerate(devices)], axis=1
    )
    at = devices.index(device)
    others = np.delete(keeps, at, axis=1).prod(axis=1)
    limit_worth = _spread(keeps[:, at]) * others * _all_better_fail(merit, keeps.prod(axis=1))
    front_worth = _front_worth(merit, times) * keeps.prod(axis=1)
    wanted = [
        Wanted(
            arch=e.arch,
            predicted=e.latency[device],
            limit_worth=float(limit_worth[i]),
            front_worth=float(front_worth[i]),
        )
        for i, e in enumerate(possible)
        if e.latency[device].source == "predicted" and e.arch not in excluded
    ]
    # sorting is stable, so of equal worth what came first stays first
    ranked = sorted(
        (w for w in wanted if w.worth >= MIN_WORTH),
        key=lambda w: (w.predicted.in_support, -w.worth),
    )
    unique: dict[Arch, Wanted] = {}
    for w in ranked:
        unique.setdefault(w.arch, w)
    return list(unique.values())[:n]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Times:
    """Latencies (N, D) in ms; ``low`` = ``high`` = ``centre`` where they were measured."""

    centre: Array
    low: Array
    high: Array
    sigma: Array

    @classmethod
    def of(cls, evaluations: Sequence[Evaluation], devices: Sequence[str]) -> _Times:
        rows = [[_interval(e.latency[d]) for d in devices] for e in evaluations]
        centre, low, high, sigma = np.moveaxis(np.array(rows), -1, 0)
        return cls(centre=centre, low=low, high=high, sigma=sigma)

    def keeps(self, at: int, bound: float) -> Array:
        """Chance (N,) that the latency is at most ``bound``; 0 or 1 where the interval is clear."""
        distance = (bound - self.centre[:, at]) / (self.sigma[:, at] + _TINY)
        chance = np.where(self.straddles(at, bound), _cdf(distance), self.centre[:, at] <= bound)
        return chance.astype(np.float64)

    def straddles(self, at: int, bound: float) -> Flags:
        """Where (N,) the interval leaves open whether ``bound`` is kept."""
        found: Flags = (self.low[:, at] <= bound) & (self.high[:, at] > bound)
        return found


def _interval(estimate: Estimate) -> tuple[float, float, float, float]:
    centre = estimate.latency_ms
    if estimate.source != "predicted":
        return centre, centre, centre, 0.0
    width = estimate.high_ms - estimate.low_ms
    sigma = width / 2 / _NORMAL.inv_cdf(0.5 + estimate.level / 2)
    return centre, estimate.low_ms, estimate.high_ms, sigma


def _possible(e: Evaluation, limits: Sequence[Limit], devices: Sequence[str]) -> bool:
    """Whether a candidate may still keep every limit, latencies being open within intervals."""
    if e.candidate.faults or any(d not in e.latency for d in devices):
        return False
    for limit in limits:
        if limit.metric != "latency_ms":
            if limit.excess(e.costs[limit.metric]) > 0:
                return False
        elif limit.device in e.latency:
            estimate = e.latency[limit.device]
            known = estimate.source != "predicted"
            if (estimate.latency_ms if known else estimate.low_ms) > limit.bound:
                return False
    return True


def _spread(p: Array) -> Array:
    """1 where both answers are equally likely, 0 where one is certain."""
    return np.asarray(4.0 * p * (1.0 - p))


def _all_better_fail(merit: Array, keeps: Array) -> Array:
    """Chance (N,) that every more accurate candidate breaks a limit, errors being common to all."""
    levels, index = np.unique(-merit, return_inverse=True)
    fails = np.ones(len(levels))
    np.minimum.at(fails, index, 1.0 - keeps)
    better = np.concatenate([[1.0], np.minimum.accumulate(fails)[:-1]])
    return np.asarray(better[index], dtype=np.float64)


def _front_worth(merit: Array, times: _Times) -> Array:
    """Worth (N,) of knowing who is on the front, where the intervals leave that open."""
    worth = np.zeros(len(merit))
    place = 0
    for i in np.argsort(-merit, kind="stable"):
        rivals = merit >= merit[i]
        rivals[i] = False
        if _beaten(i, rivals, merit, times):
            continue
        rivals &= (times.low < times.high[i]).all(axis=1)  # may be faster on every device
        if rivals.any():
            spread = np.hypot(times.sigma[rivals], times.sigma[i]) + _TINY
            faster = _cdf((times.centre[i] - times.centre[rivals]) / spread).prod(axis=1)
            worth[i] = float(_spread(faster.max())) / (1 + place)
        place += 1
    return worth


def _beaten(i: int, rivals: Flags, merit: Array, times: _Times) -> bool:
    """Whether one of ``rivals`` is at least as good as i in any case; of equal ones, the first."""
    good = rivals & (times.high <= times.low[i]).all(axis=1)
    better = (merit > merit[i]) | (times.high < times.low[i]).any(axis=1)
    better[:i] = True
    return bool((good & better).any())


def _cdf(x: Any) -> Array:
    """The normal distribution function, by element."""
    values = np.asarray(x, dtype=np.float64)
    return np.array([_NORMAL.cdf(v) for v in values.ravel().tolist()]).reshape(values.shape)
