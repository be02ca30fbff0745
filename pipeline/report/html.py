"""Render a run as one self-contained HTML file: no script, no font, no picture from elsewhere.

A content security policy in the file forbids what the template does not use, so that even a text
that slipped through escaping could neither run nor load anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from latency_tables.estimate import Estimate
from latency_tables.files import write_text
from pipeline.report import charts, figures, level_charts, rank_charts
from pipeline.report.drawing import cell_of, draw_cell
from pipeline.report.figures import Agreement
from pipeline.report.model import Block, DeviceReport, MeasuredRow, ReportData
from pipeline.report.networks import network_rows

N_COLOURS = 8
"""Colours for operators in style.css; further operators start again with the first."""

OPEN_ROWS = 10
"""Measurements shown at once; the rest is folded away."""

TIE_ROWS = 10
"""Networks shown that are as good as the chosen one; stability.json holds all of them."""


_UTC = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?(?:Z|\+00:00)")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """One device with its charts and the numbers that stand below them."""

    device: DeviceReport
    accuracy: Markup | None
    prediction: Markup | None
    macs: Markup | None
    agreement: Agreement | None
    chosen: Estimate | None
    rows: tuple[MeasuredRow, ...]
    folded: tuple[MeasuredRow, ...]
    n_failed: int
    n_warned: int

    @property
    def keeps(self) -> bool | None:
        """Whether the chosen network keeps this device's latency limit."""
        if self.chosen is None or self.device.limit_ms is None:
            return None
        return self.chosen.keeps(self.device.limit_ms)

    @property
    def narrow(self) -> bool:
        """Whether the limit is kept by the central value, but not by the whole interval."""
        limit_ms = self.device.limit_ms
        return self.chosen is not None and limit_ms is not None and self.chosen.straddles(limit_ms)

    @property
    def share(self) -> float:
        """Chosen latency as a share of the limit, at most one, for the gauge."""
        if self.chosen is None or not self.device.limit_ms:
            return 0.0
        return min(1.0, self.chosen.latency_ms / self.device.limit_ms)


def write_report(path: Path, report: ReportData) -> None:
    """Write the report, whole or not at all."""
    write_text(path, render_html(report))


def render_html(report: ReportData) -> str:
    """The report as one HTML document.

    >>> page = render_html(ReportData(run_name="<b>", created_utc="2026-11-22T12:00:00Z"))
    >>> "&lt;b&gt;" in page, "<b>" in page
    (True, False)
    """
    views = [_view(report, device) for device in report.devices]
    blocks = report.winner.blocks if report.winner else ()
    colours = _colours(report, blocks)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            views=views,
            winner=report.winner,
            networks=network_rows(report),
            colours=colours,
            cell=draw_cell(cell_of(report.winner.arch), colours) if report.winner else None,
            heaviest=max((b.macs or 0.0 for b in blocks), default=0.0),
            training=charts.training_chart(report.training),
            level_key=level_charts.level_key(report.levels),
            level_probabilities=level_charts.probability_chart(report.levels),
            level_losses=level_charts.loss_chart(report.levels),
            level_entropy=level_charts.entropy_chart(report.levels),
            against=rank_charts.against_chart(report.order.against),
            followed=rank_charts.followed_chart(report.order.followed),
            ordered=rank_charts.order_chart(report.order.followed),
            tie_rows=TIE_ROWS,
            n_feasible=sum(e.feasible for e in report.evaluations),
            thinned=len(report.evaluations) > charts.MAX_DOTS,
            longest=max((s.seconds for s in report.stages), default=0.0),
            total=sum(s.seconds for s in report.stages),
        )
    )


def _view(report: ReportData, device: DeviceReport) -> DeviceView:
    # what went wrong comes first, so that folding never hides a failure behind good rows
    rows = sorted(device.measured, key=_severity)
    return DeviceView(
        device=device,
        accuracy=charts.accuracy_chart(report, device),
        prediction=charts.prediction_chart(report.front, device),
        macs=charts.macs_chart(device),
        agreement=figures.agreement(report.front, device.name),
        chosen=report.winner.latency.get(device.name) if report.winner else None,
        rows=tuple(rows[:OPEN_ROWS]),
        folded=tuple(rows[OPEN_ROWS:]),
        n_failed=sum(_severity(row) == 0 for row in rows),
        n_warned=sum(_severity(row) == 1 for row in rows),
    )


def _severity(row: MeasuredRow) -> int:
    if row.latency is None or any(v.severity == "fail" for v in row.verdicts):
        return 0
    return 1 if row.verdicts else 2


def _colours(report: ReportData, blocks: tuple[Block, ...]) -> Mapping[str, str]:
    """CSS class by operator, in the order of the space's choices; fixed parts are grey."""
    names: dict[str, None] = {}
    for block in blocks:
        if len(block.choices) > 1:
            names.update(dict.fromkeys((*block.choices, block.tone or block.choice)))
    if not names:  # a searched cell, or nothing was chosen yet
        for row in report.front:
            names.update(dict.fromkeys(map(str, row.arch.values())))
    return {name: f"op{index % N_COLOURS}" for index, name in enumerate(names)}


def environment() -> Environment:
    """Templates whose every printed value is escaped and cleaned."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    for function in (
        figures.latency, figures.sourced, figures.interval, figures.percent, figures.quantity,
        figures.power_of_ten, figures.duration, figures.significant, figures.wilson,
    ):  # fmt: skip
        environment.filters[function.__name__] = function
    environment.filters["cell"] = _cell
    environment.filters["moment"] = _moment
    return environment


def _finalize(value: Any) -> Any:
    """Every printed value passes here: control characters and reading-direction tricks go."""
    return value if isinstance(value, Markup) else figures.visible(value, limit=4000)


def _cell(value: Any) -> str:
    """A value of a free-form table: text, numbers and nested data alike."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return figures.significant(value, 4)
    if isinstance(value, str):
        return figures.visible(value)
    return figures.visible(json.dumps(value, default=str, ensure_ascii=False), limit=200)


def _moment(utc: str) -> str:
    """``2026-11-22 12:00:05 UTC`` from ISO 8601; other texts are shown as they are."""
    found = _UTC.fullmatch(utc)
    return f"{found[1]} {found[2]} UTC" if found else utc
