"""Limits: what they mean in numbers, whether a candidate keeps them, whether any subnet can.

A limit on MACs, parameters, size or memory is exact and is read from the cost table; a limit on
latency is held against an :class:`~latency_tables.estimate.Estimate` of the device that sets it.
Both are checked before anything is spent on a candidate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from latency_tables.errors import LimitBelowFastestError, LimitError, MissingLatencyError
from latency_tables.estimate import Estimate
from pipeline.search.config import LimitsConfig

if TYPE_CHECKING:
    from latency_tables.cost_table import CostTable

CostMetric = Literal["macs", "params", "size_bytes", "peak_memory_bytes"]
Metric = Literal["latency_ms", "macs", "params", "size_bytes", "peak_memory_bytes"]

COST_METRICS: tuple[CostMetric, ...] = get_args(CostMetric)
"""Metrics that the cost table knows exactly; named as its columns."""

METRIC_UNITS: dict[str, str] = {
    "latency_ms": "ms",
    "macs": "MAC",
    "params": "parameters",
    "size_bytes": "bytes",
    "peak_memory_bytes": "bytes",
}
"""Unit of each metric, as manifests and reports name it."""

_UNITS: dict[str, tuple[str, str]] = {
    "macs": (" MACs", "the subnet with the fewest"),
    "params": (" parameters", "the subnet with the fewest"),
    "size_bytes": (" bytes of model file", "the smallest subnet"),
    "peak_memory_bytes": (" bytes of memory", "the subnet that needs the least"),
}
_PROFILE = "hilnas space profile"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """An upper bound on one metric, inclusive. ``text`` is how the user gave it.

    >>> limit = Limit(metric="macs", bound=3e8)
    >>> limit.excess(3e8), round(limit.excess(3.3e8), 3), str(limit)
    (0.0, 0.1, '300,000,000 MACs')
    """

    metric: Metric
    bound: float
    device: str | None = None
    text: str = ""

    def excess(self, value: float) -> float:
        """By which share of the bound ``value`` is above it; 0 where the limit is kept."""
        return max(0.0, value / self.bound - 1.0)

    def show(self, value: float) -> str:
        """``value`` with the unit of this limit."""
        if self.metric == "latency_ms":
            return f"{value:.4g} ms"
        return f"{value:,.0f}{_UNITS[self.metric][0]}"

    def __str__(self) -> str:
        on = f" on {self.device}" if self.metric == "latency_ms" and self.device else ""
        given = f" ({self.text})" if self.text else ""
        return f"{self.show(self.bound)}{on}{given}"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {name: getattr(self, name) for name in self.__slots__}


def resolve_limits(
    configs: Mapping[str, LimitsConfig], latencies_ms: Mapping[str, Sequence[float]]
) -> tuple[Limit, ...]:
    """Turn the limits of every device into numbers.

    Args:
        configs: limits by device name.
        latencies_ms: measured latencies of the built table by device name; needed for quantiles.

    Raises:
        MissingLatencyError: a quantile is asked for and the device's table is empty.

    >>> limits = resolve_limits({"rpi": LimitsConfig(latency="50%")}, {"rpi": [1.0, 2.0, 4.0]})
    >>> str(limits[0])
    '2 ms on rpi (50% of the table)'
    """
    limits: list[Limit] = []
    for device, config in configs.items():
        if config.latency_quantile is not None:
            measured = latencies_ms.get(device, ())
            if not len(measured):
                raise MissingLatencyError(
                    f"limit latency = {config.latency!r} is a quantile of the latency table of "
                    f"{device!r}, which holds no measurement",
                    hint="hilnas tables build FILE",
                )
            bound = float(np.quantile(np.asarray(measured, dtype=float), config.latency_quantile))
            text = f"{config.latency} of the table"
            limits.append(Limit(metric="latency_ms", bound=bound, device=device, text=text))
        elif config.fixed_latency_ms is not None:
            text = f"{config.fps:g} fps" if config.fps is not None else ""
            limits.append(
                Limit(metric="latency_ms", bound=config.fixed_latency_ms, device=device, text=text)
            )
        for metric in COST_METRICS:
            value = getattr(config, metric)
            if value is not None:
                limits.append(Limit(metric=metric, bound=float(value), device=device))
    return tuple(limits)


def load_limits(data: Mapping[str, Any]) -> tuple[Limit, ...]:
    """The limits that ``latency.json`` holds."""
    try:
        return tuple(Limit(**limit) for limit in data["limits"])
    except (KeyError, TypeError) as error:
        raise LimitError(f"latency.json is damaged: {error}", hint="hilnas run FOLDER") from None


def cost_values(
    table: CostTable, genes: NDArray[np.int64], metrics: Sequence[CostMetric] = COST_METRICS
) -> dict[str, NDArray[np.float64]]:
    """Costs (N,) per metric of N genomes (N, n_decisions); metrics the table lacks are left out."""
    known = set(table.column_names())
    return {metric: table.column(metric, genes) for metric in metrics if metric in known}


def violations_by_cost(
    table: CostTable, genes: NDArray[np.int64], limits: Sequence[Limit]
) -> NDArray[np.float64]:
    """Summed relative excess (N,) over the limits on costs; latency is not looked at.

    Raises:
        LimitError: a limit names a metric that the cost table does not have.
    """
    total = np.zeros(len(genes))
    for limit in cost_limits(limits):
        if limit.metric not in table.column_names():
            raise LimitError(
                f"limit {limit} cannot be checked: the cost table of this space has no column "
                f"{limit.metric!r}; it has {', '.join(table.column_names())}"
            )
        total += np.maximum(0.0, table.column(limit.metric, genes) / limit.bound - 1.0)
    return total


def feasible_by_cost(
    table: CostTable, genes: NDArray[np.int64], limits: Sequence[Limit]
) -> NDArray[np.bool_]:
    """Which of N genomes keep every limit on costs: (N, n_decisions) → (N,)."""
    feasible: NDArray[np.bool_] = violations_by_cost(table, genes, limits) <= 0.0
    return feasible


def cost_limits(limits: Sequence[Limit]) -> tuple[Limit, ...]:
    """The limits that the cost table answers."""
    return tuple(limit for limit in limits if limit.metric != "latency_ms")


def latency_limits(limits: Sequence[Limit]) -> tuple[Limit, ...]:
    """The limits that a device answers."""
    return tuple(limit for limit in limits if limit.metric == "latency_ms")


def check_possible(
    limits: Sequence[Limit],
    table: CostTable,
    fastest: Mapping[str, Estimate] | None = None,
    *,
    space: str = "",
) -> None:
    """Refuse limits that no subnet can keep, before anything is trained or scored.

    Args:
        limits: resolved limits of all devices.
        table: costs of the space.
        fastest: latency of the fastest subnet by device, measured or predicted.
        space: name of the space, for the message.

    Raises:
        LimitBelowFastestError: names the limit, the cheapest subnet's value and what to try.
    """
    of_space = f" of {space}" if space else ""
    for limit in limits:
        if limit.metric == "latency_ms":
            estimate = (fastest or {}).get(limit.device or "")
            if estimate is not None and not estimate.keeps(limit.bound):
                raise LimitBelowFastestError(
                    f"limit {limit.show(limit.bound)} is below the fastest subnet{of_space} "
                    f"({_describe(estimate)} on {limit.device})",
                    hint=f"a higher limit, or see '{_PROFILE}'",
                )
        else:
            smallest, arch = table.minimum(limit.metric)
            if smallest > limit.bound:
                raise LimitBelowFastestError(
                    f"limit {limit.show(limit.bound)} is below {_UNITS[limit.metric][1]}"
                    f"{of_space}: {limit.show(smallest)} ({_short(arch)})",
                    hint=f"a higher limit, or see '{_PROFILE}'",
                )


def _describe(estimate: Estimate) -> str:
    how = {"measured": "measured", "table": "measured", "predicted": "predicted"}[estimate.source]
    interval = f"{estimate.low_ms:.3g} to {estimate.high_ms:.3g}"
    return f"{estimate.latency_ms:.3g} ms, {how}, {interval} at {estimate.level:.0%}"


def _short(arch: Mapping[str, object]) -> str:
    text = " ".join(str(choice) for choice in arch.values())
    return text if len(text) <= 80 else f"{text[:77]}…"
