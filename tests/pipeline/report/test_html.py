from __future__ import annotations

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

from latency_tables.arch import Arch, Decision
from latency_tables.records import Verdict
from pipeline.report.drawing import blocks_of
from pipeline.report.html import OPEN_ROWS, render_html, write_report
from pipeline.report.model import (
    Block,
    Command,
    DeviceReport,
    MeasuredRow,
    ReportData,
    StageTime,
    TrainingPoint,
)

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'>&{{7*7}}"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, attributes and visible text, and checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def full(samples: ModuleType) -> str:
    return render_html(samples.full_report())


def test_the_numbers_of_the_run_appear(full: str) -> None:
    text = Page(full).text
    for wanted in (
        "95.6 %",  # 344 / 360
        "92.9 % … 97.2 % on 360 images",
        "611 kB",
        "148 k parameters",
        "2.41 M",
        "450",
        "of 1,048,576",
        "limit 0.340 ms",
        "opset 18, IR 8",
        "2.6e-06 on 64 real images",
        "ab12" * 16,
        "1 min 12 s",
        "17 measurements: 1 failed, 1 with warnings",
        "THROTTLED",
        "1.9 → 1.2 GHz in round 2",
        "2026-11-22 12:34:56 UTC",
        "hilnas check runs/digits",
    ):
        assert wanted in text, wanted


def test_the_page_is_well_formed(full: str) -> None:
    assert Page(full).tags.count("svg") == 4


def test_the_page_loads_and_runs_nothing(full: str) -> None:
    page = Page(full)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not [a for a in page.attributes if a[0] in {"src", "href", "srcset", "data", "action"}]
    assert not [a for a in page.attributes if a[0].startswith("on")]
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", full)
    assert "default-src 'none'" in full


def test_equal_runs_give_equal_pages(samples: ModuleType, full: str) -> None:
    assert render_html(samples.full_report()) == full


def test_every_scored_network_and_every_table_network_is_drawn(full: str) -> None:
    assert full.count('class="seen"') + full.count('class="seen infeasible"') == 450
    assert full.count("MACs, ") >= 40


def test_the_chosen_network_is_drawn_block_by_block(samples: ModuleType, full: str) -> None:
    blocks = samples.full_report().winner.blocks
    assert len(re.findall(r'<li class="block ', full)) == len(blocks) == 12
    assert len(re.findall(r'<li class="block fixed"', full)) == 2
    assert "out of k3, k5, k7, xception" in full


def test_the_front_stands_in_the_table_best_first(full: str) -> None:
    table = full[full.index("<h2>The front</h2>") : full.index("<h2>Limits</h2>")]
    accuracies = [float(x) for x in re.findall(r'<td class="n">([\d.]+) %</td>', table)]
    assert len(accuracies) == 8
    assert accuracies == sorted(accuracies, reverse=True)
    assert table.count(">chosen<") == 1


def test_a_failed_measurement_is_never_folded_away(samples: ModuleType) -> None:
    page = render_html(samples.full_report())
    assert page.index("THROTTLED") < page.index("<details>")
    assert f"{17 - OPEN_ROWS} more" in page


def test_a_broken_limit_is_said_at_the_top(samples: ModuleType) -> None:
    report = samples.full_report()
    device = dataclasses.replace(report.devices[0], limit_ms=0.1)
    page = Page(render_html(dataclasses.replace(report, devices=(device,))))
    assert "The chosen network breaks a limit:" in page.text
    assert "Every limit is kept" not in page.text


def test_an_interval_beyond_the_limit_is_not_called_safe(samples: ModuleType) -> None:
    report = samples.full_report()
    chosen = report.winner.latency["local"]
    limit_ms = (chosen.latency_ms + chosen.high_ms) / 2
    device = dataclasses.replace(report.devices[0], limit_ms=limit_ms)
    page = Page(render_html(dataclasses.replace(report, devices=(device,), limits=())))
    assert "Every limit is kept, but narrowly." in page.text


def test_several_devices_are_shown_side_by_side(samples: ModuleType) -> None:
    page = Page(render_html(samples.full_report(devices=("local", "rk3588-a"))))
    assert page.tags.count("svg") == 7
    assert "Latency on rk3588-a" in page.text
    assert "Measured on rk3588-a" in page.text


def test_an_empty_run_renders() -> None:
    page = Page(render_html(ReportData(run_name="empty", created_utc="2026-11-22T12:00:00Z")))
    assert "No network has been chosen yet." in page.text
    assert "svg" not in page.tags


@pytest.mark.parametrize(
    "missing",
    [{"winner": None}, {"front": ()}, {"evaluations": ()}, {"devices": ()}, {"training": ()},
     {"space": None}, {"stages": ()}, {"evaluations": (), "front": (), "winner": None}],
)  # fmt: skip
def test_a_run_with_a_part_missing_renders(samples: ModuleType, missing: dict) -> None:
    assert "digits" in Page(render_html(samples.full_report(**missing))).text


