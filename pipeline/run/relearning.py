"""A device's latency model that learns from what a search measured on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from latency_tables import LatencyModel
from latency_tables.arch import Arch
from latency_tables.errors import RunError
from latency_tables.estimate import Estimate
from latency_tables.records import Measurement
from latency_tables.store import TableStore
from pipeline.search.evaluator import LatencySource


@dataclass(frozen=True, slots=True, kw_only=True)
class Relearning:
    """Refits the model of one device; call it with everything that the search measured there.

    Args:
        model: fitted on the run's table.
        table: the device's records in the run's frozen table.
        store: the live table, which holds the record of every measurement.
        predictions: makes a source of latencies of a model.
    """

    model: LatencyModel
    table: Sequence[Measurement]
    store: TableStore
    predictions: Callable[[LatencyModel], LatencySource]

    def __call__(self, measured: Mapping[Arch, Estimate]) -> LatencySource:
        """Predictions by the model fitted on the table and on ``measured``.

        Raises:
            RunError: the live table lost the record of a measurement.
        """
        # architectures that are the same network share a record, which counts once
        once = {(e.key, e.latency_ms): e for e in measured.values()}
        found = [self._record(estimate) for estimate in once.values()]
        return self.predictions(self.model.relearn_measurements([*self.table, *found]))

    def _record(self, estimate: Estimate) -> Measurement:
        """The record behind a measured latency; of several sessions, the one that gave it."""
        records = self.store.records(estimate.key)
        same = [m for m in records if m.ok and m.latency_ms == estimate.latency_ms]
        if not same:
            raise RunError(
                f"{self.store.path} has lost the record of a measurement of "
                f"{estimate.latency_ms:.4g} ms that search.jsonl goes on from",
                hint="give the same table as before, or delete search.jsonl to search anew",
            )
        return same[-1]
