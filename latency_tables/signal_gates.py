"""Gates that compare latencies with architectures: is there a signal, a sum, an order?

Each function gives (passed, evidence). With too few networks a gate passes and says so: it cannot
tell, and the interval of the latency model shows the same lack.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from latency_tables.arch import Arch
from latency_tables.cost_table import CostTable
from latency_tables.gate_columns import (
    costs,
    counts,
    factor_entries,
    one_hot,
    ranks,
    standardised,
)
from latency_tables.pooling import by_key, pool
from latency_tables.ranking import kendall_tau
from latency_tables.records import Measurement

Array = NDArray[np.float64]

MIN_TAU_NETWORKS = 30
MIN_TAU_WITHOUT_COSTS = 100
"""Choices alone say less than costs: of healthy tables of 60 FBNet networks one in eight fails."""
MIN_VARIANCE_NETWORKS = 8
MAX_NETWORKS = 600
N_PERMUTATIONS = 399
MAX_P = 0.03
MIN_TAU = 0.15
MIN_TAU_FROM = 200
"""From so many networks on, a tau that is significant may still be next to nothing."""
MIN_VARIANCE_RATIO = 2.0
EXACTLY_ADDITIVE_R2 = 0.99999
IMPOSSIBLY_QUIET = 1e-5
"""No measurement repeats to this share of itself."""
MAX_COPIES = 0.01
MAX_VIOLATIONS = 0.05

_RIDGES = (0.1, 1.0, 10.0)
_CHOICE_SCALE = 0.3
_SEED = 20_261_122
_WORK_COLUMNS = ("macs", "weight_bytes", "activation_elements")


def signal(
    measurements: Sequence[Measurement], cost_table: CostTable | None = None
) -> tuple[bool, str]:
    """Refuse latencies that do not depend on the network.

    With 30 networks whose costs are known, or 100 whose architectures are: what a ridge on costs
    and choices explains of the latencies (of their ranks, so that outliers do not count more than
    others) must exceed what it explains of shuffled ones (399 permutations, p ≤ 0.03); from 200
    networks on, Kendall's tau of networks left out must also reach 0.15. Otherwise, with 8 networks
    of two rounds: the variance between networks must be at least twice that of repeating one.
    """
    known = [m for m in by_key(measurements).values() if m[0].arch is not None]
    needed = MIN_TAU_NETWORKS if cost_table is not None else MIN_TAU_WITHOUT_COSTS
    if len(known) < needed:
        passed, evidence = _variance_signal(measurements)
    else:
        known = [known[i] for i in _some(len(known))]
        archs = [m[0].arch for m in known if m[0].arch is not None]
        latency = np.array([pool(m).latency_ms for m in known])
        passed, evidence = _tau_signal(archs, latency, cost_table)
    if passed:
        return True, evidence
    return False, f"no architecture signal: {evidence}; {likely_cause(measurements)}"


def likely_cause(measurements: Sequence[Measurement]) -> str:
    """Say what most likely went wrong where latencies do not depend on the network."""
    groups = list(by_key(measurements).values())
    files = {m[0].artefact_sha256 or m[0].onnx_sha256 for m in groups} - {""}
    latency = np.array([pool(m).latency_ms for m in groups])
    fixed = "likely cause: one fixed file is timed for every network"
    if len(files) == 1 and len(groups) > 1:
        return f"{fixed} (all {len(groups)} ran {next(iter(files))[:12]})"
    if len(set(latency.tolist())) == 1:
        return f"{fixed}, or the timer gives a constant"
    order = np.argsort([str(m[0].provenance.get("utc", "")) for m in groups], kind="stable")
    if len(groups) >= MIN_TAU_NETWORKS:
        drift = kendall_tau(np.arange(len(order))[:MAX_NETWORKS], latency[order][:MAX_NETWORKS])
        if abs(drift) > 0.5:
            return (
                f"{fixed} while the device drifts (latencies follow the order of measuring, "
                f"tau {drift:.2f})"
            )
    alike, _ = _variance_signal(measurements)
    if not alike:
        return f"{fixed} (networks differ no more than repeats of one do)"
    return (
        f"{fixed}, or latencies were joined to the wrong rows: look at what the loop deploys "
        "(artefact_sha256) and at the order of the rows"
    )


def additive(
    measurements: Sequence[Measurement], cost_table: CostTable | None = None
) -> tuple[bool, bool, str]:
    """Find latencies that are exactly a sum: then they are sums, not measurements.

    The sum is one over choices, or (with a cost table) over blocks. Gives (passed, exact,
    evidence). Failed: R², adjusted for the number of entries, exceeds 0.99999. Exact: the residual
    is also smaller than the records' own noise allows, so no measurement can have left it.
    """
    known = [(m[0], pool(m)) for m in by_key(measurements).values() if m[0].arch is not None]
    known = [known[i] for i in _some(len(known))]
    archs = [m.arch for m, _ in known if m.arch is not None]
    latency = np.array([e.latency_ms for _, e in known])
    if len(archs) < 2:
        return True, False, "no architectures to compare with"
    if not np.ptp(latency):
        return True, False, "all latencies are equal"
    designs = [one_hot(archs)]
    if cost_table is not None:
        designs.append(factor_entries(archs, cost_table))
    fits = [fit for fit in (_sum_fit(columns, latency) for columns in designs) if fit is not None]
    if not fits:
        return True, False, f"{len(archs)} networks are too few to tell"
    r2, rank, residual = max(fits)
    noise = float(np.median([e.high_ms - e.low_ms for _, e in known])) / 2 / 1.645
    exact = residual <= max(noise / 3, IMPOSSIBLY_QUIET * float(latency.mean()))
    evidence = f"R² = {r2:.7f} of a sum of {rank} entries over {len(archs)} networks"
    return r2 <= EXACTLY_ADDITIVE_R2, exact, evidence


def copies(measurements: Sequence[Measurement]) -> tuple[bool, str]:
    """Warn where one measurement stands under the names of several networks.

    Isomorphic networks under names of their own, or rows filled up from others: a random split then
    has the same measurement on both sides, and errors look smaller than they are. Equal statistics
    are expected by chance where the clock is coarse; so many do not count.
    """
    seen: dict[tuple[int, ...], set[str]] = defaultdict(set)
    for m in measurements:
        s = m.statistics
        if s is not None:
            seen[s.median_ns, s.mean_ns, s.min_ns, s.std_ns, s.mad_ns].add(m.net_id)
    n = len({m.net_id for m in measurements})
    repeated = sum(len(nets) - 1 for nets in seen.values())
    if n < MIN_VARIANCE_NETWORKS or not repeated:
        return True, f"{n} networks, no measurement under two names"
    medians = sorted({key[0] for key in seen})
    tick = min((b - a for a, b in itertools.pairwise(medians)), default=1)
    cells = max(1.0, (medians[-1] - medians[0]) / tick)
    chance = n - cells * -np.expm1(n * np.log1p(-1.0 / cells)) if cells > 1 else float(n)
    shared = sum(len(nets) for nets in seen.values() if len(nets) > 1)
    evidence = f"{shared} of {n} networks share a measurement with another one"
    passed = repeated <= MAX_COPIES * n + 5.0 * chance
    return passed, evidence + ("" if passed else ": keep them together in every split")


def monotone(
    measurements: Sequence[Measurement], cost_table: CostTable | None = None
) -> tuple[bool, str]:
    """Warn where networks that do more work in every part are faster beyond noise, too often.

    Work is compared factor by factor of the cost table, or choice by choice where all choices are
    numbers. Pairs whose intervals overlap do not count as violations; up to 5 % are tolerated.
    """
    pooled = [(m[0].arch, pool(m)) for m in by_key(measurements).values()]
    known = [(arch, e) for arch, e in pooled if arch is not None]
    known = [known[i] for i in _some(len(known))]
    work = _work([arch for arch, _ in known], cost_table)
    if work is None or len(known) < 2:
        return True, "no networks whose work can be compared"
    less = np.ones((len(known), len(known)), dtype=np.bool_)
    for part in work.T:  # (N,) of one factor and column
        less &= part[:, None] <= part[None, :]
    less &= ~less.T  # of equal work: no order
    low = np.array([e.low_ms for _, e in known])
    high = np.array([e.high_ms for _, e in known])
    wrong = less & (low[:, None] > high[None, :])
    n_pairs, n_wrong = int(less.sum()), int(wrong.sum())
    evidence = f"{n_wrong} of {n_pairs} comparable pairs: more work, yet faster beyond noise"
    if n_wrong:
        gap = np.where(wrong, low[:, None] / high[None, :], 0.0)
        i, j = np.unravel_index(int(gap.argmax()), gap.shape)
        small, large = known[int(i)][1].latency_ms, known[int(j)][1].latency_ms
        evidence += f"; worst: {small:.4g} ms against {large:.4g} ms"
    return n_wrong <= MAX_VIOLATIONS * n_pairs, evidence


def _some(n: int) -> list[int]:
    """Up to MAX_NETWORKS of n positions, the same ones each time."""
    if n <= MAX_NETWORKS:
        return list(range(n))
    chosen = np.random.default_rng(_SEED).choice(n, MAX_NETWORKS, replace=False)
    return sorted(chosen.tolist())


def _tau_signal(
    archs: Sequence[Arch], latency: Array, cost_table: CostTable | None
) -> tuple[bool, str]:
    """What costs and choices explain of the latencies' ranks, against shuffled latencies.

    Several sets of columns, several strengths of a ridge: what each explains, and how well it
    predicts networks left out, is standardised over the shuffles; the best score counts, for
    shuffled latencies as for the real ones, which makes the test exact. The tau is cross-validated
    and keeps tiny effects of large tables out.
    """
    coarse = [standardised(counts(archs))]
    if cost_table is not None:
        coarse.append(standardised(costs(archs, cost_table)))
    together = np.concatenate([*coarse, _CHOICE_SCALE * standardised(one_hot(archs))], axis=1)
    y = ranks(latency) - ranks(latency).mean()
    rng = np.random.default_rng(_SEED)
    shuffled = np.stack([y, *(rng.permutation(y) for _ in range(N_PERMUTATIONS))])  # (1 + P, N)
    best, tau = np.full(len(shuffled), -np.inf), -1.0
    for columns in (*coarse, together):
        values, vectors = np.linalg.eigh(columns @ columns.T / max(1, columns.shape[1]))
        power = (shuffled @ vectors) ** 2  # (1 + P, N)
        for ridge in _RIDGES:
            share = np.maximum(values, 0.0) / (np.maximum(values, 0.0) + ridge)
            left_out = _left_out(vectors, share, shuffled)
            for score in (power @ share, _correlations(left_out, shuffled)):
                spread = float(score.std())
                if spread > 0:
                    best = np.maximum(best, (score - score.mean()) / spread)
            tau = max(tau, kendall_tau(left_out[0], y))
    p = float((best >= best[0]).mean())  # the real one counts as one of them
    evidence = (
        f"cross-validated tau {tau:.3f} over {len(y)} networks, p = {p:.3f} against shuffled ones"
    )
    return p <= MAX_P and (tau >= MIN_TAU or len(y) < MIN_TAU_FROM), evidence


def _left_out(vectors: Array, share: Array, y: Array) -> Array:
    """What the other networks say about each, for every row of y (P, N)."""
    hat = 1.0 / len(vectors) + (vectors * share) @ vectors.T
    own = np.diag(hat)
    return np.asarray((y @ hat - own * y) / np.maximum(1.0 - own, 1e-6))


def _correlations(first: Array, second: Array) -> Array:
    """Correlation of each row (P, N) with its counterpart."""
    a = first - first.mean(axis=1, keepdims=True)
    b = second - second.mean(axis=1, keepdims=True)
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.asarray((a * b).sum(axis=1) / np.where(scale > 0, scale, 1.0))


def _sum_fit(columns: Array, latency: Array) -> tuple[float, int, float] | None:
    """Adjusted R², rank and residual deviation of a sum of entries; None where it saturates."""
    n = len(latency)
    design = np.column_stack([np.ones(n), columns])
    rank = int(np.linalg.matrix_rank(design)) if design.shape[1] < 2 * n else n
    if n < rank + 10:
        return None
    residual = latency - design @ np.linalg.lstsq(design, latency)[0]
    variance = float(residual @ residual) / (n - rank)
    return 1.0 - variance / float(latency.var(ddof=1)), rank, variance**0.5


def _variance_signal(measurements: Sequence[Measurement]) -> tuple[bool, str]:
    """Variance between networks against the variance of a network's own median."""
    logs: list[float] = []
    runs: dict[tuple[str, int], list[Array]] = defaultdict(list)
    for records in by_key(measurements).values():
        stats = records[-1].statistics
        if stats is None or len(stats.round_medians_ns) < 2 or min(stats.round_medians_ns) <= 0:
            continue
        rounds = np.log(np.array(stats.round_medians_ns, dtype=np.float64))
        logs.append(float(np.log(stats.median_ns)))
        runs[records[-1].run_id, len(rounds)].append(rounds)
    if len(logs) < MIN_VARIANCE_NETWORKS:
        return True, f"{len(logs)} networks with repeated rounds are too few to tell"
    between, within = float(np.var(logs, ddof=1)), _repeat_variance(runs)
    if between == 0:
        return False, f"all {len(logs)} networks have the same latency"
    evidence = (
        f"{len(logs)} networks differ by {between**0.5:.2%}, repeating one by {within**0.5:.2%}"
    )
    return between >= MIN_VARIANCE_RATIO * within, evidence


