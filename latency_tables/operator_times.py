"""How long operators take inside a running network, from a few profiles: a prior for the model.

A handful of profiled networks gives hundreds of observations of operators, as they ran, fused as
the runtime fuses them. The model of one operator has three layers, each shrunk towards the one
before it:

1. all operators: t = β · (1, MACs, elements read, elements written, bytes of weights), β ≥ 0;
2. operators of one kind (depthwise convolution, Concat, …): the same with coefficients of its own,
   the ridge strength λ on their distance from the first chosen by leaving configurations out;
3. one configuration (operators and shapes): a factor from its own observations, weighted by how
   far configurations scatter beyond the noise of a single one (empirical Bayes).

Errors count relative to the time that was observed; Huber weights keep a slow outlier from
deciding. The coefficients are not negative, so more work never takes less time.

Profiling itself takes time per line. Where the latency of a profiled network is known without it,
what the lines have in excess is taken off each line (never more than the cheapest lines take).

The result is a column of a cost table, ``profiled_ms``. It is no latency: time that no line
explains is missing, and caches and threads treat a whole network differently. By itself
(:func:`profiled_prior`) it is a prior that a latency model calibrates on whole networks, and that
it may leave out; as one cost among many it is worth less.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latency_tables.cost_table import Column, CostTable, Factor
from latency_tables.errors import CorruptTableError, SpaceError, TableError
from latency_tables.graph import Graph, Section
from latency_tables.operator_groups import (
    Fusion,
    Group,
    Matched,
    OperatorCosts,
    ProfileLine,
    expected,
    match,
)

Array = NDArray[np.float64]

PROFILED_COLUMN = "profiled_ms"
NS_PER_MS = 1e6

STRENGTHS = (0.1, 1.0, 10.0, 100.0)
"""Ridge strengths tried, in observations."""
HUBER = 1.5
"""Relative residuals beyond this many robust standard deviations lose weight."""
LEAST_SHARE = 0.02
"""What is left of a line's time at least when the time of profiling is taken off."""

_REWEIGHTINGS = 2
_FOLDS = 3
_CHEAPEST = 0.05  # quantile of the lines' times that the time of profiling may reach


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfiledNetwork:
    """A network, its profile, and its latency in ns without the profiler where that is known."""

    graph: Graph
    lines: tuple[ProfileLine, ...]
    latency_ns: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileReport:
    """What the profiles held.

    ``matched_share`` is the share of time that belongs to operators of the networks,
    ``unmatched`` names the other lines. ``probe_ns`` was taken off each line.
    ``held_out_error`` is the median relative error for configurations that were left out.
    """

    n_networks: int
    n_observations: int
    n_configurations: int
    matched_share: float
    unmatched: tuple[str, ...]
    probe_ns: float
    held_out_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTimes:
    """Times of operators on one device; made by :meth:`fit`.

    >>> from latency_tables.graph import Node, Value
    >>> def relu(width: int) -> Graph:
    ...     node = Node(op="Relu", name="relu", inputs=("input",), outputs=("y",))
    ...     values = [Value(name="y", shape=(1, width))]
    ...     value = Value(name="input", shape=(1, width))
    ...     return Graph.of(input=value, output="y", nodes=[node], values=values)
    >>> times = OperatorTimes.fit(
    ...     ProfiledNetwork(
    ...         graph=relu(n), lines=(ProfileLine(name="relu", op="Relu", ns=500.0 + n),)
    ...     )
    ...     for n in (1000, 2000, 3000, 4000, 5000)
    ... )
    >>> round(times.section_ns(relu(6000).sections[0]), -2)
    6500.0
    """

    coefficients: Mapping[str, Array]
    """Kind → ns per unit of each cost (5,); "" for kinds that were never seen."""
    factors: Mapping[tuple[object, ...], float]
    """Configuration → observed over modelled time, shrunk towards one."""
    fusion: Fusion
    report: ProfileReport

    @classmethod
    def fit(cls, networks: Iterable[ProfiledNetwork]) -> OperatorTimes:
        """Fit on profiled networks. Raises TableError where no line names an operator."""
        given, fusion = list(networks), Fusion()
        matched = [match(network.graph, network.lines, fusion) for network in given]
        groups = [group for one in matched for group in one.groups if group.ns > 0]
        if not groups:
            raise TableError(
                f"none of {sum(one.n_lines for one in matched)} lines of {len(given)} profiles "
                "names an operator of its network"
            )
        probe_ns = _probe_ns(given, matched)
        problem = _Problem.of(groups, probe_ns)
        strength, error = problem.choose()
        coefficients = problem.solve(strength)
        return cls(
            coefficients=coefficients,
            factors=_factors(problem, coefficients),
            fusion=fusion,
            report=ProfileReport(
                n_networks=len(given),
                n_observations=len(groups),
                n_configurations=len(set(problem.configs)),
                matched_share=1.0
                - sum(one.unmatched_ns for one in matched) / sum(one.total_ns for one in matched),
                unmatched=tuple(dict.fromkeys(name for one in matched for name in one.unmatched)),
                probe_ns=probe_ns,
                held_out_error=error,
            ),
        )

    def operator_ns(self, costs: OperatorCosts) -> float:
        """Time in ns of operators that run as one."""
        own = self.coefficients.get(costs.kind, self.coefficients[""])
        return float(_row(costs) @ own) * self.factors.get(costs.config, 1.0)

    def section_ns(self, section: Section) -> float:
        """Time in ns of a section, fused as the profiles show."""
        return sum(self.operator_ns(costs) for costs in expected(section, self.fusion))


