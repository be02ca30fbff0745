"""The charts of the report. Each returns None where there is nothing to draw yet."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from latency_tables.arch import Arch
from latency_tables.estimate import Estimate
from pipeline.report.figures import foretold, interval, latency, percent, quantity, significant
from pipeline.report.model import DeviceReport, Evaluated, FrontRow, ReportData, TrainingPoint
from pipeline.report.svg import Axis, Plot, Point

MAX_DOTS = 2500
"""Grey dots in one chart; of more, an even selection is drawn and the caption says so."""

MAX_STEPS = 320
"""Points of the training curve; neighbouring steps are averaged down to this."""


def accuracy_chart(report: ReportData, device: DeviceReport) -> Markup | None:
    """Accuracy against latency: everything the search saw, the measured front, limit, winner."""
    seen = [e for e in report.evaluations if _finite(e.latency.get(device.name), e.accuracy)]
    front = sorted(
        (r for r in report.front if _finite(r.measured.get(device.name), r.accuracy)),
        key=lambda r: r.measured[device.name].latency_ms,
    )
    if not seen and not front:
        return None
    shown = _thinned(seen)
    xs = [e.latency[device.name].latency_ms for e in shown]
    for row in front:
        xs += [row.measured[device.name].low_ms, row.measured[device.name].high_ms]
    if device.limit_ms is not None:
        xs.append(device.limit_ms)
    ys = [e.accuracy for e in shown] + [r.accuracy for r in front]
    plot = Plot(
        Axis.around("latency in ms", xs, number_tick, floor=0.0),
        Axis.around("accuracy on the search split", ys, percent_tick, floor=0.0),
        caption="Accuracy against latency",
        width=1060,
        height=400,
    )
    if device.limit_ms is not None:
        plot.shade_right_of(device.limit_ms, "beyond")
    for e in sorted(shown, key=lambda e: e.feasible):
        estimate = e.latency[device.name]
        style = "seen" if e.feasible else "seen infeasible"
        plot.dot((estimate.latency_ms, e.accuracy), style, _seen_title(e, estimate), radius=2.6)
    plot.line([(r.measured[device.name].latency_ms, r.accuracy) for r in front], "front-line")
    for row in front:
        _draw_front(plot, row, row.measured[device.name])
    if device.limit_ms is not None:
        _draw_limit(plot, device.limit_ms)
    return plot.svg()


def prediction_chart(front: Sequence[FrontRow], device: DeviceReport) -> Markup | None:
    """Predicted against measured latency of the front; on the diagonal both are equal."""
    name = device.name
    rows = foretold(front, name)
    if not rows:
        return None
    both = [e for r in rows for e in (r.predicted[name], r.measured[name])]
    values = [v for e in both for v in (e.low_ms, e.high_ms)]
    axis = Axis.around("predicted latency in ms", values, number_tick, floor=0.0)
    plot = Plot(
        axis,
        Axis(title="measured latency in ms", low=axis.low, high=axis.high, label=number_tick),
        caption="Predicted against measured latency",
    )
    plot.bar((axis.low, axis.low), (axis.high, axis.high), "diagonal")
    for row in rows:
        p, m = row.predicted[name], row.measured[name]
        plot.bar((p.low_ms, m.latency_ms), (p.high_ms, m.latency_ms), "interval")
        plot.bar((p.latency_ms, m.low_ms), (p.latency_ms, m.high_ms), "interval")
        title = (
            f"predicted {latency(p)} ({interval(p)})\nmeasured {latency(m)} ({interval(m)})\n"
            f"{_arch_words(row.arch)}"
        )
        style = "winner" if row.winner else "measured"
        plot.dot((p.latency_ms, m.latency_ms), style, title, radius=5 if row.winner else 3.6)
    return plot.svg()


def macs_chart(device: DeviceReport) -> Markup | None:
    """MACs against measured latency of the table's networks."""
    if not device.table:
        return None
    points = device.table
    plot = Plot(
        Axis.around("MACs", [p.macs for p in points], _quantity_tick, floor=0.0),
        Axis.around(
            "measured latency in ms",
            [v for p in points for v in (p.low_ms, p.high_ms)],
            number_tick,
            floor=0.0,
        ),
        caption="MACs against measured latency",
    )
    for p in points:
        plot.bar((p.macs, p.low_ms), (p.macs, p.high_ms), "interval")
    for p in points:
        title = f"{quantity(p.macs)} MACs, {significant(p.latency_ms)} ms"
        plot.dot((p.macs, p.latency_ms), "measured", title)
    return plot.svg()


