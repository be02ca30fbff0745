"""Charts of the order of networks: scores against truth, and good and random ones followed."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from pipeline.report.charts import number_tick, percent_tick
from pipeline.report.figures import percent, significant
from pipeline.report.rank_evidence import FollowedRow, RankedAgainst
from pipeline.report.svg import Axis, Plot

N_LINES = 5
"""Good and random networks that are drawn, as in Figure 3 of Supernet Shifting."""


def against_chart(found: RankedAgainst | None) -> Markup | None:
    """What ranks networks with inherited weights, against the truth."""
    if found is None or not found.points:
        return None
    scores, truths = zip(*found.points, strict=True)
    by_loss = found.rank_by == "loss"
    name = "minus the loss" if by_loss else "accuracy"
    plot = Plot(
        Axis.around(
            f"{name} with inherited weights", scores, number_tick if by_loss else percent_tick
        ),
        Axis.around("truth", truths, number_tick),
        caption="Scores against truth",
    )
    for score, truth in found.points:
        told = f"loss {significant(-score, 4)}" if by_loss else percent(score)
        plot.dot((score, truth), "measured", f"{told}, truth {significant(truth, 4)}")
    return plot.svg()


def followed_chart(rows: Sequence[FollowedRow]) -> Markup | None:
    """Error of the first good and the first random networks over the generations."""
    if len(rows) < 2:
        return None
    groups = [("loss", [r.random[:N_LINES] for r in rows])]
    groups.append(("front-line", [r.good[:N_LINES] for r in rows]))
    errors = [1 - a for _, series in groups for accuracies in series for a in accuracies]
    plot = Plot(
        _generations(rows),
        Axis.around("error on the search split", errors, percent_tick, floor=0.0),
        caption="Error of good and random networks while the supernet is shifted",
    )
    for style, series in groups:
        for line in zip(*series, strict=True):
            steps = zip(rows, line, strict=True)
            plot.line([(float(row.generations), 1 - a) for row, a in steps], style)
    return plot.svg()


def order_chart(rows: Sequence[FollowedRow]) -> Markup | None:
    """Global (share of the good ones on top) and, where the truth is known, local order."""
    if len(rows) < 2:
        return None
    share = [(float(r.generations), r.global_count / len(r.good)) for r in rows if r.good]
    local = [(float(r.generations), r.local_tau) for r in rows if r.local_tau is not None]
    plot = Plot(
        _generations(rows),
        Axis.around("share on top; tau", [y for _, y in [*share, *local]], number_tick),
        caption="Global and local order while the supernet is shifted",
    )
    plot.line(share, "loss-mean")
    if local:
        plot.line(local, "loss")
    return plot.svg()


def _generations(rows: Sequence[FollowedRow]) -> Axis:
    last = max(row.generations for row in rows)
    return Axis(title="generations", low=0.0, high=max(1.0, last), label=number_tick)
