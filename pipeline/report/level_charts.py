"""Charts of the levels of cost that ShiftNAS trains: how often each, and what each has learnt."""

from __future__ import annotations

import math

from markupsafe import Markup

from pipeline.report.charts import number_tick, percent_tick
from pipeline.report.figures import percent, quantity, significant
from pipeline.report.model import LevelHistory
from pipeline.report.svg import Axis, Plot, Point

N_TONES = 8
"""Colours in style.css; further levels start again with the first."""
MOST_POINTS = 320


def level_name(history: LevelHistory, level: int) -> str:
    """``"level 1, 1.30 GMAC"``."""
    target = history.targets[level]
    shown = f"{significant(target)} ms" if history.unit == "ms" else quantity(target, history.unit)
    return f"level {level + 1}, {shown}"


def probability_chart(history: LevelHistory | None) -> Markup | None:
    """Share of training that B gives each level, over the steps; dashed: all equally often."""
    if history is None or len(history.points) < 2:
        return None
    points = history.points[:: -(-len(history.points) // MOST_POINTS)]
    series = [
        [(float(p.step), p.probabilities[k]) for p in points] for k in range(len(history.targets))
    ]
    uniform = 1 / len(history.targets)
    values = [y for line in series for _, y in line]
    plot = Plot(
        _steps(history),
        Axis.around("probability of the level", [0.0, uniform, *values], percent_tick, floor=0.0),
        caption="Probability of every level of cost",
    )
    plot.bar((plot.x.low, uniform), (plot.x.high, uniform), "diagonal")
    _draw(plot, history, series)
    return plot.svg()


def loss_chart(history: LevelHistory | None) -> Markup | None:
    """Loss of every level on held-out images, over the steps."""
    if history is None:
        return None
    series: list[list[Point]] = [[] for _ in history.targets]
    for point in history.points:
        for line, loss in zip(series, point.losses, strict=True):
            if loss is not None and math.isfinite(loss):
                line.append((float(point.step), loss))
    series = [line[:: -(-len(line) // MOST_POINTS) or 1] for line in series]
    losses = [y for line in series for _, y in line]
    if len(losses) < 2:
        return None
    plot = Plot(
        _steps(history),
        Axis.around("loss on held-out images", losses, number_tick, floor=0.0),
        caption="Loss of every level of cost",
    )
    _draw(plot, history, series)
    return plot.svg()


def entropy_chart(history: LevelHistory | None) -> Markup | None:
    """Entropy of B over the steps, as a share of the greatest."""
    if history is None or len(history.points) < 2 or len(history.targets) < 2:
        return None
    most = math.log(len(history.targets))
    points = history.points[:: -(-len(history.points) // MOST_POINTS)]
    line = [(float(p.step), p.entropy / most) for p in points]
    plot = Plot(
        _steps(history),
        Axis(title="entropy of B", low=0.0, high=1.05, label=percent_tick),
        caption="Entropy of the distribution over levels",
    )
    plot.line(line, "loss-mean")
    return plot.svg()


def level_key(history: LevelHistory | None) -> tuple[tuple[str, str], ...]:
    """Name and CSS class of every level, with its probability at the end."""
    if history is None or not history.points:
        return ()
    last = history.points[-1].probabilities
    return tuple(
        (f"{level_name(history, k)}: {percent(last[k])}", _tone(k))
        for k in range(len(history.targets))
    )


def _draw(plot: Plot, history: LevelHistory, series: list[list[Point]]) -> None:
    for k, line in enumerate(series):
        if len(line) > 1:
            plot.line(line, f"level {_tone(k)}")
        for x, y in line[-1:]:
            plot.dot((x, y), f"level-end {_tone(k)}", level_name(history, k))


def _tone(level: int) -> str:
    return f"op{level % N_TONES}"


def _steps(history: LevelHistory) -> Axis:
    steps = [float(p.step) for p in history.points]
    return Axis.around("step", steps, number_tick, floor=0.0)