def _repeat_variance(runs: Mapping[tuple[str, int], Sequence[Array]]) -> float:
    """Mean variance of a network's mean over rounds.

    Networks of one run share their rounds, so what moved all of them together (the board got
    warmer) is taken out first.
    """
    total = count = 0.0
    for (_, n_rounds), networks in runs.items():
        rounds = np.array(networks)  # (n_networks, n_rounds)
        residual = rounds - rounds.mean(axis=1, keepdims=True)
        freedom = n_rounds - 1.0
        if len(networks) > 1:
            residual -= residual.mean(axis=0)
            freedom *= 1.0 - 1.0 / len(networks)
        total += float((residual**2).sum()) / freedom / n_rounds
        count += len(networks)
    return total / count


def _work(archs: Sequence[Arch], cost_table: CostTable | None) -> Array | None:
    """Work per network and part, (N, n_parts), or None where it cannot be told."""
    if not archs:
        return None
    if cost_table is not None:
        at = [i for i, c in enumerate(cost_table.columns) if c.name in _WORK_COLUMNS]
        if at:
            values = cost_table.factor_values(cost_table.genes(archs))[:, :, at]
            return values.reshape(len(archs), -1)
    labels = sorted(archs[0])
    if any(sorted(arch) != labels for arch in archs):
        return None
    rows = [[arch[label] for label in labels] for arch in archs]
    if any(isinstance(value, str) for row in rows for value in row):
        return None
    return np.array(rows, dtype=np.float64)
