from __future__ import annotations

import copy
import json
import platform
from pathlib import Path

import pytest

from latency_tables.errors import ExportError
from latency_tables.records import DeviceFingerprint, Measurement, Statistics, Verdict
from pipeline.export import hygiene
from pipeline.export.hygiene import check_private, private_names, scrub_private
from pipeline.export.manifest import DeviceEntry, load_manifest, parse_manifest, write_manifest


def data_of(bundle) -> dict:
    return bundle.manifest.model_dump(mode="json")


def test_a_manifest_reads_back_equal(bundle) -> None:
    loaded = load_manifest(bundle.folder / "manifest.json")
    assert loaded.model_dump(mode="json") == data_of(bundle)
    assert loaded.devices[0].latency.estimate().latency_ms == 0.5


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d.update(colour="red"), "colour"),
        (lambda d: d.pop("seed"), "seed"),
        (lambda d: d.update(schema_version=2), "schema version 2"),
        (lambda d: d.update(schema_version=True), "schema version True"),
        (lambda d: d["model"].update(sha256="abc"), r"model\.sha256"),
        (lambda d: d["model"].update(size_bytes="12"), r"model\.size_bytes"),
        (lambda d: d["accuracy"]["test"].update(value=1.5), r"accuracy\.test\.value"),
        (lambda d: d["devices"][0]["latency"].update(low_ms=9.0), "inside its interval"),
        (lambda d: d["devices"][0].update(measured_utc="yesterday"), "measured_utc"),
    ],
)
def test_a_poisoned_field_is_refused_by_name(bundle, change, named: str) -> None:
    data = data_of(bundle)
    change(data)
    with pytest.raises(ExportError, match=named):
        parse_manifest(data)


@pytest.mark.parametrize("data", [[], None, "text", {}])
def test_something_else_is_no_manifest(data: object) -> None:
    with pytest.raises(ExportError, match="schema version"):
        parse_manifest(data)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"schema_version": 1, "seed": NaN}'])
def test_a_damaged_file_is_an_export_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(ExportError, match=r"manifest\.json"):
        load_manifest(path)


def test_a_missing_manifest_names_the_next_command(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="hilnas export"):
        load_manifest(tmp_path / "manifest.json")


@pytest.mark.parametrize(
    "value",
    ["/home/ada/data.npz", "see /srv/x/y.npz", "~/data", "C:\\data\\x", "file:///tmp/x", "/etc",
     "\\\\server\\share"],
)  # fmt: skip
def test_a_path_never_gets_into_a_manifest(bundle, tmp_path: Path, value: str) -> None:
    data = copy.deepcopy(data_of(bundle))
    data["dataset"]["source"] = value
    with pytest.raises(ExportError, match=r"dataset\.source holds a path"):
        write_manifest(tmp_path / "manifest.json", parse_manifest(data))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["and/or", "1/255", "N/A", "a - b / c", "https://x.org/y", ""])
def test_harmless_texts_pass(value: str) -> None:
    check_private({"note": value}, names={"ada"})


def test_names_are_found_as_whole_words_in_values_and_keys() -> None:
    check_private({"class": "adapter"}, names={"ada"})
    with pytest.raises(ExportError, match="name of this machine"):
        check_private({"board": ["rk3588 of ada"]}, names={"ada"})
    with pytest.raises(ExportError, match="name of this machine"):
        check_private({"ada": 1}, names={"ada"})


def test_the_host_name_is_private_unless_it_says_nothing(monkeypatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "lab-17.example.org")
    assert {"lab-17", "lab-17.example.org"} <= private_names()
    monkeypatch.setattr(platform, "node", lambda: "localhost")
    assert "localhost" not in private_names()


def test_the_written_manifest_is_plain_json_without_private_names(bundle) -> None:
    text = (bundle.folder / "manifest.json").read_text()
    assert json.loads(text)["model"]["sha256"] == bundle.model.sha256
    assert str(Path.home()) not in text
    assert str(bundle.folder) not in text


def test_scrubbing_leaves_nothing_that_the_check_would_find() -> None:
    collected = {"cpu": "Cortex-A55", "log": ["see /srv/x/y", "host lab-17 was busy"], "lab-17": 2}
    scrubbed = scrub_private(collected, names={"lab-17"})
    check_private(scrubbed, names={"lab-17"})
    assert scrubbed["cpu"] == "Cortex-A55"
    assert scrubbed["log"][1] == "host [removed] was busy"


def test_a_class_may_be_called_as_the_user_is(bundle, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(hygiene, "private_names", lambda: frozenset({"ada"}))
    data = data_of(bundle) | {"classes": ["ada", "grace"]}
    write_manifest(tmp_path / "manifest.json", parse_manifest(data))
    data["dataset"]["by"] = "ada"
    with pytest.raises(ExportError, match="name of this machine"):
        write_manifest(tmp_path / "manifest.json", parse_manifest(data))


def measurement(**changes: object) -> Measurement:
    statistics = Statistics(
        n_samples=90, n_rounds=3, median_ns=500_000, min_ns=1, p10_ns=1, mean_ns=1, std_ns=1,
        mad_ns=1, p90_ns=None, p95_ns=None, p99_ns=None, ci_low_ns=480_000, ci_high_ns=530_000,
        round_medians_ns=(500_000,), first_ns=1, load_ns=1, warmup_runs=5, converged=True,
    )  # fmt: skip
    values: dict = dict(
        net_id="n", arch=None, space_id="s", onnx_sha256="", artefact_sha256="",
        runtime={"name": "onnxruntime", "version": "1.22.0"}, threads=2, cores=(0, 1),
        device_name="board", device_fp="f", statistics=statistics,
        provenance={"utc": "2026-11-22T12:00:00Z", "profile": "strict"},
    )  # fmt: skip
    return Measurement(**{**values, **changes})


def test_a_device_entry_carries_the_interval_and_the_moment_of_the_measurement() -> None:
    verdict = Verdict(code="DRIFT", severity="warn", evidence="trace in /tmp/run-1/trace")
    device = DeviceFingerprint(identity={"soc": "rk3588"})
    entry = DeviceEntry.of(measurement(verdicts=(verdict,)), device)
    assert entry.latency is not None
    assert entry.latency.low_ms < entry.latency.latency_ms == 0.5 < entry.latency.high_ms
    assert (entry.profile, entry.measured_utc) == ("strict", "2026-11-22T12:00:00Z")
    assert entry.verdicts[0].evidence == "[removed]"
    assert entry.fingerprint == device.fingerprint


def test_a_failed_measurement_promises_no_latency() -> None:
    failed = measurement(
        statistics=None, error={"code": "OOM", "message": "", "blames": "candidate"}
    )
    assert DeviceEntry.of(failed, DeviceFingerprint(identity={"soc": "x"})).latency is None
