"""What hilnas's gates say about a public series.

The sources give medians, sometimes with their spread; a record needs more. What is not known is
filled with the median itself (one round, no spread), so no gate sees noise that nobody measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latency_tables import gates
from latency_tables.records import NS_PER_MS, Measurement, Statistics
from tests.bench.oracle_data.series import Series

MAX_RECORDS = 600
_DEVICE_FP = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Gates that failed, as name → evidence, and whether one of them refuses the series."""

    refused: bool
    failed: dict[str, str]
    n_duplicates: int

    @property
    def measured(self) -> bool:
        """Whether the labels come from whole networks: not refused, and no sums of blocks."""
        return not self.refused and "additive" not in self.failed

    def line(self) -> str:
        """One line for people."""
        said = [f"{name}: {evidence}" for name, evidence in self.failed.items()]
        if self.n_duplicates:
            said.append(
                f"{self.n_duplicates} networks repeat another one (kept together in splits)"
            )
        verdict = "refused" if self.refused else "usable"
        return f"{verdict}; " + ("; ".join(said) or "all gates pass")


def judge(series: Series, *, n: int = MAX_RECORDS) -> Verdict:
    """Run the gates over up to ``n`` networks, drawn by a fixed seed."""
    chosen = np.random.default_rng(0).permutation(len(series.genes))[:n]
    records = [_record(series, int(i)) for i in chosen]
    report = gates.check(records, cost_table=series.space.table)
    failed = {gate.name: gate.evidence for gate in report.gates if not gate.passed}
    return Verdict(
        refused=not report.passed,
        failed=failed,
        n_duplicates=len(series.groups) - len(np.unique(series.groups)),
    )


def _record(series: Series, i: int) -> Measurement:
    median = round(float(series.latency_ms[i]) * NS_PER_MS)
    half = 0 if series.half_ms is None else round(float(series.half_ms[i]) * NS_PER_MS)
    statistics = Statistics(
        n_samples=1,
        n_rounds=1,
        median_ns=median,
        min_ns=median,
        p10_ns=median,
        mean_ns=median,
        std_ns=0,
        mad_ns=0,
        p90_ns=None,
        p95_ns=None,
        p99_ns=None,
        ci_low_ns=median - half,
        ci_high_ns=median + half,
        round_medians_ns=(median,),
        first_ns=median,
        load_ns=0,
        warmup_runs=0,
        converged=True,
    )
    return Measurement(
        net_id=f"{i:064x}",
        arch=series.space.table.arch(series.genes[i]),
        space_id=series.space.name,
        onnx_sha256="",
        artefact_sha256="",
        runtime={"name": "published", "version": "unknown"},
        threads=1,
        cores=(),
        device_name=series.name,
        device_fp=_DEVICE_FP,
        statistics=statistics,
        peak_memory_bytes=None,
        verdicts=(),
        error=None,
        provenance={"session_id": "published"},
    )
