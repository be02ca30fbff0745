"""The networks of a run with several devices: each device's own, and the one for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from latency_tables.estimate import Estimate
from pipeline.report.model import LimitRow, OwnNetwork, ReportData, Winner


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRow:
    """One network; ``latency`` by device, only where it was measured.

    ``kept`` is None where it is not known whether all of its limits are; ``note`` says that it is
    two networks in one, or why there is none.
    """

    name: str
    folder: str
    search_accuracy: float | None = None
    test_accuracy: float | None = None
    latency: Mapping[str, Estimate] = field(default_factory=dict)
    macs: float | None = None
    kept: bool | None = None
    note: str = ""


def network_rows(report: ReportData) -> tuple[NetworkRow, ...]:
    """A row per device, then that of all devices; none where only one network was asked for."""
    if not report.own:
        return ()
    own = [_own_row(one, report) for one in report.own]
    return (*own, _common_row(report.winner, report))


def _own_row(own: OwnNetwork, report: ReportData) -> NetworkRow:
    # the same network on other devices: as measured for all of them
    measured = dict(report.winner.latency) if own.shared and report.winner else {}
    if own.latency is not None:
        measured[own.device] = own.latency
    return NetworkRow(
        name=own.device,
        folder=own.folder,
        search_accuracy=own.search_accuracy,
        test_accuracy=own.test_accuracy,
        latency=measured,
        macs=own.macs,
        kept=_kept(own.limits),
        note=own.reason or ("the network for all devices" if own.shared else ""),
    )


def _common_row(winner: Winner | None, report: ReportData) -> NetworkRow:
    if winner is None:
        return NetworkRow(name="all devices", folder="", note=report.no_common or "not chosen yet")
    return NetworkRow(
        name="all devices",
        folder=".",
        search_accuracy=winner.search_accuracy,
        test_accuracy=winner.test_accuracy,
        latency=winner.latency,
        macs=winner.macs,
        kept=_kept(report.limits),
    )


def _kept(limits: tuple[LimitRow, ...]) -> bool | None:
    """Whether all limits are kept; None where there is none, or one that is not known."""
    kept = [row.kept for row in limits]
    if False in kept:
        return False
    return None if not kept or None in kept else True
