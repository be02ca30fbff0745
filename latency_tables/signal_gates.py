"""Gates that compare latencies with architectures: is there a signal, a sum, an order?

Each function gives (passed, evidence). With too few networks a gate passes and says so: it cannot
tell, and the interval of the latency model shows the same lack.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from latency_tables.arch import Arch
from latency_tables.cost_table import CostTable
from latency_tables.features import CHOICES, Features
from latency_tables.pooling import by_key, pool
from latency_tables.ranking import kendall_tau
from latency_tables.records import Measurement

Array = NDArray[np.float64]

MIN_TAU_NETWORKS = 20
MIN_VARIANCE_NETWORKS = 8
MAX_NETWORKS = 300
N_PERMUTATIONS = 199
MAX_P = 0.05
MIN_VARIANCE_RATIO = 2.0
EXACTLY_ADDITIVE_R2 = 0.99999
MAX_VIOLATIONS = 0.05

_RIDGE = 0.1
_CHOICE_SCALE = 0.3
_SEED = 20_261_122
_WORK_COLUMNS = ("macs", "weight_bytes", "activation_elements")


def signal(
    measurements: Sequence[Measurement], cost_table: CostTable | None = None
) -> tuple[bool, str]:
    """Refuse latencies that do not depend on the network.

    With a cost table and 20 networks: Kendall's tau between latencies and what the other networks
    say about each (leave-one-out ridge on costs and choices) must exceed what shuffled latencies
    give (199 permutations, p ≤ 0.05). Otherwise, with 8 networks of two rounds: the variance
    between networks must be at least twice that of repeating one.
    """
    pooled = [(m[0].arch, pool(m).latency_ms) for m in by_key(measurements).values()]
    known = [(arch, latency) for arch, latency in pooled if arch is not None]
    if cost_table is not None and len(known) >= MIN_TAU_NETWORKS:
        known = known[:MAX_NETWORKS]
        return _tau_signal(cost_table, [a for a, _ in known], np.array([x for _, x in known]))
    return _variance_signal(measurements)


def additive(measurements: Sequence[Measurement]) -> tuple[bool, str]:
    """Warn where latencies are exactly a sum of choices: then they are sums, not measurements."""
    known = [(m[0].arch, pool(m).latency_ms) for m in by_key(measurements).values()]
    archs = [arch for arch, _ in known if arch is not None]
    latency = np.array([x for arch, x in known if arch is not None])
    if not archs or len({frozenset(arch) for arch in archs}) != 1:
        return True, "no architectures to compare with"
    entries = sorted({(label, str(arch[label])) for arch in archs for label in arch})
    one_hot = np.array([[str(a[label]) == value for label, value in entries] for a in archs])
    columns = np.column_stack([np.ones(len(archs)), one_hot]).astype(np.float64)
    rank = int(np.linalg.matrix_rank(columns))
    total = float(((latency - latency.mean()) ** 2).sum())
    if len(archs) < rank + 10 or total == 0:
        return True, f"{len(archs)} networks for {rank} free entries are too few to tell"
    residual = latency - columns @ np.linalg.lstsq(columns, latency)[0]
    r2 = 1.0 - float(residual @ residual) / total
    evidence = f"R² = {r2:.7f} of a sum of {rank} entries over {len(archs)} networks"
    return r2 <= EXACTLY_ADDITIVE_R2, evidence


def monotone(
    measurements: Sequence[Measurement], cost_table: CostTable | None = None
) -> tuple[bool, str]:
    """Warn where networks that do more work in every part are faster beyond noise, too often.

    Work is compared factor by factor of the cost table, or choice by choice where all choices are
    numbers. Pairs whose intervals overlap do not count as violations; up to 5 % are tolerated.
    """
    pooled = [(m[0].arch, pool(m)) for m in by_key(measurements).values()]
    known = [(arch, e) for arch, e in pooled if arch is not None][:MAX_NETWORKS]
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


def _tau_signal(cost_table: CostTable, archs: Sequence[Arch], latency: Array) -> tuple[bool, str]:
    """Cross-validated tau against shuffled latencies; leaving one out is linear in them."""
    features = Features(cost_table)
    raw = features.matrix(cost_table.genes(archs))
    spread = raw.std(axis=0)
    columns = (raw - raw.mean(axis=0)) / np.where(spread > 1e-9 * np.abs(raw).max(), spread, np.inf)
    columns *= np.where(features.group == CHOICES, _CHOICE_SCALE, 1.0)
    n = len(latency)
    gram = columns @ columns.T
    hat = 1.0 / n + gram @ np.linalg.inv(gram + _RIDGE * n * np.eye(n))
    own = np.diag(hat)
    leave_out = (hat - np.diag(own)) / (1.0 - own)[:, None]  # (N, N): ŷ without its own y
    rng = np.random.default_rng(_SEED)
    tau = kendall_tau(leave_out @ latency, latency)
    shuffled = [rng.permutation(latency) for _ in range(N_PERMUTATIONS)]
    as_good = sum(kendall_tau(leave_out @ y, y) >= tau for y in shuffled)
    p = (1 + as_good) / (1 + N_PERMUTATIONS)
    evidence = f"cross-validated tau {tau:.3f} over {n} networks, p = {p:.3f} against shuffled ones"
    if p > MAX_P:
        evidence += ": latencies do not depend on the architecture"
    return p <= MAX_P, evidence


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
