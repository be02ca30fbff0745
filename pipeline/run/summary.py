"""What a run folder holds, in the terminal."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from rich.console import Console

from latency_tables.macs_rank import MacsRank
from pipeline.report.model import OwnNetwork
from pipeline.run.collect import collect
from pipeline.run.folder import RunFolder


def print_summary(folder: RunFolder, *, as_json: bool) -> None:
    """The winner and how it was found, or how far the run has come."""
    report = collect(folder, run_name=folder.path.name, created_utc="", strategy="")
    if as_json:
        manifest = folder.file("manifest.json")
        found = {
            "folder": str(folder.path),
            "stages": {name: stamp.done for name, stamp in folder.stamps().items()},
            "manifest": json.loads(manifest.read_text()) if manifest.exists() else None,
        }
        if report.own:
            found["boards"] = {own.device: _board(folder, own) for own in report.own}
            found["no_common"] = report.no_common or None
        print(json.dumps(found, indent=2))
        return
    from pipeline.report.terminal import print_report

    # the report itself names no path of this machine
    commands = tuple(
        replace(c, text=c.text.replace("FOLDER", str(folder.path))) for c in report.commands
    )
    print_report(replace(report, commands=commands), Console())
    if folder.file("report.html").exists():
        print(f"report: {folder.file('report.html')}")


def _board(folder: RunFolder, own: OwnNetwork) -> dict[str, Any]:
    """Where a device's own network lies and what its manifest says, or why there is none."""
    manifest = folder.file(f"{own.folder}/manifest.json")
    return {
        "folder": own.folder,
        "manifest": json.loads(manifest.read_text()) if manifest.exists() else None,
        "reason": own.reason or None,
    }


def print_tables(folder: RunFolder, *, as_json: bool) -> None:
    """The latency tables of a run: how many networks, how good the model, the limits."""
    latency = json.loads(folder.file("latency.json").read_text())
    if as_json:
        print(json.dumps(latency, indent=2))
        return
    for name, about in latency["devices"].items():
        found = about["diagnostics"]
        print(
            f"{name}: {found['n']} networks, {about['runtime']['name']} "
            f"{about['runtime']['version']}, {about['threads']} thread(s); leave-one-out: "
            f"{found['within_10']:.0%} within 10 %, MAPE {found['loo_mape']:.1%}, "
            f"Kendall tau {found['kendall_tau']:.2f}"
        )
        if (rank := about.get("macs_rank")) is not None:
            print(f"{name}: tau of MACs and latency {MacsRank.from_dict(rank)}")
    for limit in latency["limits"]:
        on = f" on {limit['device']}" if limit["device"] else ""
        print(f"limit {limit['metric']} <= {limit['bound']:.6g}{on} {limit['text']}".rstrip())
