"""The outcome of ``hilnas rank`` on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def render(found: dict[str, Any], console: Console) -> None:
    """Print what ``rank.json`` holds."""
    for line in _head(found):
        console.print(line, soft_wrap=True)
    console.print(_measures(found["report"]))
    console.print(_picks(found["report"]))
    if (verdict := _verdict(found["report"])) is not None:
        console.print(f"[yellow]{verdict}[/yellow]", soft_wrap=True)
    winner = found["winner"]
    if winner is not None:
        console.print(
            f"the run's winner under its limits: {winner['truth']:.4g}; {winner['better']:,} of "
            f"{winner['of']:,} networks are truly better, limits aside"
        )


def render_followed(found: dict[str, Any], console: Console) -> None:
    """Print what ``follow.json`` holds: a line per generation that moved the weights."""
    n_good, n_all = len(found["good"]), len(found["good"]) + len(found["random"])
    table = Table(title=f"{n_good} good of {n_all} followed", title_justify="left")
    for name in ("generation", "mean of good", "mean of random", "global", "local tau"):
        table.add_column(name, justify="right")
    for row in found["rows"]:
        local = row["local_tau"]
        table.add_row(
            f"{row['generations']}",
            *(f"{sum(row[k]) / max(1, len(row[k])):.2%}" for k in ("good", "random")),
            f"{row['global_count']:g} of {n_good}",
            "–" if local is None else f"{local:.3f}",
        )
    console.print(table)
    if found["truly_better"] is not None:
        console.print(
            f"in {found['truly_better']:.0%} of the pairs of a good and a random one the good one "
            "is truly better"
        )


def _head(found: dict[str, Any]) -> list[str]:
    truth, scoring = found["truth"], found["scoring"]
    asides = []
    if truth["n_isomorphic"]:
        asides.append(f"{truth['n_isomorphic']:,} genomes are isomorphic to another")
    if truth["n_blank"]:
        asides.append(f"{truth['n_blank']:,} rows have no accuracy")
    if truth["n_unknown"]:
        asides.append(f"{truth['n_unknown']:,} listed architectures have no truth")
    n = found["report"]["n"]
    return [
        f"truth: {escape(truth['source'])} ({escape(truth['form'])}), "
        f"column {escape(truth['column'])}" + "".join(f"; {aside}" for aside in asides),
        f"scores: {escape(found['weights']['file'])}, {n:,} of {truth['n_networks']:,} networks "
        f"(seed {found['sample']['seed']}) on {scoring['n_images']:,} images each; "
        f"{scoring['n_scored_now']:,} scored now in {scoring['seconds']:.1f} s",
    ]


def _verdict(report: dict[str, Any]) -> str | None:
    """Whether a cost that takes no training ranks as well, where one does."""
    found = report["tau_b"]
    tau = found["value"]
    as_good = {name: b["tau_b"] for name, b in report["baselines"].items() if b["tau_b"] >= tau}
    if not as_good:
        return None
    name = max(as_good, key=lambda n: as_good[n])
    return (
        f"ranking by {name} alone does as well or better: tau-b {as_good[name]:.3f} against "
        f"{tau:.3f} ({found['low']:.3f} … {found['high']:.3f})"
    )


def _measures(report: dict[str, Any]) -> Table:
    baselines = report["baselines"]
    table = Table(title=f"Order of {report['n']:,} networks", title_justify="left")
    table.add_column("measure")
    table.add_column("scores", justify="right")
    table.add_column(f"{report['tau_b']['level']:.0%} interval", justify="right", style="dim")
    for name in baselines:
        table.add_column(f"by {name}", justify="right")
    for key, words in (("tau_b", "Kendall tau-b"), ("spearman", "Spearman")):
        by = [f"{b[key]:.3f}" for b in baselines.values()]
        table.add_row(words, *_interval(report[key]), *by)
    table.add_row("Pearson", *_interval(report["pearson"]))
    table.add_row("Kendall tau, strict", f"{report['strict_tau']:.3f}")
    for top in report["top_k"]:
        table.add_row(f"top-{top['k']} overlap", f"{top['overlap']:.0%}")
    high = report["high_group"]
    if high is not None:
        rest = report["n"] - high["n_high"]
        table.add_row(f"best {high['n_high']} against {rest:,}", f"{high['tau']:.3f}")
    kept = report["order_preservation"]
    if kept is not None:
        table.add_row(
            f"global, of {kept['n_good']}",
            f"{kept['global_mean']:.1f}",
            f"{kept['global_low']:.0f} … {kept['global_high']:.0f}*",
        )
        table.add_row(f"local, best {kept['n_good']}", *_interval(kept["local"]))
        table.caption = (
            f"* {kept['n_good']} best and {kept['n_random']} random ones, 90 % of the draws"
        )
        table.caption_justify = "left"
    return table


def _picks(report: dict[str, Any]) -> Table:
    table = Table(title="What each way of choosing is worth", title_justify="left")
    table.add_column("choice")
    for name in ("truth", "90 % of draws", "below the best", "truly better"):
        table.add_column(name, justify="right")
    for pick in report["picks"]:
        spread = "" if pick["low"] == pick["high"] else f"{pick['low']:.4g} … {pick['high']:.4g}"
        table.add_row(
            pick["name"], f"{pick['mean']:.4g}", spread, f"{pick['regret']:.3g}",
            f"{pick['better']:,}",
        )  # fmt: skip
    return table


def _interval(interval: dict[str, Any]) -> tuple[str, str]:
    return f"{interval['value']:.3f}", f"{interval['low']:.3f} … {interval['high']:.3f}"
