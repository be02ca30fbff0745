"""What a multi-objective search minimises: names from the run file, rows of numbers for sorting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from latency_tables.errors import MissingLatencyError, UsageError
from pipeline.search.config import OBJECTIVES
from pipeline.search.evaluation import Evaluation
from pipeline.search.limits import COST_METRICS

Array = NDArray[np.float64]

ERROR, LATENCY = "error", "latency"
_ON = ":"


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """Objectives of a search, all to be minimised.

    ``labels`` are "error", "latency:NAME" of a device, or a metric of the cost table.

    >>> Objectives.of(["error", "latency", "params"], devices=["rpi4", "nuc"]).labels
    ('error', 'latency:rpi4', 'latency:nuc', 'params')
    >>> Objectives.of(None, devices=[]).labels
    ('error', 'macs')
    """

    labels: tuple[str, ...]

    @classmethod
    def of(
        cls,
        names: Sequence[str] | None,
        devices: Sequence[str],
        metrics: Sequence[str] = COST_METRICS,
    ) -> Self:
        """Resolve names.

        Args:
            names: "error", "latency" (of every device), "latency:NAME", or metrics of the cost
                table. None: error and latency on every device, MACs where there is none.
            devices: those that something answers for.
            metrics: what the cost table of the space knows.

        Raises:
            UsageError: an unknown name, or none at all; gives those that are allowed.
            MissingLatencyError: latency of a device that nothing answers for.
        """
        if names is None:
            names = (ERROR, LATENCY if devices else "macs")
        labels: list[str] = []
        for name in names:
            kind, on, device = name.partition(_ON)
            if name == ERROR or name in metrics:
                labels.append(name)
            elif kind == LATENCY and (not on or device):
                labels += _latencies(name, device, devices)
            else:
                allowed = [ERROR, LATENCY, *(f"{LATENCY}{_ON}{d}" for d in devices), *metrics]
                raise UsageError(f"objective {name!r} is unknown; allowed: {', '.join(allowed)}")
        if not labels:
            raise UsageError(f"a search needs an objective; there are {', '.join(OBJECTIVES)}")
        return cls(labels=tuple(dict.fromkeys(labels)))

    def rows(self, evaluations: Sequence[Evaluation]) -> Array:
        """Values (N, n_objectives) to minimise.

        Error is minus the accuracy, which fits shares and per cent alike, or the loss where that
        orders candidates. Unknown latencies, of
        candidates that broke a limit on costs or crashed a device, are infinite.
        """
        rows = [[_value(e, label) for label in self.labels] for e in evaluations]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.labels))


def _latencies(name: str, device: str, devices: Sequence[str]) -> list[str]:
    wanted = [device] if device else list(devices)
    if not wanted or not set(wanted) <= set(devices):
        raise MissingLatencyError(
            f"objective {name!r}: nothing answers for "
            f"{repr(device) if device else 'the latency on any device'}, and a latency is never "
            f"guessed; latency is known on: {', '.join(devices) or 'no device'}",
            hint="a [[device]] of that name, or the objective 'macs'",
        )
    return [f"{LATENCY}{_ON}{d}" for d in wanted]


def _value(evaluation: Evaluation, label: str) -> float:
    if label == ERROR:
        return -evaluation.merit
    kind, _, device = label.partition(_ON)
    if kind == LATENCY:
        estimate = evaluation.latency.get(device)
        return math.inf if estimate is None else estimate.latency_ms
    return evaluation.costs[label]