def training_chart(training: Sequence[TrainingPoint]) -> Markup | None:
    """Loss of the supernet over steps: single steps pale, their running mean strong."""
    points = [(float(p.step), p.loss) for p in training if math.isfinite(p.loss)]
    if len(points) < 2:
        return None
    points = _averaged(points, MAX_STEPS)
    smooth = _running_mean(points)
    losses = sorted(y for _, y in points)
    # one blow-up must not flatten the rest: the axis ends at the 99.5 % quantile and the lines clip
    top = losses[min(len(losses) - 1, math.ceil(len(losses) * 0.995) - 1)]
    top = max(top, max(y for _, y in smooth))
    plot = Plot(
        Axis.around("step", [x for x, _ in points], _quantity_tick, floor=0.0),
        Axis.around("training loss", [losses[0], top], number_tick, floor=0.0),
        caption="Training loss",
    )
    plot.line([(x, min(y, plot.y.high)) for x, y in points], "loss")
    plot.line(smooth, "loss-mean")
    return plot.svg()


def _draw_front(plot: Plot, row: FrontRow, estimate: Estimate) -> None:
    at = (estimate.latency_ms, row.accuracy)
    plot.bar((estimate.low_ms, row.accuracy), (estimate.high_ms, row.accuracy), "interval")
    title = (
        f"{percent(row.accuracy)} at {latency(estimate)} measured ({interval(estimate)})\n"
        f"{_arch_words(row.arch)}"
    )
    if row.winner:
        plot.dot(at, "winner-ring", radius=9)
    plot.dot(at, "winner" if row.winner else "measured", title, radius=5 if row.winner else 4)
    if row.winner:
        plot.text(at, f"chosen: {latency(estimate)}", "winner-label", dx=-14, dy=-12, anchor="end")


def _draw_limit(plot: Plot, limit_ms: float) -> None:
    plot.bar((limit_ms, plot.y.low), (limit_ms, plot.y.high), "limit")
    words = f"limit {significant(limit_ms)} ms"
    plot.text((limit_ms, plot.y.low), words, "limit-label", dx=7, dy=-8)


def _seen_title(e: Evaluated, estimate: Estimate) -> str:
    kind = "" if e.feasible else ", beyond a limit"
    return (
        f"{percent(e.accuracy)} at {latency(estimate)} {estimate.source}, "
        f"generation {e.generation}{kind}\n{_arch_words(e.arch)}"
    )


def _arch_words(arch: Arch) -> str:
    return " ".join(str(choice) for choice in arch.values())


def _finite(estimate: Estimate | None, accuracy: float) -> bool:
    return estimate is not None and math.isfinite(accuracy)


def _decimals(step: float) -> int:
    return max(0, -math.floor(math.log10(step) + 1e-9))


def number_tick(value: float, step: float) -> str:
    """A tick with as many decimals as its step has."""
    return f"{value:.{_decimals(step)}f}"


def percent_tick(value: float, step: float) -> str:
    """A share as a percentage."""
    return f"{value * 100:.{_decimals(step * 100)}f} %"


def _quantity_tick(value: float, step: float) -> str:
    for factor, prefix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= factor:
            return f"{value / factor:.{_decimals(step / factor)}f}{prefix}"
    return f"{value:.0f}"


def _thinned(seen: Sequence[Evaluated]) -> Sequence[Evaluated]:
    stride = -(-len(seen) // MAX_DOTS) or 1
    return seen[::stride]


def _averaged(points: Sequence[Point], most: int) -> list[Point]:
    size = -(-len(points) // most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _running_mean(points: Sequence[Point]) -> list[Point]:
    """Centred mean over about a fifteenth of the curve."""
    half = max(1, len(points) // 30)
    means = []
    for i, (x, _) in enumerate(points):
        window = points[max(0, i - half) : i + half + 1]
        means.append((x, sum(y for _, y in window) / len(window)))
    return means
