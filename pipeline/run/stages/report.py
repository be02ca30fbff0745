"""Stage ``report``: one HTML page of everything the run found."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pipeline.report.html import write_report as write_html
from pipeline.run.collect import collect
from pipeline.run.context import RunContext
from pipeline.run.stage import Stage


def write_report(context: RunContext) -> None:
    """Write ``report.html`` from the files of the run."""
    report = collect(
        context.folder,
        run_name=context.folder.path.name,
        created_utc=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        strategy=_strategy(context),
    )
    write_html(context.folder.file("report.html"), report)


def _strategy(context: RunContext) -> str:
    if context.config.transfer is None:
        return context.config.train.strategy
    return f"transfer from {Path(context.config.transfer.source).name}"


REPORT = Stage(
    name="report",
    title="writing the report",
    run=write_report,
    settings=lambda context: {},
    needs=("export", "check"),
    outputs=("report.html",),
)
