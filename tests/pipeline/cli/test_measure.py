"""``hilnas measure``: what it prints, the JSON that it promises, and its exit codes."""

import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
from onnx import ModelProto

from device_agents.measuring.reference import reference_model
from latency_tables.records import DeviceFingerprint, Measurement
from pipeline.cli.main import run_cli

SECTIONS = ("Model", "Device", "Latency", "Phases", "Outputs", "Operators", "Limits")


class Finished:
    """Exit code and output of one command line."""

    def __init__(self, *arguments):
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            self.code = run_cli(["measure", *arguments])
        self.out, self.err = out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A work folder with a model, and one whose batch is open."""
    path = tmp_path_factory.mktemp("measure")
    (path / "net.onnx").write_bytes(reference_model("tiny"))
    proto = ModelProto.FromString(reference_model("tiny"))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    (path / "open.onnx").write_bytes(proto.SerializeToString())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setenv("XDG_CONFIG_HOME", str(path / "config"))
        patch.setenv("XDG_DATA_HOME", str(path / "data"))
        patch.setenv("XDG_CACHE_HOME", str(path / "cache"))
        patch.setenv("COLUMNS", "120")
        yield path


@pytest.fixture(scope="module")
def shown(folder):
    """The whole report as text, JSON beside it."""
    return Finished(
        "net.onnx", "--measuring", "quick", "--per-op", "--check", "latency_ms<=1000",
        "--check", "peak_memory_mb<=4000", "--output", "report.json",
    )  # fmt: skip


@pytest.fixture(scope="module")
def written(folder, shown):
    """The JSON that ``--output`` wrote."""
    return json.loads((folder / "report.json").read_text())


def test_a_kept_limit_is_success(shown):
    assert (shown.code, shown.err) == (0, "")


@pytest.mark.parametrize("title", SECTIONS)
def test_every_section_is_printed(shown, title):
    assert re.search(rf"^{title}", shown.out, re.MULTILINE)


def test_the_report_names_the_model_the_device_and_the_phases(shown):
    for text in ("net.onnx", "IR 8, opset ai.onnx 17", "float 1x3x8x8", "CPUExecutionProvider",
                 "first run", "95 % interval", "throughput", "peak memory", "set inputs",
                 "get outputs", "pass  latency_ms<=1000"):  # fmt: skip
        assert text in shown.out
    assert re.search(r"median +\d+\.\d{4} ms", shown.out)


def test_the_json_has_the_documented_fields(written):
    assert set(written) == {
        "schema", "model", "measurement", "device", "throughput_per_s", "phases", "outputs",
        "operators", "operators_note", "advice", "budget", "sweep", "sustained",
    }  # fmt: skip
    assert written["schema"] == 1
    assert set(written["model"]) == {
        "name", "sha256", "size_bytes", "external_bytes", "ir_version", "opsets", "producer",
        "n_nodes", "inputs", "outputs", "shapes",
    }  # fmt: skip
    assert set(written["phases"][0]) == {"name", "runs", "median_ns", "min_ns", "max_ns"}
    assert set(written["operators"]["rows"][0]) == {
        "name", "op", "provider", "calls", "total_us", "median_us", "share"
    }  # fmt: skip
    assert set(written["advice"][0]) == {"code", "severity", "evidence", "meaning", "remedy"}
    assert written["sweep"] is None
    assert written["sustained"] is None


def test_the_json_holds_a_record_that_tables_read(written):
    measurement = Measurement.from_dict(written["measurement"])
    assert measurement.device_fp == DeviceFingerprint.from_dict(written["device"]).fingerprint
    assert written["throughput_per_s"] == pytest.approx(1e9 / measurement.statistics.median_ns)


def test_the_json_holds_the_judgement(written):
    assert written["budget"]["outcome"] == "pass"
    assert [one["outcome"] for one in written["budget"]["limits"]] == ["pass", "pass"]


def test_outputs_were_compared_with_this_machine(written):
    assert written["outputs"]["right"] is True
    assert written["outputs"]["outputs"][0]["name"] == "output"


def test_every_verdict_is_explained(written):
    explained = {remark["code"] for remark in written["advice"]}
    assert {verdict["code"] for verdict in written["measurement"]["verdicts"]} <= explained
    assert all(remark["meaning"] and remark["remedy"] for remark in written["advice"])


def test_a_broken_limit_has_its_own_exit_code_and_the_json_all_the_same(folder):
    found = Finished("net.onnx", "--measuring", "quick", "--check", "latency_ms<=0.000001",
                     "--no-check-outputs", "--json")  # fmt: skip
    assert found.code == 9
    assert "limit not kept" in found.err
    printed = json.loads(found.out)
    assert printed["budget"]["outcome"] == "fail"
    assert printed["outputs"] == {"right": None, "outputs": [], "note": "not asked for"}


def test_what_cannot_be_said_has_its_own_exit_code_and_advice(folder):
    # a quick look of 3 × 40 ms at a net of about 1 ms is far from the 662 runs that p99 needs
    (folder / "small.onnx").write_bytes(reference_model("small"))
    found = Finished("small.onnx", "--measuring", "quick", "--check", "p99_ms<=1000")
    assert found.code == 10
    assert "--measuring strict" in found.err
    assert "inconclusive  p99_ms<=1000" in found.out


def test_an_open_shape_and_threads_can_be_given(folder):
    found = Finished("open.onnx", "--measuring", "quick", "--shape", "input=2x3x8x8",
                     "--threads", "2,1", "--json")  # fmt: skip
    assert found.code == 0, found.err
    printed = json.loads(found.out)
    assert printed["model"]["shapes"] == {"input": [2, 3, 8, 8]}
    assert sorted(row["threads"] for row in printed["sweep"]) == [1, 2]
    best = next((row["threads"] for row in printed["sweep"] if row["best"]), 2)
    assert printed["measurement"]["threads"] == best


def test_inputs_of_the_user_fix_the_shape(folder):
    np.savez(folder / "inputs.npz", input=np.ones((3, 3, 8, 8), dtype=np.float32))
    found = Finished("open.onnx", "--measuring", "quick", "--inputs", "inputs.npz", "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out)["model"]["shapes"] == {"input": [3, 3, 8, 8]}


def test_some_seconds_without_pause_are_told(folder):
    found = Finished("net.onnx", "--measuring", "quick", "--minutes", "0.05", "--json")
    assert found.code == 0, found.err
    sustained = json.loads(found.out)["sustained"]
    assert sustained["periods"][-1]["end_s"] >= 3
    assert sustained["first_minute_ns"] > 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["open.onnx"], 2, "try: --shape input=1x3x8x8"),
        (["net.onnx", "--shape", "image=1x3x8x8"], 2, "no input 'image'"),
        (["net.onnx", "--shape", "1x3"], 2, "input=1x3x224x224"),
        (["net.onnx", "--threads", "1,x"], 2, "no list of thread counts"),
        (["net.onnx", "--check", "latency<=5"], 2, "is not one of latency_ms<=X"),
        (["net.onnx", "--device", "nowhere"], 2, "'nowhere' does not exist"),
        (["net.onnx", "--provider", "Nothing"], 5, "CPUExecutionProvider"),
        (["absent.onnx"], 2, "absent.onnx cannot be read"),
    ],
)
def test_mistakes_are_explained(folder, arguments, code, says):
    found = Finished(*arguments)
    assert found.code == code
    assert says in found.err
    assert found.out == ""


def test_names_in_a_model_are_shown_as_they_are(folder):
    proto = ModelProto.FromString(reference_model("tiny"))
    proto.producer_name = "[red]loud[/red]\x1b[2J"
    (folder / "loud.onnx").write_bytes(proto.SerializeToString())
    found = Finished("loud.onnx", "--measuring", "quick")
    assert "[red]loud[/red][2J" in found.out
    assert "\x1b" not in found.out
