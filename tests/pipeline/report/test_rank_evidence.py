"""What the report says about the order of networks."""

from __future__ import annotations

import dataclasses
import io
from types import ModuleType

import pytest
from rich.console import Console

from latency_tables.arch import Arch
from pipeline.report.html import TIE_ROWS, render_html
from pipeline.report.model import ReportData
from pipeline.report.rank_charts import against_chart, followed_chart, order_chart
from pipeline.report.rank_evidence import (
    FollowedRow,
    RankedAgainst,
    RankEvidence,
    RankStability,
    Tie,
)
from pipeline.report.terminal import print_report

HEADING = "How much the choice depends on the images"
EVIL = "<script>alert(1)</script>"


def tie(difference: float) -> Tie:
    return Tie(
        arch=Arch({"block01": "k3"}), accuracy=0.9 - difference, difference=difference,
        low=difference - 0.02, high=difference + 0.02,
    )  # fmt: skip


def stability(significant: bool | None = False, n_ties: int = 3, name: str = "") -> RankStability:
    return RankStability(
        name=name,
        words="rank stability: tau 0.16 between two halves",
        significant=significant,
        ties=tuple(tie(i / 1000) for i in range(n_ties)),
    )


def against(source: str = "table.csv") -> RankedAgainst:
    return RankedAgainst(
        source=source, n_images=1000, tau=0.71, low=0.68, high=0.74, level=0.95,
        baselines=(("MACs", 0.55),), points=((0.5, 90.0), (0.6, 91.0), (0.4, 89.0)),
    )  # fmt: skip


def rows(local: float | None = 0.3, n: int = 3) -> tuple[FollowedRow, ...]:
    return tuple(
        FollowedRow(
            generations=i, good=tuple(0.7 + i / 100 + k / 1000 for k in range(10)),
            random=tuple(0.5 - k / 1000 for k in range(20)), global_count=8.0, local_tau=local,
        )
        for i in range(n)
    )  # fmt: skip


def page(samples: ModuleType, **order: object) -> str:
    return render_html(
        dataclasses.replace(samples.full_report(), order=RankEvidence(**order))  # type: ignore[arg-type]
    )


def test_a_winner_that_is_not_significant_is_marked_and_its_ties_are_listed(
    samples: ModuleType,
) -> None:
    html = page(samples, stability=(stability(False),))
    assert HEADING in html
    assert "rank stability: tau 0.16" in html
    assert "not significant</span>" in html
    assert "<details open><summary>3 networks as good as the chosen one" in html
    assert "-2.00 % … 2.00 %" in html


def test_ties_of_a_significant_winner_are_folded_away(samples: ModuleType) -> None:
    html = page(samples, stability=(stability(True),))
    assert "not significant</span>" not in html
    assert "<details><summary>3 networks as good as the chosen one" in html


def test_of_many_ties_the_closest_are_shown(samples: ModuleType) -> None:
    html = page(samples, stability=(stability(False, n_ties=30),))
    assert f"30 networks as good as the chosen one on these images, the closest {TIE_ROWS}" in html
    assert html.count("% … ") - page(samples).count("% … ") == TIE_ROWS


def test_each_device_has_its_line(samples: ModuleType) -> None:
    html = page(samples, stability=(stability(), stability(True, name=EVIL)))
    assert html.count("rank stability: tau 0.16") == 2
    assert EVIL not in html


def test_a_run_without_evidence_has_no_section_about_it(samples: ModuleType) -> None:
    html = page(samples)
    assert HEADING not in html
    assert "keeps the order of networks" not in html


def test_scores_stand_beside_the_truth(samples: ModuleType) -> None:
    html = page(samples, against=against(EVIL))
    assert "3 networks of &lt;script&gt;" in html
    assert "0.71 (95 % interval 0.68 … 0.74); by MACs alone 0.55" in html
    chart = against_chart(against())
    assert chart is not None
    assert chart.count("<circle") == 3


def test_five_good_and_five_random_networks_are_drawn(samples: ModuleType) -> None:
    assert "Error of five good networks" in page(samples, followed=rows())
    chart = followed_chart(rows())
    assert chart is not None
    assert (chart.count('class="front-line"'), chart.count('class="loss"')) == (5, 5)


@pytest.mark.parametrize(("local", "n_lines"), [(0.3, 2), (None, 1)])
def test_local_order_is_drawn_where_the_truth_is_known(local: float | None, n_lines: int) -> None:
    chart = order_chart(rows(local))
    assert chart is not None
    assert chart.count("<polyline") == n_lines


def test_a_single_step_is_no_curve() -> None:
    assert followed_chart(rows(n=1)) is None
    assert order_chart(rows(n=1)) is None


@pytest.mark.parametrize("significant", [True, False, None])
def test_the_terminal_has_the_line_of_every_search(significant: bool | None) -> None:
    order = RankEvidence(stability=(stability(significant, name="rpi4"),))
    stream = io.StringIO()
    report = ReportData(run_name="r", created_utc="", order=order)
    print_report(report, Console(file=stream, width=120))
    assert "rpi4: rank stability: tau 0.16 between two halves" in stream.getvalue()