def with_profiled_values(table: CostTable, values: Mapping[str, Any]) -> CostTable:
    """``table`` with the column ``profiled_ms``; ``values``: factor → array (*choices), in ms.

    Raises CorruptTableError where a factor is missing or has another shape.
    """
    try:
        arrays = [np.asarray(values[factor.name], dtype=np.float64) for factor in table.factors]
        return table.with_column(PROFILED_COLUMN, "ms", arrays)
    except (KeyError, TypeError, ValueError, SpaceError) as error:
        raise CorruptTableError(f"times of operators do not fit the space: {error!r}") from None


def profiled_prior(table: CostTable) -> CostTable:
    """The column ``profiled_ms`` by itself, as a prior that a latency model may or may not believe.

    Raises SpaceError for a table without it.
    """
    column = Column(name=PROFILED_COLUMN, unit="ms")
    scoped = table.scoped(PROFILED_COLUMN)
    factors = [
        Factor(name=factor.name, labels=labels, values=values[..., None])
        for factor, (labels, values) in zip(table.factors, scoped, strict=True)
    ]
    return CostTable(table.decisions, [column], factors)


# -- fitting -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    """Observations of operators: costs (N, 5), times (N,) without probing, and as observed."""

    rows: Array
    time_ns: Array
    weight: Array  # 1 / observed time: errors are relative, and rounding counts less when long
    kinds: list[str]
    configs: list[tuple[object, ...]]
    scale: Array = field(default_factory=lambda: np.ones(0))

    @classmethod
    def of(cls, groups: Sequence[Group], probe_ns: float) -> _Problem:
        rows = np.stack([_row(group.costs) for group in groups])
        observed = np.array([group.ns for group in groups])
        mean = rows.mean(axis=0)
        return cls(
            rows=rows,
            time_ns=np.maximum(observed - probe_ns, LEAST_SHARE * observed),
            weight=1.0 / observed,
            kinds=[group.costs.kind for group in groups],
            configs=[group.costs.config for group in groups],
            scale=np.where(mean > 0, 1.0 / np.where(mean > 0, mean, 1.0), 0.0),
        )

    def pooled(self, chosen: NDArray[np.bool_]) -> Array:
        """Scaled coefficients of all kinds together."""
        return self._robust(chosen, np.zeros(self.rows.shape[1]), 1e-3)

    def solve(
        self,
        strength: float,
        among: NDArray[np.bool_] | None = None,
        pooled: Array | None = None,
    ) -> dict[str, Array]:
        """Coefficients per kind from the observations in ``among``, and those of all as ""."""
        chosen = np.ones(len(self.kinds), dtype=np.bool_) if among is None else among
        if pooled is None:
            pooled = self.pooled(chosen)
        found = {"": pooled}
        for kind in dict.fromkeys(self.kinds):
            own = chosen & np.array([k == kind for k in self.kinds])
            if own.any():
                found[kind] = self._robust(own, pooled, strength)
        return {kind: solution * self.scale for kind, solution in found.items()}

    def choose(self) -> tuple[float, float]:
        """Ridge strength with the least error on configurations left out, and that error."""
        fold = self._folds()
        if fold.max() + 1 < _FOLDS:
            return 1.0, math.nan
        errors = []
        pooled = [self.pooled(fold != k) for k in range(_FOLDS)]
        for strength in STRENGTHS:
            predicted = np.empty(len(fold))
            for k in range(_FOLDS):
                found = self.solve(strength, fold != k, pooled[k])
                at = np.flatnonzero(fold == k)
                predicted[at] = [
                    self.rows[i] @ found.get(self.kinds[i], found[""]) for i in at.tolist()
                ]
            errors.append(float(np.median(np.abs(predicted - self.time_ns) * self.weight)))
        best = int(np.argmin(errors))
        return STRENGTHS[best], errors[best]

    def _folds(self) -> NDArray[np.int64]:
        """A fold per observation (N,): configurations stay whole, kinds are spread over all."""
        numbers: dict[tuple[object, ...], int] = {}
        met: Counter[str] = Counter()
        for kind, config in zip(self.kinds, self.configs, strict=True):
            if config not in numbers:
                numbers[config] = met[kind] % _FOLDS
                met[kind] += 1
        return np.array([numbers[config] for config in self.configs], dtype=np.int64)

    def _robust(self, chosen: NDArray[np.bool_], prior: Array, strength: float) -> Array:
        """Non-negative coefficients of scaled costs near ``prior``, by reweighted least squares."""
        rows, time = self.rows[chosen] * self.scale, self.time_ns[chosen]
        base = self.weight[chosen]
        weight, unit = base, float(np.median(time)) or 1.0
        solution = prior
        for _ in range(_REWEIGHTINGS):
            solution = _non_negative(
                np.concatenate(
                    [rows * weight[:, None], np.eye(rows.shape[1]) * (math.sqrt(strength) / unit)]
                ),
                np.concatenate([time * weight, prior * (math.sqrt(strength) / unit)]),
            )
            residual = np.abs(time - rows @ solution) * base
            spread = max(1.4826 * float(np.median(residual)), 1e-6)
            huber = np.minimum(1.0, HUBER * spread / np.maximum(residual, 1e-12))
            weight = base * np.sqrt(huber)
        return solution


