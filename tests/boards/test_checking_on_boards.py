"""``check`` where it matters: an export on boards of another architecture and of two speeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_agents.files.budget import Limit
from pipeline.export.device_check import Baseline, DeviceCheck, check_on_device
from tests.boards.conftest import Measure
from tests.boards.exports import Export, export_to
from tests.fakes.emulated_board.boot import EmulatedBoard

pytestmark = pytest.mark.board

GENEROUS = Limit(metric="latency_ms", relation="<=", bound=1e4)
IMPOSSIBLE = Limit(metric="latency_ms", relation="<=", bound=1e-6)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    return export_to(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def report(export: Export, fast_board: EmulatedBoard, measurer_of: Measure) -> DeviceCheck:
    return check_on_device(
        export.folder,
        measurer_of(fast_board, peak_memory=True),
        [(export.images, export.labels)],
        limits=[GENEROUS, IMPOSSIBLE],
    )


@pytest.fixture
def baseline(report: DeviceCheck, tmp_path: Path) -> Baseline:
    report.write(tmp_path / "earlier.json")
    return Baseline.read(tmp_path / "earlier.json")


def test_the_board_computes_what_torch_computed_and_is_as_accurate(
    report: DeviceCheck, export: Export
) -> None:
    assert report.golden.n_images == 4
    assert report.golden.ok
    assert report.accuracy is not None
    assert report.accuracy.n_images == 24
    assert report.accuracy.n_correct == export.host_correct == 16


def test_limits_are_judged_by_what_the_board_measured(report: DeviceCheck) -> None:
    assert [judgement.outcome for judgement in report.judgements] == ["pass", "fail"]
    assert report.outcome == "fail"


def test_the_same_board_is_no_regression_to_itself(
    export: Export, fast_board: EmulatedBoard, measurer_of: Measure, baseline: Baseline
) -> None:
    measurer = measurer_of(fast_board, peak_memory=True)
    found = check_on_device(export.folder, measurer, baseline=baseline)
    assert [judgement.limit.metric for judgement in found.judgements] == [
        "latency_ms",
        "peak_memory_bytes",
    ]
    assert found.outcome == "pass"


def test_a_slower_board_is_a_regression_of_latency_alone(
    export: Export, slow_board: EmulatedBoard, measurer_of: Measure, baseline: Baseline
) -> None:
    measurer = measurer_of(slow_board, peak_memory=True)
    found = check_on_device(export.folder, measurer, baseline=baseline)
    failed = [j.limit.metric for j in found.judgements if j.outcome == "fail"]
    assert failed == ["latency_ms"]
