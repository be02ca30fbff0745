from __future__ import annotations

import dataclasses
import math
import re
from types import ModuleType

from pipeline.report.html import render_html
from pipeline.report.level_charts import (
    entropy_chart,
    level_key,
    loss_chart,
    probability_chart,
)
from pipeline.report.model import LevelHistory, LevelPoint
from pipeline.run.collect_levels import level_history


def history(n_points: int = 5, n_levels: int = 3, *, known: bool = True) -> LevelHistory:
    """Made up: the last level gains what the first one loses."""
    points = []
    for i in range(n_points):
        shares = [1.0] * n_levels
        moved = 0.5 * i / n_points
        shares[0], shares[-1] = shares[0] - moved, shares[-1] + moved
        p = tuple(share / n_levels for share in shares)
        losses = tuple(2.0 - 0.1 * i - 0.01 * k if known else None for k in range(n_levels))
        entropy = -sum(x * math.log(x) for x in p)
        points.append(
            LevelPoint(step=10 * (i + 1), probabilities=p, losses=losses, entropy=entropy)
        )
    targets = tuple(1e8 * (k + 1) for k in range(n_levels))
    return LevelHistory(cost="macs", unit="MAC", targets=targets, points=tuple(points))


def lines_in(chart: object) -> int:
    return len(re.findall("<polyline", str(chart)))


def test_every_level_has_a_line_in_both_charts_and_a_colour_in_the_key() -> None:
    found = history()
    assert lines_in(probability_chart(found)) == lines_in(loss_chart(found)) == 3
    assert lines_in(entropy_chart(found)) == 1
    assert level_key(found) == (
        ("level 1, 100 MMAC: 20.0 %", "op0"),
        ("level 2, 200 MMAC: 33.3 %", "op1"),
        ("level 3, 300 MMAC: 46.7 %", "op2"),
    )


def test_a_level_in_milliseconds_is_called_so() -> None:
    found = dataclasses.replace(history(), cost="latency:pi", unit="ms", targets=(1.5, 2.0, 2.5))
    assert level_key(found)[0][0].startswith("level 1, 1.50 ms")


def test_losses_that_nobody_knows_are_not_drawn() -> None:
    assert loss_chart(history(known=False)) is None
    some = history()
    first = dataclasses.replace(some.points[0], losses=(None, 1.0, math.nan))
    assert lines_in(loss_chart(dataclasses.replace(some, points=(first, *some.points[1:])))) == 3


def test_nothing_is_drawn_of_what_was_not_logged() -> None:
    for chart in (probability_chart, loss_chart, entropy_chart):
        assert chart(None) is None
        assert chart(history(1)) is None or chart is loss_chart
    assert level_key(None) == ()


def test_a_long_run_is_drawn_with_few_points() -> None:
    chart = str(probability_chart(history(5000, known=False)))
    (first, *_) = re.findall('points="([^"]+)"', chart)
    assert len(first.split()) <= 320


def test_the_report_shows_levels_where_there_are_any(samples: ModuleType) -> None:
    page = render_html(samples.full_report(levels=history()))
    assert "Levels of cost" in page
    assert "level 3, 300 MMAC: 46.7 %" in page
    assert "Levels of cost" not in render_html(samples.full_report())


def test_levels_are_read_from_the_lines_of_the_log() -> None:
    row = {
        "level_cost": "macs", "level_unit": "MAC", "level_targets": [1.0, 2.0],
        "level_probabilities": [0.25, 0.75], "level_losses": [None, 1.5], "level_entropy": 0.56,
    }  # fmt: skip
    found = level_history([{"step": 5, "loss": 1.0, **row}, {"step": 10, "loss": 0.9, **row}])
    assert found is not None
    assert [p.step for p in found.points] == [5, 10]
    assert found.points[0].losses == (None, 1.5)
