from __future__ import annotations

import dataclasses
import io
from types import ModuleType

from rich.console import Console

from latency_tables.macs_rank import MacsRank
from latency_tables.records import Verdict
from pipeline.report import figures
from pipeline.report.model import ReportData
from pipeline.report.terminal import print_report


def printed(report: ReportData, *, terminal: bool = False) -> str:
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=120, force_terminal=terminal))
    return stream.getvalue()


def test_the_summary_holds_the_numbers(samples: ModuleType) -> None:
    text = printed(samples.full_report())
    for wanted in (
        "95.6 %",
        "keeps the limit of 0.340 ms",
        "611 kB",
        "2.41 M MACs",
        "INTERFERENCE",
        "17 measurements, 1 failed",
        "1 min 12 s",
        "hilnas check runs/digits",
    ):
        assert wanted in text, wanted


def test_a_broken_limit_is_said(samples: ModuleType) -> None:
    report = samples.full_report()
    device = dataclasses.replace(report.devices[0], limit_ms=0.1)
    text = printed(dataclasses.replace(report, devices=(device,)))
    assert "breaks the limit of 0.100 ms" in text


def test_a_run_without_anything_is_printed() -> None:
    text = printed(ReportData(run_name="empty", created_utc="2026-11-22T12:00:00Z"))
    assert "No network has been chosen yet." in text


def test_a_failed_run_says_what_failed() -> None:
    report = ReportData(
        run_name="r", created_utc="2026-11-22T12:00:00Z", failure="the board vanished"
    )
    assert "This run did not finish. the board vanished" in printed(report)


def test_markup_and_terminal_sequences_are_printed_literally(samples: ModuleType) -> None:
    report = samples.full_report(devices=("[red]board[/red]\x1b[2J",), run_name="[bold]x[/bold]")
    evil = Verdict(code="[link=file:///x]A[/link]\x1b]8;;", severity="warn", evidence="")
    front = tuple(dataclasses.replace(row, verdicts=(evil,)) for row in report.front)
    text = printed(dataclasses.replace(report, front=front), terminal=True)
    assert "[red]board[/red]" in text
    assert "[bold]x[/bold]" in text
    assert "\x1b[2J" not in text
    assert "\x1b]8" not in text


def test_every_latency_says_where_it_comes_from(samples: ModuleType) -> None:
    text = printed(samples.full_report())
    row = samples.full_report().front[0]
    assert figures.sourced(row.predicted["local"]) in text
    assert figures.sourced(row.predicted["local"]).endswith(" predicted")


def test_tau_of_macs_and_latency_stands_with_its_interval(samples: ModuleType) -> None:
    report = samples.full_report()
    rank = MacsRank(tau=0.31, low=0.12, high=0.52, level=0.95, n=40)
    device = dataclasses.replace(report.devices[0], macs_rank=rank)
    text = " ".join(printed(dataclasses.replace(report, devices=(device,))).split())
    assert "tau of MACs and latency 0.31 (95% interval 0.12 to 0.52), 40 networks" in text


def test_each_device_s_own_network_stands_beside_the_one_for_all(samples: ModuleType) -> None:
    text = printed(samples.boards_report())
    assert "boards/rpi4" in text
    assert "all devices" in text
    assert "none of the 8 subnets" in text  # there is no network for nuc alone
    assert "Front of the network for all devices" in text


def test_where_there_is_no_network_for_all_it_is_said_why(samples: ModuleType) -> None:
    text = printed(samples.boards_report(winner=None, front=(), no_common="too tight together"))
    assert "There is no network for all devices. too tight together" in text
