"""How well the latency model predicts public measurements, beside simpler predictors.

Run it with ``python -m tests.bench.oracle_public --data DIR [--json]``. DIR holds files with the
schemas of the public data sets named in :mod:`tests.bench.oracle_data`; every series found is
split by seed into unseen networks and nested training sets. Refused series are named and left out
of the medians, as are series whose labels are sums of blocks.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray

from latency_tables.errors import HilnasError
from tests.bench.oracle_data import Series, read_folder
from tests.bench.oracle_data.gating import Verdict, judge
from tests.bench.oracle_data.rivals import PREDICTORS, Predicted, ours, prior
from tests.bench.oracle_data.scores import interval_scores, point_scores, splits
from tests.bench.oracle_data.targets import (
    N_PRIOR,
    TRANSFER,
    TRANSFER_SEEDS,
    TRANSFER_SIZES,
    is_prior,
    is_target,
    judged,
    per_series,
)

SIZES = (10, 20, 50, 100, 300, 900)
RIVALS = ("macs", "ridge", "boosting")
_SHOWN = ("kendall_tau", "spearman", "mape", "within_5", "within_10")
_INTERVAL = ("coverage", "width", "constant_width")


def evaluate(
    series: Series, sizes: Sequence[int], n_seeds: int, methods: Sequence[str]
) -> list[dict[str, Any]]:
    """A row per seed, size and method; sizes that leave no network to train on are skipped."""
    rows = []
    positive = bool((series.latency_ms > 0).all())
    for seed, split in splits(series.groups, n_seeds):
        truth = series.latency_ms[split.test]
        for n in (n for n in sizes if n <= len(split.rest) and positive):
            for method in methods:
                row: dict[str, Any] = {
                    "series": series.name,
                    "seed": seed,
                    "n": n,
                    "method": method,
                }
                try:
                    found = PREDICTORS[method](series, split.rest[:n], split.test)
                except HilnasError as error:
                    rows.append(
                        {**row, "method": f"{method} (failed)", "scores": {}, "note": str(error)}
                    )
                    continue
                rows.append({**row, "scores": _scores(found, truth), "note": found.note})
    return rows


def transfer(
    targets: Sequence[Series], pool: Sequence[Series], sizes: Sequence[int], n_seeds: int
) -> list[dict[str, Any]]:
    """Rows of the model that starts from tables of ``pool``, of N networks of each target."""
    if not targets or not pool:
        return []
    models = {series.name: prior(series, N_PRIOR) for series in pool}
    rows = []
    for series in targets:
        for seed, split in splits(series.groups, n_seeds):
            for n in sizes:
                found = ours(series, split.rest[:n], split.test, models)
                rows.append(
                    {
                        "series": series.name,
                        "seed": seed,
                        "n": n,
                        "method": TRANSFER,
                        "scores": _scores(found, series.latency_ms[split.test]),
                        "note": found.note,
                    }
                )
    return rows


def _scores(found: Predicted, truth: NDArray[np.float64]) -> dict[str, float]:
    scores = point_scores(found.latency_ms, truth)
    if found.low_ms is not None and found.high_ms is not None:
        scores |= interval_scores(found.latency_ms, found.low_ms, found.high_ms, truth)
    return scores | {"fit_s": found.fit_s, "predict_s": found.predict_s}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run everything and print it as it comes (unless only JSON is wanted)."""
    say = (lambda line: print(line, file=sys.stderr, flush=True)) if options.json else _say
    say(machine())
    found, skipped = read_folder(options.data)
    for line in skipped:
        say(f"skipped {line}")
    rows: list[dict[str, Any]] = []
    verdicts: dict[str, Verdict] = {}
    for series in found:
        if not fnmatch(series.name, options.series):
            continue
        verdicts[series.name] = verdict = judge(series)
        say(f"\n{series.name}: {len(series.genes)} networks; {verdict.line()}")
        for note in series.notes:
            say(f"  {note}")
        if options.gates_only or verdict.refused:
            continue
        new = evaluate(series, options.n, options.seeds, ("ours", *options.rivals))
        rows += new
        for line in _table(new, ("ours", *options.rivals)):
            say(line)
    chosen = [s for s in found if s.name in verdicts and not verdicts[s.name].refused]
    sizes = [n for n in options.n if n in TRANSFER_SIZES]
    targets = [s for s in chosen if is_target(s.name)] if not options.gates_only else []
    pool = [s for s in found if targets and is_prior(s.name) and not judge(s).refused]
    moved = transfer(targets, pool, sizes, max(options.seeds, TRANSFER_SEEDS))
    rows += moved
    if moved:
        say(f"\nTransfer from {N_PRIOR} networks on each of {len(pool)} other devices")
        for series in targets:
            own = [row for row in moved if row["series"] == series.name]
            say(f"{series.name}")
            for line in _table(own, (TRANSFER,)):
                say(line)
    measured = [name for name, verdict in verdicts.items() if verdict.measured]
    return {
        "machine": machine(),
        "sizes": list(options.n),
        "seeds": options.seeds,
        "skipped": skipped,
        "gates": {
            name: {"refused": v.refused, "measured": v.measured, "failed": v.failed}
            for name, v in verdicts.items()
        },
        "rows": rows,
        "medians": _medians(rows, measured),
        "targets": judged(per_series(rows), per_series(rows, method=TRANSFER), measured),
    }


