"""Where the search gets its latencies and its last-resort proposals from: oracles and samplers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np

from latency_tables.arch import Arch
from latency_tables.cost_table import CostTable
from latency_tables.errors import DeviceError, LimitError, MeasurementError
from latency_tables.estimate import Estimate
from latency_tables.oracle import Oracle
from latency_tables.pooling import pool
from latency_tables.records import Measurement
from latency_tables.sampler import CostSampler, make_sampler
from pipeline.search.evaluator import Latencies, LatencySource


class Measures(Protocol):
    """Measures architectures now, one record each, in the order asked."""

    def measure(self, archs: Sequence[Arch]) -> Sequence[Measurement]:
        """Time ``archs``; a failed one gives a record with its error."""
        ...


def oracle_source(oracle: Oracle) -> LatencySource:
    """Latencies for screening: looked up, measured within the oracle's budget, or predicted."""

    def ask(archs: Sequence[Arch]) -> Latencies:
        return oracle.collect(oracle.submit(archs)) if archs else []

    return ask


def live_source(oracle: Measures) -> LatencySource:
    """Latencies for the front: always measured, now."""

    def measure(archs: Sequence[Arch]) -> Latencies:
        return [answer_of(m) for m in oracle.measure(archs)] if archs else []

    return measure


def answer_of(measurement: Measurement) -> Estimate | DeviceError:
    """A record as an answer: its latency, or the error with the party to blame.

    A failing verdict (throttled, rebooted, …) is a statement about the board's state, so the board
    is to blame and the subnet is measured again.
    """
    if measurement.ok:
        return pool([measurement], source="measured")
    if measurement.error is not None:
        error = measurement.error
        return MeasurementError(error["code"], error["message"], blames=error["blames"])
    failed = [v.code for v in measurement.verdicts if v.severity == "fail"]
    code = failed[0] if failed else "NO_LATENCY"
    return MeasurementError(code, measurement.why_not(), blames="board", retryable=True)


class ExactProposer:
    """Proposes subnets whose cost is at most ``bound``, uniformly, however rare they are.

    Rejecting uniform draws gives the same distribution; it only takes 1 / ``share`` as many.
    """

    def __init__(self, table: CostTable, column: str, bound: float) -> None:
        self.table, self.column, self.bound = table, column, bound

    @cached_property
    def sampler(self) -> CostSampler:
        """Built when it is first needed, which takes a moment. Rejection where nothing is exact."""
        return make_sampler(self.table, self.column, approximate=True)

    @cached_property
    def share(self) -> float:
        """Share of all subnets that keep the bound."""
        return self.sampler.probability(high=self.bound)

    def __call__(self, rng: np.random.Generator, n: int) -> list[Arch]:
        """``n`` subnets; none where there is none, the search then reports what it tried."""
        try:
            return self.sampler.sample_archs(rng, -math.inf, self.bound, n)
        except LimitError:
            return []


def exact_proposer(table: CostTable, column: str, bound: float) -> ExactProposer:
    """Propose subnets whose cost is at most ``bound``; ``table`` may have a latency column."""
    return ExactProposer(table, column, bound)
