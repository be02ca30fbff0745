"""What the latency model has to reach on public data, and whether it does.

A target is the median over measured series (sums and refused series left out) of each series' mean
over seeds; "transfer" is a mean over devices, as the published figures are.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from typing import Any, Literal

HELP_TARGETS = ("titan_rtx_256", "gold_6226", "fpga", "pixel2", "raspi4", "eyeriss")
"""Devices on which HELP reports ten-sample transfer."""
TRANSFER = "transfer"
"""Method of rows of the model that starts from other devices' tables."""
TRANSFER_SIZES = (10, 20)
TRANSFER_SEEDS = 10
"""Ten networks are so few that three draws of them say little."""
N_PRIOR = 900
"""Networks of each device that the model starts from."""
_SAME_HARNESS = ("pixel3",)
"""Measured by those who measured some of the targets, so never a prior of them."""


def is_target(series: str) -> bool:
    """Whether a series is of a device that HELP transfers to."""
    return series.startswith("nb201/") and series.removeprefix("nb201/help_") in HELP_TARGETS


def is_prior(series: str) -> bool:
    """Whether a series may be started from: HELP's other devices."""
    device = series.removeprefix("nb201/help_")
    return device != series and device not in (*HELP_TARGETS, *_SAME_HARNESS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """``must`` and ``aim`` bound ``score`` from below (``higher``) or from above."""

    data: str
    series: str
    n: int
    score: str
    must: float | None
    aim: float | None
    higher: bool = True
    over: Literal["median", "mean"] = "median"


def _within(data: str, series: str, rows: Iterable[tuple[int, float, float]]) -> list[Target]:
    return [
        Target(data=data, series=series, n=n, score="within_10", must=must, aim=aim)
        for n, must, aim in rows
    ]


TARGETS = (
    *_within("MnasNet", "mnasnet/*", ((20, 0.75, 0.85), (50, 0.90, 0.95), (100, 0.96, 0.98))),
    *_within("OFA-MBV3", "ofa/*", ((20, 0.88, 0.92), (50, 0.92, 0.95))),
    *_within("FBNet measured", "fbnet/*", ((20, 0.93, 0.96), (50, 0.99, 0.995))),
    Target(
        data="NB201 Pi 5 ONNX", series="nb201/*onnx*", n=50, score="within_10", must=0.96, aim=None
    ),
    Target(
        **{"data": "NB201 Pi 5 ONNX", "series": "nb201/*onnx*", "n": 50, "score": "mape"},
        must=None,
        aim=0.025,
        higher=False,
    ),
    Target(
        **{"data": "NB201 Pi 5 LiteRT", "series": "nb201/pi5-litert*", "n": 50},
        score="within_10",
        must=0.93,
        aim=None,
    ),
    Target(
        **{"data": "NB201 Pi 5 LiteRT", "series": "nb201/pi5-litert*", "n": 50, "score": "mape"},
        must=None,
        aim=0.04,
        higher=False,
    ),
    *_within(
        "NB201 Pi 5 TorchMobile", "nb201/*torchmobile*", ((50, 0.70, 0.80), (300, 0.94, 0.97))
    ),
    Target(
        data="NB201 HELP devices",
        series=TRANSFER,
        n=10,
        score="spearman",
        must=0.935,
        aim=0.955,
        over="mean",
    ),
    Target(data="90 % intervals", series="*", n=50, score="coverage", must=0.85, aim=None),
    Target(
        data="90 % intervals", series="*", n=50, score="coverage", must=0.95, aim=None, higher=False
    ),
    Target(
        data="90 % intervals", series="*", n=50, score="width", must=0.12, aim=0.08, higher=False
    ),
)


def per_series(
    rows: Iterable[Mapping[str, Any]], *, method: str = "ours"
) -> dict[tuple[str, int], dict[str, float]]:
    """(series, N) → scores, each the mean over seeds."""
    grouped: dict[tuple[str, int], list[Mapping[str, float]]] = {}
    for row in rows:
        if row["method"] == method:
            grouped.setdefault((row["series"], row["n"]), []).append(row["scores"])
    return {
        key: {name: statistics.fmean(s[name] for s in found) for name in found[0]}
        for key, found in grouped.items()
    }


def judged(
    found: Mapping[tuple[str, int], Mapping[str, float]],
    transferred: Mapping[tuple[str, int], Mapping[str, float]],
    measured: Sequence[str],
) -> list[dict[str, Any]]:
    """Every target with what was reached; ``ours`` is None where no series of it was run.

    ``found`` and ``transferred`` are scores by series and N without and with other devices' tables.
    """
    rows = []
    for target in TARGETS:
        scored = transferred if target.series == TRANSFER else found
        values = [
            scores[target.score]
            for (series, n), scores in scored.items()
            if n == target.n and target.score in scores and _belongs(target, series, measured)
        ]
        join: Callable[[list[float]], float] = (
            statistics.fmean if target.over == "mean" else statistics.median
        )
        reached = join(values) if values else None
        rows.append(
            {
                **asdict(target),
                "n_series": len(values),
                "ours": reached,
                "passes_must": _keeps(reached, target.must, target.higher),
                "passes_aim": _keeps(reached, target.aim, target.higher),
            }
        )
    return rows


def _belongs(target: Target, series: str, measured: Sequence[str]) -> bool:
    if target.series == TRANSFER:
        return is_target(series)
    return series in measured and fnmatch(series, target.series)


def _keeps(reached: float | None, bound: float | None, higher: bool) -> bool | None:
    if reached is None or bound is None:
        return None
    return reached >= bound if higher else reached <= bound