def machine() -> str:
    """The machine and versions that the figures are of."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return (
        f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy "
        f"{np.__version__}, scikit-learn {sklearn.__version__}, {time.strftime('%Y-%m-%d')}"
    )


def _medians(rows: Sequence[dict[str, Any]], measured: Sequence[str]) -> list[dict[str, Any]]:
    """Median over measured series per space, size and method."""
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        scores = per_series(rows, method=method)
        spaces = {(s.split("/")[0], n) for s, n in scores if s in measured}
        for space, n in sorted(spaces):
            own = [
                v
                for (s, m), v in scores.items()
                if (s.split("/")[0], m) == (space, n) and s in measured
            ]
            median = {name: statistics.median(v[name] for v in own) for name in own[0]}
            found.append(
                {"space": space, "n": n, "method": method, "n_series": len(own), "scores": median}
            )
    return found


def _table(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> list[str]:
    lines = [
        f"  {'N':>4} {'method':<9} {'tau':>6} {'spear.':>6} {'MAPE':>7} {'±5 %':>6} {'±10 %':>6} "
        f"{'cover':>6} {'±width':>7} {'const':>7} {'fit s':>7} {'ask s':>6}"
    ]
    by_method = {method: per_series(rows, method=method) for method in methods}
    for key in sorted({key for found in by_method.values() for key in found}, key=lambda k: k[1]):
        for method in methods:
            if key in by_method[method]:
                lines.append(f"  {key[1]:>4} {method:<9} {_line(by_method[method][key])}")
    failed = {(r["n"], r["note"]) for r in rows if r["method"].endswith("(failed)")}
    return lines + [f"  {n:>4} failed: {note}" for n, note in sorted(failed)]


def _line(scores: dict[str, float]) -> str:
    tau, rank, *shares = (scores[name] for name in _SHOWN)
    text = f"{tau:6.3f} {rank:6.3f} {shares[0]:7.1%} {shares[1]:6.1%} {shares[2]:6.1%} "
    text += " ".join(
        f"{scores[x]:>{w}.1%}" if x in scores else " " * w
        for x, w in zip(_INTERVAL, (6, 7, 7), strict=True)
    )
    return f"{text} {scores['fit_s']:7.2f} {scores['predict_s']:6.3f}"


def _summary(found: dict[str, Any]) -> list[str]:
    lines = ["\nMedian over measured series"]
    for space in dict.fromkeys(row["space"] for row in found["medians"]):
        own = [row for row in found["medians"] if row["space"] == space]
        lines.append(f"{space} ({max(row['n_series'] for row in own)} series)")
        named = [{"series": space, **{k: row[k] for k in ("n", "method", "scores")}} for row in own]
        lines += _table(named, list(dict.fromkeys(row["method"] for row in own)))
    lines.append("\nAccuracy to reach (median over series)")
    lines.append(f"{'data':<24} {'N':>4} {'score':<10} {'must':>7} {'aim':>7} {'ours':>7}  verdict")
    for row in found["targets"]:
        must, aim, ours = (_share(row[name], row["score"]) for name in ("must", "aim", "ours"))
        sign = "≥" if row["higher"] else "≤"
        lines.append(
            f"{row['data']:<24} {row['n']:>4} {row['score']:<10} {sign if row['must'] else ' '}"
            f"{must:>6} {aim:>7} {ours:>7}  {_verdict(row)} ({row['n_series']} series)"
        )
    return lines


def _share(value: float | None, score: str) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if score == "spearman" else f"{value:.1%}"


def _verdict(row: dict[str, Any]) -> str:
    if row["ours"] is None:
        return "not run"
    if row["passes_aim"]:
        return "aim reached"
    if row["passes_must"] is None:
        return "aim missed"
    return "must reached" if row["passes_must"] else "MISSED"


def _say(line: str) -> None:
    print(line, flush=True)


def _sizes(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Print the figures; the exit status says whether every "must" that was run is reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of Parquet or CSV files")
    parser.add_argument("--json", action="store_true", help="JSON to standard output")
    parser.add_argument("--series", default="*", help="only series like this, as in 'fbnet/*'")
    parser.add_argument("--n", type=_sizes, default=list(SIZES), help="training sizes, with commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rivals", default=",".join(RIVALS), help="of macs,ridge,boosting,gp")
    parser.add_argument("--gates-only", action="store_true", help="judge the series, fit nothing")
    options = parser.parse_args()
    options.rivals = [name for name in options.rivals.split(",") if name]
    unknown = sorted(set(options.rivals) - set(PREDICTORS))
    if unknown:
        parser.error(f"no rival is called {', '.join(unknown)}; there are {', '.join(PREDICTORS)}")
    try:
        found = measure(options)
    except OSError as error:
        parser.error(f"--data: {error}")
    print("\n".join(_summary(found)), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json.dumps(found, indent=1))
    sys.exit(1 if any(row["passes_must"] is False for row in found["targets"]) else 0)


if __name__ == "__main__":
    main()
