"""An export checked on its device: outputs, accuracy, limits and comparison with a baseline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from device_agents.devices import DeviceSpec
from device_agents.files.budget import Limit, require
from device_agents.measuring.measurer import DeviceMeasurer
from device_agents.measuring.profiles import counted
from latency_tables.errors import (
    BudgetMissedError,
    ExportError,
    InconclusiveError,
    ParityError,
    UsageError,
)
from pipeline.export.device_check import Baseline, DeviceCheck, check_on_device
from pipeline.export.golden import Golden, read_golden, write_golden
from tests.pipeline.export.test_check import rewrite_manifest


@pytest.fixture(scope="module")
def measurer(tmp_path_factory: pytest.TempPathFactory) -> DeviceMeasurer:
    spec = DeviceSpec(name="local", workdir=tmp_path_factory.mktemp("agent"))
    return DeviceMeasurer(spec, profile=counted(20, 2), peak_memory=True)


@pytest.fixture(scope="module")
def report(bundle, measurer: DeviceMeasurer) -> DeviceCheck:
    return check_on_device(
        bundle.folder,
        measurer,
        [(bundle.images, bundle.labels)],
        limits=[Limit(metric="latency_ms", relation="<=", bound=1e4)],
    )


def test_a_whole_folder_passes_with_numbers_of_the_device(report: DeviceCheck) -> None:
    assert report.golden.ok
    assert report.accuracy is not None
    assert report.accuracy.to_dict() == {"n_images": 24, "n_correct": 24, "value": 1.0}
    assert report.measured.measurement.statistics is not None
    assert report.measured.measurement.peak_memory_bytes


def test_limits_of_the_manifest_and_of_the_command_are_judged(bundle, report: DeviceCheck) -> None:
    named = [e for e in bundle.manifest.limits if e.name == "latency_ms" and e.device == "local"]
    assert len(report.judgements) >= len(named) + 1
    assert report.judgements[-1].outcome == "pass"


def test_a_limit_that_is_broken_fails(bundle, measurer: DeviceMeasurer) -> None:
    limit = Limit(metric="latency_ms", relation="<=", bound=1e-6)
    found = check_on_device(bundle.folder, measurer, limits=[limit])
    assert found.outcome == "fail"
    with pytest.raises(BudgetMissedError, match="latency_ms<=1e-06"):
        require(found.judgements)


def test_only_so_many_images_are_used(bundle, measurer: DeviceMeasurer) -> None:
    batches = [(bundle.images[:10], bundle.labels[:10]), (bundle.images[10:], bundle.labels[10:])]
    found = check_on_device(bundle.folder, measurer, batches, n_images=13)
    assert found.accuracy is not None
    assert found.accuracy.n_images == 13


def test_logits_that_changed_are_a_parity_error(copied: Path, measurer: DeviceMeasurer) -> None:
    golden = read_golden(copied / "golden.npz")
    changed = Golden(images=golden.images, logits=golden.logits + np.float32(0.5))
    sha256 = write_golden(copied / "golden.npz", changed)
    rewrite_manifest(copied, lambda d: d["golden"].update(sha256=sha256))
    with pytest.raises(ParityError, match=r"subnet\.onnx on local and torch disagree"):
        check_on_device(copied, measurer)


def test_a_replaced_file_never_reaches_the_device(copied: Path, measurer: DeviceMeasurer) -> None:
    (copied / "subnet.onnx").write_bytes(b"something else")
    with pytest.raises(ExportError, match="is not the file"):
        check_on_device(copied, measurer)


def written(report: DeviceCheck, path: Path, **changes: object) -> Baseline:
    report.write(path)
    data = json.loads(path.read_text())
    statistics = data["measurement"]["statistics"]
    if "slower" in changes:
        statistics["ci_high_ns"] = round(statistics["ci_high_ns"] * float(str(changes["slower"])))
    if "accuracy" in changes:
        data["accuracy"]["value"] = changes["accuracy"]
    path.write_text(json.dumps(data))
    return Baseline.read(path)


def test_nothing_worse_than_the_baseline_passes(
    bundle, measurer: DeviceMeasurer, report: DeviceCheck, tmp_path: Path
) -> None:
    baseline = replace(written(report, tmp_path / "b.json", slower=1000.0), peak_memory_bytes=None)
    found = check_on_device(bundle.folder, measurer, baseline=baseline)
    assert found.outcome == "pass"


def test_slower_than_the_baseline_is_a_failure(
    bundle, measurer: DeviceMeasurer, report: DeviceCheck, tmp_path: Path
) -> None:
    baseline = written(report, tmp_path / "b.json", slower=0.001)
    found = check_on_device(bundle.folder, measurer, baseline=baseline)
    assert [j.limit.metric for j in found.judgements if j.outcome == "fail"] == ["latency_ms"]


def test_less_accurate_than_the_baseline_is_a_failure(
    bundle, copied: Path, measurer: DeviceMeasurer, report: DeviceCheck, tmp_path: Path
) -> None:
    rewrite_manifest(copied, lambda d: d["accuracy"].update(test=None))
    baseline = replace(written(report, tmp_path / "b.json", slower=1000.0), peak_memory_bytes=None)
    labels = bundle.labels.copy()
    labels[:3] = (labels[:3] + 1) % 10
    found = check_on_device(copied, measurer, [(bundle.images, labels)], baseline=baseline)
    assert [j.limit.metric for j in found.judgements if j.outcome == "fail"] == ["accuracy"]


def test_an_interval_around_the_limit_is_inconclusive(
    bundle, measurer: DeviceMeasurer, report: DeviceCheck
) -> None:
    statistics = report.measured.measurement.statistics
    assert statistics is not None
    wide = replace(statistics, ci_low_ns=statistics.median_ns // 2)
    measurement = replace(report.measured.measurement, statistics=wide)
    from device_agents.files.budget import judge

    bound = wide.median_ms * 0.9
    limit = Limit(metric="latency_ms", relation="<=", bound=bound)
    with pytest.raises(InconclusiveError, match="the limit lies inside"):
        require(judge([limit], measurement))


@pytest.mark.parametrize("text", ["", "{}", '{"measurement": {"statistics": null}}'])
def test_something_else_is_no_baseline(tmp_path: Path, text: str) -> None:
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(UsageError, match="is no report of a check"):
        Baseline.read(tmp_path / "b.json")
