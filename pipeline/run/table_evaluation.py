"""``hilnas tables evaluate``: how well the latency model predicts the networks of a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from latency_tables.errors import MissingLatencyError
from latency_tables.evaluate import Errors, Evaluation, evaluate
from latency_tables.remarks import Remark
from latency_tables.store import TableStore, TableSummary
from pipeline.run.progress import Reporter
from pipeline.run.source import read_source
from pipeline.run.tables import shown


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedTable:
    """One table of the store and what cross-validation says of the model on it."""

    table: TableSummary
    evaluation: Evaluation

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "device_name": self.table.device_name,
            "device_fp": self.table.device_fp,
            "space_id": self.table.space_id,
            "runtime": self.table.runtime,
            "threads": self.table.threads,
            "cores": list(self.table.cores),
            **self.evaluation.to_dict(),
        }


def evaluate_tables(
    source: str,
    table_path: Path,
    *,
    reporter: Reporter,
    device: str | None = None,
    folds: int = 5,
    overrides: Sequence[str] = (),
) -> list[EvaluatedTable]:
    """Evaluate every table of the space that ``source`` names; the errors are kept in the store.

    Raises MissingLatencyError where the store has none.
    """
    from pipeline.run.profile import space_of  # imports torch

    settings = read_source(source, overrides)
    space = space_of(settings.config, settings.base)
    with TableStore(table_path) as store:
        chosen = [
            s
            for s in store.summaries()
            if s.space_id == space.space_id
            and s.n_records
            and device in (None, s.device_name, s.device_fp)
        ]
        if not chosen:
            whose = "" if device is None else f" of device {device!r}"
            raise MissingLatencyError(
                f"{table_path} holds no latencies{whose} of space {space.name!r} "
                f"({space.space_id[:8]})",
                hint=f"hilnas tables build {source}",
            )
        found = []
        for summary in chosen:
            records = list(
                store.measurements(
                    device_fp=summary.device_fp,
                    space_id=summary.space_id,
                    setting=summary.setting,
                )
            )
            with reporter.bar(f"fitting {summary.device_name}") as advance:
                result = evaluate(
                    space.cost_table(),
                    records,
                    folds=folds,
                    progress=lambda done, total: advance(done, total, ""),
                )
            store.add_remark(_remark(summary, result))
            found.append(EvaluatedTable(table=summary, evaluation=result))
    return found


def _remark(table: TableSummary, found: Evaluation) -> Remark:
    return Remark(
        device_fp=table.device_fp,
        space_id=table.space_id,
        setting=table.setting,
        kind="model",
        name="cross-validated",
        value=json.dumps(found.all.to_dict()),
        utc=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def render_evaluations(found: Sequence[EvaluatedTable], console: Console) -> None:
    """A table of errors per latency table."""
    for one in found:
        e = one.evaluation
        console.print(
            f"[bold]{shown(one.table.device_name)}[/bold] {one.table.device_fp[:8]}, "
            f"{shown(one.table.runtime['name'])} {shown(one.table.runtime['version'])}, "
            f"{one.table.threads} threads: {e.n_folds}-fold cross-validation"
        )
        table = Table(box=None)
        table.add_column("networks left out")
        for column in ("n", "tau", "MAPE", "in 5 %", "in 10 %", "in interval", "half-width"):
            table.add_column(column, justify="right")
        table.add_row("all", *_cells(e.all))
        for name, errors in e.terciles.items():
            table.add_row(name, *_cells(errors))
        if e.without_worst is not None:
            table.add_row(
                f"without session {shown(str(e.worst_session)[:12])}", *_cells(e.without_worst)
            )
        console.print(table)


def _cells(errors: Errors) -> list[str]:
    shares = (errors.within_5, errors.within_10, errors.coverage)
    return [
        str(errors.n),
        f"{errors.kendall_tau:.3f}",
        f"{errors.mape:.1%}",
        *(f"{share:.0%}" for share in shares),
        f"±{errors.width:.1%}",
    ]
