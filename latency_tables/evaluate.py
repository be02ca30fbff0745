"""How well the latency model predicts networks of a table that it was not fitted on.

K-fold cross-validation over networks: all records of a network (isomorphic ones share a net_id,
copies share their statistics) are left out together, the model is chosen and fitted on the others,
hyper-parameters included, and its predictions are compared with what was measured. The same is done
without the session that fits worst, which tells a bad session from a bad model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latency_tables.arch import Arch
from latency_tables.cost_table import CostTable
from latency_tables.errors import MissingLatencyError, UsageError
from latency_tables.estimate import Estimate
from latency_tables.pooling import by_key, pool
from latency_tables.predictor import LatencyModel
from latency_tables.ranking import kendall_tau
from latency_tables.records import Measurement

Array = NDArray[np.float64]
Progress = Callable[[int, int], None]

MIN_FOLDS = 2
MIN_IN_TERCILE = 3
TERCILES = ("cheapest third", "middle third", "dearest third")
_SEED = 20_261_122


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Errors on networks left out: shares of 1, but for the tau.

    ``coverage`` is the share of networks whose latency lies in the 90 % interval predicted for it,
    ``width`` is the median half-width of these intervals, as a share of the prediction.
    """

    n: int
    kendall_tau: float
    mape: float
    within_5: float
    within_10: float
    coverage: float
    width: float

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Errors of all networks, of each third by cost, and without the worst session.

    ``worst_session`` is None where there is only one; ``diagnostics`` is what the model says of
    itself when fitted on everything.
    """

    n_folds: int
    level: float
    all: Errors
    terciles: dict[str, Errors]
    worst_session: str | None
    without_worst: Errors | None
    diagnostics: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "n_folds": self.n_folds,
            "level": self.level,
            "all": self.all.to_dict(),
            "terciles": {name: errors.to_dict() for name, errors in self.terciles.items()},
            "worst_session": self.worst_session,
            "without_worst": None if self.without_worst is None else self.without_worst.to_dict(),
            "diagnostics": self.diagnostics,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Network:
    arch: Arch
    measured: Estimate
    records: tuple[Measurement, ...]


def evaluate(
    cost_table: CostTable,
    measurements: Sequence[Measurement],
    *,
    folds: int = 5,
    level: float = 0.9,
    progress: Progress | None = None,
) -> Evaluation:
    """Cross-validate the latency model on the usable records of one table.

    ``progress`` is told of each finished fit. Raises UsageError for fewer than 2 folds, TableError
    where there are too few networks for a model.
    """
    if folds < MIN_FOLDS:
        raise UsageError(f"{folds} folds are too few; at least {MIN_FOLDS} are needed")
    networks = _networks(measurements)
    if not networks:
        raise MissingLatencyError(
            "no network with a known architecture has a latency", hint="hilnas tables build FILE"
        )
    sessions = {m.run_id for network in networks for m in network.records}
    total = folds + 1 + (folds if len(sessions) > 1 else 0)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    predictions = _cross_validate(cost_table, networks, folds, level, step)
    worst = _worst_session(networks, predictions) if len(sessions) > 1 else None
    without = None
    if worst is not None:
        rest = _networks([m for m in measurements if m.run_id != worst])
        without = _errors(rest, _cross_validate(cost_table, rest, folds, level, step))
    model = _fit(cost_table, networks)
    step()
    return Evaluation(
        n_folds=folds,
        level=level,
        all=_errors(networks, predictions),
        terciles=_by_tercile(networks, predictions),
        worst_session=worst,
        without_worst=without,
        diagnostics=model.diagnostics.to_dict(),
    )


def _networks(measurements: Sequence[Measurement]) -> list[_Network]:
    return [
        _Network(arch=records[-1].arch, measured=pool(records), records=tuple(records))
        for records in by_key(measurements).values()
        if records[-1].arch is not None
    ]


def _fit(cost_table: CostTable, networks: Sequence[_Network]) -> LatencyModel:
    return LatencyModel.fit_measurements(cost_table, [m for n in networks for m in n.records])


def _cross_validate(
    cost_table: CostTable,
    networks: Sequence[_Network],
    folds: int,
    level: float,
    step: Callable[[], None],
) -> list[Estimate]:
    """A prediction of every network by a model that did not see it."""
    groups: dict[object, int] = {}
    for network in networks:  # copies of one measurement stay together
        groups.setdefault(_identity(network), len(groups))
    order = np.random.default_rng(_SEED).permutation(len(groups))
    fold_of = [int(order[groups[_identity(network)]]) % folds for network in networks]
    predictions: list[Estimate | None] = [None] * len(networks)
    for fold in range(folds):
        model = _fit(cost_table, [n for n, f in zip(networks, fold_of, strict=True) if f != fold])
        out = [i for i, f in enumerate(fold_of) if f == fold]
        found = model.predict([networks[i].arch for i in out], level=level)
        for i, estimate in zip(out, found, strict=True):
            predictions[i] = estimate
        step()
    return [p for p in predictions if p is not None]


def _identity(network: _Network) -> object:
    stats = network.records[0].statistics
    if stats is None:
        return network.records[0].net_id
    return stats.median_ns, stats.mean_ns, stats.min_ns, stats.std_ns


def _errors(networks: Sequence[_Network], predictions: Sequence[Estimate]) -> Errors:
    measured = np.array([n.measured.latency_ms for n in networks])
    predicted, low, high = (
        np.array([getattr(p, name) for p in predictions])
        for name in ("latency_ms", "low_ms", "high_ms")
    )
    errors = np.abs(predicted / measured - 1.0)
    return Errors(
        n=len(networks),
        kendall_tau=kendall_tau(predicted, measured),
        mape=float(errors.mean()),
        within_5=float((errors <= 0.05).mean()),
        within_10=float((errors <= 0.10).mean()),
        coverage=float(((low <= measured) & (measured <= high)).mean()),
        width=float(np.median((high - low) / 2 / predicted)),
    )


def _by_tercile(networks: Sequence[_Network], predictions: Sequence[Estimate]) -> dict[str, Errors]:
    """Errors by thirds of the measured latency; none where a third holds too few."""
    order = np.argsort([n.measured.latency_ms for n in networks], kind="stable")
    thirds = np.array_split(order, len(TERCILES))
    return {
        name: _errors([networks[i] for i in third], [predictions[i] for i in third])
        for name, third in zip(TERCILES, thirds, strict=True)
        if len(third) >= MIN_IN_TERCILE
    }


def _worst_session(networks: Sequence[_Network], predictions: Sequence[Estimate]) -> str:
    """The session whose records are farthest from the predictions, in the median."""
    gaps: dict[str, list[float]] = defaultdict(list)
    for network, predicted in zip(networks, predictions, strict=True):
        for m in network.records:
            gaps[m.run_id].append(abs(m.latency_ms / predicted.latency_ms - 1.0))
    return max(sorted(gaps), key=lambda run: float(np.median(gaps[run])))