def test_a_failed_run_says_what_failed(samples: ModuleType) -> None:
    report = samples.full_report(
        winner=None,
        failure="loss became NaN at step 120",
        stages=(StageTime(name="train", seconds=12, status="failed", note="DivergedError"),),
    )
    text = Page(render_html(report)).text
    assert "This run did not finish. loss became NaN at step 120" in text
    assert "DivergedError" in text


def test_hostile_texts_are_escaped_everywhere(samples: ModuleType) -> None:
    report = samples.full_report(devices=(EVIL,))
    verdict = Verdict(code=EVIL, severity="warn", evidence=EVIL)
    row = MeasuredRow(
        what=EVIL, utc=EVIL, profile=EVIL, latency=samples.estimate(1.0), verdicts=(verdict,)
    )
    failed = MeasuredRow(what=EVIL, utc="", profile="", latency=None, reason=EVIL)
    device = dataclasses.replace(
        report.devices[0], measured=(row, failed), identity={EVIL: {EVIL: EVIL}}, runtime=EVIL,
        fingerprint=EVIL, limit_source=EVIL,
    )  # fmt: skip
    block = Block(name=EVIL, choice=EVIL, choices=(EVIL, "b"), macs=1.0)
    winner = dataclasses.replace(report.winner, blocks=(block,), arch=Arch({EVIL: EVIL}))
    front = tuple(
        dataclasses.replace(r, verdicts=(verdict,), arch=Arch({EVIL: EVIL})) for r in report.front
    )
    limits = tuple(dataclasses.replace(limit, name=EVIL) for limit in report.limits)
    page = render_html(
        dataclasses.replace(
            report,
            run_name=EVIL,
            created_utc=EVIL,
            strategy=EVIL,
            classes=(EVIL,),
            data={EVIL: EVIL},
            hashes={EVIL: EVIL},
            versions={"hilnas": EVIL},
            failure=EVIL,
            commands=(Command(text=EVIL, why=EVIL),),
            devices=(device,),
            winner=winner,
            front=front,
            limits=limits,
            stages=(StageTime(name=EVIL, seconds=1, status="failed", note=EVIL),),
        )
    )
    parsed = Page(page)
    assert not {"script", "img"} & set(parsed.tags)
    assert not [a for a in parsed.attributes if a[0].startswith("on")]
    assert "{{7*7}}" in parsed.text
    assert "alert(1)" in parsed.text


def test_control_characters_and_direction_tricks_do_not_reach_the_page(samples) -> None:
    page = render_html(samples.full_report(run_name="a\x1b[2J\u202eb\u200bc\x00"))
    assert not re.search("[\x00\x1b\u202e\u200b]", page)


def test_odd_numbers_do_not_break_charts(samples: ModuleType) -> None:
    report = samples.full_report()
    flat = tuple(dataclasses.replace(p, macs=1e6) for p in report.devices[0].table)
    device = dataclasses.replace(report.devices[0], table=flat[:1])
    training = (TrainingPoint(step=0, loss=math.nan), TrainingPoint(step=1, loss=1.0),
                TrainingPoint(step=2, loss=1.0))  # fmt: skip
    one = tuple(dataclasses.replace(e, accuracy=0.5) for e in report.evaluations[:1])
    page = render_html(
        dataclasses.replace(report, devices=(device,), training=training, evaluations=one, front=())
    )
    assert "nan" not in page.lower().replace("nano", "")
    assert Page(page).tags.count("svg") == 3


def test_a_device_without_measurements_renders() -> None:
    report = ReportData(
        run_name="r", created_utc="2026-11-22T12:00:00Z", devices=(DeviceReport(name="b"),)
    )
    assert "Nothing was measured on this device yet." in Page(render_html(report)).text


def test_the_data_of_a_report_are_plain_json(samples: ModuleType) -> None:
    data = json.loads(json.dumps(samples.full_report().to_dict(), allow_nan=False))
    assert data["winner"]["latency"]["local"]["source"] == "measured"
    assert len(data["evaluations"]) == 450


def test_blocks_follow_the_positions_of_the_space() -> None:
    decisions = [Decision(label="b1", choices=("k3", "k5"))]
    blocks = blocks_of([("stem", ()), ("b1", ("b1",))], decisions, Arch({"b1": "k5"}), {"b1": 7.0})
    assert [(b.name, b.choice, b.choices, b.macs) for b in blocks] == [
        ("stem", "fixed", (), None), ("b1", "k5", ("k3", "k5"), 7.0)
    ]  # fmt: skip


def test_the_report_is_written_whole(samples: ModuleType, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", samples.full_report())
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>")


def test_a_page_for_several_boards_has_a_row_per_network(samples: ModuleType) -> None:
    text = render_html(samples.boards_report())
    page = " ".join(Page(text).words)
    assert "A network for each device, and one for all" in page
    assert "boards/rpi4" in page
    assert "none of the 8 subnets keeps every limit" in page
    assert text.count("measured, ") >= 3  # every latency of the table says what it is


def test_a_page_without_a_network_for_all_says_why(samples: ModuleType) -> None:
    report = samples.boards_report(winner=None, front=(), no_common=EVIL)
    text = render_html(report)
    assert "There is no network for all devices." in text
    assert "<script>" not in text
