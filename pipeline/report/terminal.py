"""The report's summary as tables on the terminal.

Every text goes through :func:`_text`: rich would otherwise read ``[red]`` in a device name as
markup, and a terminal would obey escape sequences in a verdict's evidence.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from latency_tables.records import Verdict
from pipeline.report import figures
from pipeline.report.model import DeviceReport, ReportData, Winner
from pipeline.report.networks import network_rows

FRONT_ROWS = 12
"""Rows of the front that are printed; the HTML report holds all of them."""


def print_report(report: ReportData, console: Console) -> None:
    """Print the summary; parts that the run does not have yet are left out."""
    console.print(_headline(report))
    if report.own:
        console.print(_network_table(report))
    if report.front:
        console.print(_front_table(report))
    for found in report.order.stability:
        whose = f"{found.name}: " if found.name else ""
        console.print(_text(whose + found.words, "yellow" if found.significant is False else ""))
    for device in report.devices:
        console.print(_device_lines(report, device))
    if report.stages:
        console.print(_stage_table(report))
    for command in report.commands:
        console.print(_text(command.why, "dim"))
        console.print(Text("  ") + _text(command.text, "cyan"), soft_wrap=True)


def _headline(report: ReportData) -> Panel:
    title = _text(report.run_name, "bold")
    if report.failure:
        words = Text.assemble(("This run did not finish. ", "bold red"), _text(report.failure))
        return Panel(words, title=title, title_align="left", border_style="red")
    if report.winner is None:
        words = Text("No network has been chosen yet.")
        if report.no_common:
            words = Text.assemble(
                ("There is no network for all devices. ", "bold"), _text(report.no_common)
            )
        return Panel(words, title=title, title_align="left", border_style="yellow")
    broken = any(row.kept is False for row in report.limits) or any(
        device.limit_ms is not None
        and device.name in report.winner.latency
        and not report.winner.latency[device.name].keeps(device.limit_ms)
        for device in report.devices
    )
    return Panel(
        _winner_table(report, report.winner),
        title=title,
        title_align="left",
        border_style="red" if broken else "green",
    )


def _winner_table(report: ReportData, winner: Winner) -> RenderableType:
    table = Table.grid(padding=(0, 3))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(style="bold", justify="right", no_wrap=True)
    table.add_column()
    if winner.test_accuracy is not None:
        low, high = figures.wilson(winner.test_accuracy, winner.n_test_images)
        table.add_row(
            "test accuracy, ONNX file",
            figures.percent(winner.test_accuracy),
            f"{figures.percent(low)} … {figures.percent(high)} on {winner.n_test_images:,} images",
        )
    table.add_row(
        "accuracy, search split",
        figures.percent(winner.search_accuracy),
        f"{winner.n_search_images:,} images",
    )
    for device in report.devices:
        estimate = winner.latency.get(device.name)
        if estimate is None:
            continue
        said = Text(f"{estimate.source}, {figures.interval(estimate)}")
        if device.limit_ms is not None:
            kept = estimate.keeps(device.limit_ms)
            said.append("; ")
            said.append(
                f"{'keeps' if kept else 'breaks'} the limit of "
                f"{figures.significant(device.limit_ms)} ms",
                style="green" if kept else "bold red",
            )
        table.add_row(
            Text("latency on ") + _text(device.name), Text(figures.latency(estimate)), said
        )
    table.add_row(
        "subnet.onnx",
        figures.quantity(winner.size_bytes, "B"),
        f"{figures.quantity(winner.params)} parameters, {figures.quantity(winner.macs)} MACs",
    )
    path = Text("\n").append_text(_text(" → ".join(str(c) for c in winner.arch.values()), "dim"))
    return Group(table, path)


def _network_table(report: ReportData) -> Table:
    """Each device's own network and the one for all, with latencies where they were measured."""
    table = Table(title="Networks", title_justify="left", title_style="bold", expand=False)
    table.add_column("for")
    table.add_column("test accuracy", justify="right")
    for device in report.devices:
        table.add_column(Text("on ") + _text(device.name), justify="right")
    table.add_column("MACs", justify="right")
    table.add_column("limits")
    table.add_column("in")
    for row in network_rows(report):
        limits = {True: Text("kept", "green"), False: Text("broken", "bold red"), None: Text("–")}
        table.add_row(
            _text(row.name, "bold"),
            figures.percent(row.test_accuracy),
            *(figures.sourced(row.latency.get(device.name)) for device in report.devices),
            figures.quantity(row.macs),
            _text(row.note, "dim") if row.note and row.test_accuracy is None else limits[row.kept],
            _text(row.folder),
        )
    return table