def _row(costs: OperatorCosts) -> Array:
    return np.array([1.0, costs.macs, costs.read, costs.written, costs.weight_bytes])


def _non_negative(rows: Array, target: Array) -> Array:
    from sklearn.linear_model import LinearRegression

    fitted = LinearRegression(fit_intercept=False, positive=True).fit(rows, target)
    return np.asarray(fitted.coef_, dtype=np.float64)


def _probe_ns(networks: Sequence[ProfiledNetwork], matched: Sequence[Matched]) -> float:
    """Time in ns that profiling adds to a line; 0 where no latency is known."""
    excess = [
        (one.total_ns - network.latency_ns) / one.n_lines
        for network, one in zip(networks, matched, strict=True)
        if network.latency_ns is not None and one.n_lines
    ]
    if not excess:
        return 0.0
    lines = [line.ns for network in networks for line in network.lines]
    return float(np.clip(np.median(excess), 0.0, np.quantile(lines, _CHEAPEST)))


def _factors(
    problem: _Problem, coefficients: Mapping[str, Array]
) -> dict[tuple[object, ...], float]:
    """Observed over modelled time of each configuration, shrunk by how much that is noise."""
    ratios: dict[tuple[object, ...], list[float]] = {}
    for row, time, kind, config in zip(
        problem.rows, problem.time_ns, problem.kinds, problem.configs, strict=True
    ):
        modelled = max(float(row @ coefficients[kind]), LEAST_SHARE * float(time))
        ratios.setdefault(config, []).append(math.log(float(time) / modelled))
    centres = {config: float(np.median(found)) for config, found in ratios.items()}
    inside = [r - centres[c] for c, found in ratios.items() if len(found) > 1 for r in found]
    within = (1.4826 * float(np.median(np.abs(inside)))) ** 2 if inside else math.inf
    total = (1.4826 * float(np.median(np.abs(list(centres.values()))))) ** 2
    shrunk = {}
    for config, found in ratios.items():
        noise = within / len(found)
        trust = max(total - noise, 0.0) / max(total, 1e-12) if math.isfinite(noise) else 0.0
        shrunk[config] = math.exp(trust * centres[config])
    return shrunk