def _front_table(report: ReportData) -> Table:
    title = "Front of the network for all devices" if report.own else "Front"
    table = Table(title=title, title_justify="left", title_style="bold", expand=False)
    table.add_column("accuracy", justify="right")
    for device in report.devices:
        suffix = f" on {figures.visible(device.name)}" if len(report.devices) > 1 else ""
        table.add_column(Text(f"searched with{suffix}"), justify="right")
        table.add_column(Text(f"measured{suffix}"), justify="right")
        table.add_column(Text("90 %, ms"), justify="right", style="dim")
    table.add_column("verdicts")
    rows = sorted(report.front, key=lambda row: row.accuracy, reverse=True)
    # the chosen one is always among those shown
    shown = [row for i, row in enumerate(rows) if i < FRONT_ROWS or row.winner]
    for row in shown:
        cells: list[Text] = [Text(figures.percent(row.accuracy))]
        for device in report.devices:
            measured = row.measured.get(device.name)
            cells.append(Text(figures.sourced(row.predicted.get(device.name))))
            cells.append(Text(figures.latency(measured)))
            cells.append(Text(figures.interval(measured)))
        verdicts = _verdicts(row.verdicts) if row.verdicts or row.measured else Text("–")
        table.add_row(*cells, verdicts, style="bold green" if row.winner else "")
    if len(shown) < len(rows):
        table.caption = f"{len(rows) - len(shown)} more in the HTML report"
    return table


def _device_lines(report: ReportData, device: DeviceReport) -> Text:
    words = _text(device.name, "bold")
    words.append(": ").append_text(_text(device.runtime or "runtime not known"))
    failed = sum(row.latency is None for row in device.measured)
    words.append(f", {len(device.measured)} measurements, {failed} failed")
    rank = device.macs_rank
    if rank is not None:
        words.append(f"; Kendall tau of MACs and latency {rank}, {rank.n} networks")
    found = figures.agreement(report.front, device.name)
    if found is not None:
        words.append(
            f"; predictions of the front were off by {figures.percent(found.error)} (median), "
            f"{found.inside} of {found.n} inside the interval"
        )
    return words


def _stage_table(report: ReportData) -> Table:
    table = Table.grid(padding=(0, 3))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    for stage in report.stages:
        timed = stage.status in ("done", "failed")
        style = "red" if stage.status == "failed" else ""
        note = _text(stage.note) if stage.note else Text("")
        status = Text("" if stage.status == "done" else f"{stage.status} ", style=style)
        table.add_row(
            _text(stage.name),
            figures.duration(stage.seconds) if timed else figures.MISSING,
            status + note,
        )
    return table


def _verdicts(verdicts: Sequence[Verdict]) -> Text:
    if not verdicts:
        return Text("clean", style="green")
    words = Text()
    for i, verdict in enumerate(verdicts):
        style = "bold red" if verdict.severity == "fail" else "yellow"
        words.append("\n" if i else "").append_text(_text(verdict.code, style))
    return words


def _text(words: object, style: str = "") -> Text:
    """Literal text: no markup, no terminal sequences."""
    return Text(figures.visible(words).replace("\n", " "), style=style)
